from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mobillm.formats import Format
from mobillm.kernels import blocks, torch_fused
from mobillm.kernels.layout import code_size
from mobillm.kernels.torch_fused import decode, encode

BLOCK_FORMATS = [fmt for fmt in Format if fmt.is_block]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads would lose their time waiting for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sample(rows: int, n: int) -> torch.Tensor:
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name.lower())
@pytest.mark.parametrize("n", [1, 2, 7, 12, 32, 63, 64, 128])
def test_records_and_values_equal_the_numpy_blocks(fmt: Format, n: int) -> None:
    """A block of any length gives the same record and the same values, in memory of the caller's or new."""
    values = sample(9, n)
    expected = np.empty((9, code_size(fmt.bits, n) + fmt.trailer), np.uint8)
    assert blocks.encode(fmt, values.numpy(), expected)
    wide = np.full((9, expected.shape[1] + 3), 0x55, np.uint8)
    assert encode(fmt, values, wide[:, :-3]) is not None
    assert (wide[:, :-3] == expected).all()
    assert (wide[:, -3:] == 0x55).all()
    fresh = encode(fmt, values, None)
    assert fresh is not None
    assert (fresh == expected).all()
    out = np.empty((9, n), np.float32)
    blocks.decode(fmt, expected, n, out)
    assert decode(fmt, wide[:, :-3], n).numpy().tobytes() == out.tobytes()


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name.lower())
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 65504.01, -65504.01, 1e38, 3.4e38])
def test_each_bad_value_is_seen_at_each_place_of_a_block(fmt: Format, bad: float) -> None:
    """The operators forget a NaN unless it comes last; the check must not."""
    for n in (7, 64):
        for place in range(n):
            values = sample(3, n)
            values[1, place] = bad
            assert encode(fmt, values, None) is None, (n, place)


@pytest.mark.parametrize("fmt", [Format.ASYM4, Format.ASYM6, Format.NF4], ids=lambda fmt: fmt.name.lower())
def test_infinities_of_both_signs_with_nan_are_seen(fmt: Format) -> None:
    """A NaN after an infinity makes the operators forget the infinity too."""
    values = sample(4, 64)
    values[0, 3], values[0, 11], values[2, 3] = math.inf, math.nan, -math.inf
    assert encode(fmt, values, None) is None


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name.lower())
@pytest.mark.parametrize("bad", [65510.0, -65510.0, 70000.0, -70000.0])
def test_constant_block_above_the_limit_is_seen(fmt: Format, bad: float) -> None:
    """A block without spread has a small scale, and a minimum that may round to the limit."""
    values = sample(4, 64)
    values[2] = bad
    assert encode(fmt, values, None) is None


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name.lower())
@pytest.mark.parametrize("scale", [300.0, 5000.0, 15000.0])
def test_large_values_within_the_limit_are_taken(fmt: Format, scale: float) -> None:
    """Where the trailers leave it open, the values themselves are looked at."""
    values = sample(300, 64).clamp(-4, 4) * scale
    values[7, 7], values[8, 8] = 65504, -65504
    assert encode(fmt, values, None) is not None
    assert encode(fmt, values + 40000 * (values > 40000), None) is None


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name.lower())
def test_chunks_meet_without_a_seam(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks give the records and the values of one."""
    values = sample(50, 64)
    whole = encode(fmt, values, None)
    assert whole is not None
    decoded = decode(fmt, whole, 64)
    monkeypatch.setattr(torch_fused, "CHUNK", 7)
    monkeypatch.setattr(torch_fused, "_TABLE_CHUNK", 7)
    again = encode(fmt, values, None)
    assert again is not None
    assert (again == whole).all()
    assert torch.equal(decode(fmt, whole, 64), decoded)


def test_read_only_records_are_decoded() -> None:
    """Records inside received bytes cannot be written to."""
    records = encode(Format.ASYM4, sample(3, 64), None)
    assert records is not None
    frozen = np.frombuffer(records.tobytes(), np.uint8).reshape(records.shape)
    assert torch.equal(decode(Format.ASYM4, frozen, 64), decode(Format.ASYM4, records, 64))
