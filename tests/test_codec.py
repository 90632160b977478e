"""Arrays to and from packed tensors, on both backends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mobillm.codec import check_headers, pack, pack_integers, unpack, unpack_torch
from mobillm.errors import ConfigError, QuantizationError
from mobillm.formats import Format
from mobillm.protocol import LENGTHS, TARGETS, TensorHeader
from mobillm.spec import CodecSpec
from tests.sessions import spec

FLOATS = [fmt for fmt in Format if fmt is not Format.I32]


@pytest.mark.parametrize("fmt", FLOATS)
def test_both_backends_give_the_same(fmt: Format) -> None:
    """Bytes and values do not depend on where they were packed or unpacked."""
    array = np.random.default_rng(1).standard_normal((7, 100)).astype(np.float32)
    one, two = pack(array, fmt, 64, "x"), pack(torch.from_numpy(array), fmt, 64, "x")
    assert one.header == two.header == TensorHeader(fmt, 64 if fmt.is_block else 0, (7, 100))
    assert bytes(one.payload) == bytes(two.payload)
    assert len(one.payload) == one.header.size
    values = unpack(one.header, one.payload)
    assert values.dtype == np.float32
    for payload in (one.payload, bytes(one.payload), memoryview(bytes(one.payload))):
        assert np.array_equal(unpack_torch(one.header, payload).numpy(), values)


def test_the_memory_is_its_own() -> None:
    """Changing the array afterwards does not change what was packed."""
    for array in (np.ones((2, 4), np.float32), torch.ones(2, 4)):
        packed = pack(array, Format.F32, 64, "x")
        before = bytes(packed.payload)
        array[:] = 2.0
        assert bytes(packed.payload) == before


def test_integers() -> None:
    """Integers of any width that fit are packed as 32 bits."""
    for kind in (np.int8, np.int64, np.uint32):
        packed = pack_integers(np.array([1, 2, 100], kind), "x")
        assert packed.header == TensorHeader(Format.I32, 0, (3,))
        assert unpack(packed.header, packed.payload).tolist() == [1, 2, 100]
        assert unpack_torch(packed.header, packed.payload).tolist() == [1, 2, 100]
    assert pack_integers(5, "x").header.shape == (1,)
    for bad in ([], [0.5], ["a"], [2**31], [-(2**31) - 1], [True]):
        with pytest.raises(ConfigError, match="lengths"):
            pack_integers(bad, "lengths")


def test_errors_name_the_tensor() -> None:
    """The caller's name of the tensor is in every error."""
    with pytest.raises(QuantizationError, match=r"tap 3 value nan at \[1\]"):
        pack(np.array([1.0, np.nan], np.float32), Format.F32, 64, "tap 3")
    with pytest.raises(QuantizationError, match=r"tap 3 value inf at \[0, 1\]"):
        pack(torch.tensor([[1.0, torch.inf]]), Format.ASYM4, 64, "tap 3")
    for bad in (np.zeros((0, 4), np.float32), np.float32(1.0), np.zeros(4, np.float64)):
        with pytest.raises(ConfigError, match="tap 3"):
            pack(bad, Format.ASYM4, 64, "tap 3")
    with pytest.raises(ConfigError):
        unpack(TensorHeader(Format.F32, 0, (2,)), b"1234")


def good() -> dict[int, TensorHeader]:
    """Return the headers of a batch of three samples and nine tokens."""
    tap = TensorHeader(Format.ASYM4, 32, (9, 16))
    return {
        0: tap,
        1: tap,
        TARGETS: TensorHeader(Format.I32, 0, (3,)),
        LENGTHS: TensorHeader(Format.I32, 0, (3,)),
    }


def test_headers_of_each_task() -> None:
    """Targets are by sample, or by token for causal-lm; only regression has floats."""
    check_headers(spec(), good(), 3)
    language, value = spec(task="causal-lm", head="0" * 64), spec(task="regression", outputs=1)
    with pytest.raises(ConfigError, match=r"targets is \[3\]"):
        check_headers(language, good(), 3)
    check_headers(language, {**good(), TARGETS: TensorHeader(Format.I32, 0, (9,))}, 3)
    with pytest.raises(ConfigError, match="targets is 'i32"):
        check_headers(value, good(), 3)
    check_headers(value, {**good(), TARGETS: TensorHeader(Format.F32, 0, (3,))}, 3)


@pytest.mark.parametrize(
    ("tensor", "header"),
    [
        (1, TensorHeader(Format.ASYM4, 32, (8, 16))),
        (0, TensorHeader(Format.ASYM4, 32, (9, 17))),
        (0, TensorHeader(Format.ASYM4, 32, (9,))),
        (0, TensorHeader(Format.ASYM4, 64, (9, 16))),
        (0, TensorHeader(Format.ASYM5, 32, (9, 16))),
        (0, TensorHeader(Format.I32, 0, (9, 16))),
        (LENGTHS, TensorHeader(Format.I32, 0, (4,))),
        (LENGTHS, TensorHeader(Format.F32, 0, (3,))),
        (TARGETS, TensorHeader(Format.ASYM8, 32, (3,))),
        (2, TensorHeader(Format.ASYM4, 32, (9, 16))),
    ],
)
def test_headers_that_do_not_fit(tensor: int, header: TensorHeader) -> None:
    """Another shape, format, block or tensor is refused by name."""
    with pytest.raises(ConfigError):
        check_headers(spec(), {**good(), tensor: header}, 3)


def test_missing_headers() -> None:
    """Each tensor of the closed list must be there."""
    for tensor in good():
        rest = {number: header for number, header in good().items() if number != tensor}
        with pytest.raises(ConfigError, match="is missing"):
            check_headers(spec(codec=CodecSpec(format="asym4", block=32)), rest, 3)
