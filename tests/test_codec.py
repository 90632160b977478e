"""Arrays to and from packed tensors, on both backends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mobillm.codec import Equalizer, calibrate, check_headers, pack, pack_integers, unpack, unpack_torch
from mobillm.errors import ConfigError, QuantizationError
from mobillm.formats import Format
from mobillm.protocol import EQUALIZERS, LENGTHS, TARGETS, TensorHeader
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


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), ()])
def test_calibration_needs_a_sample(shape: tuple[int, ...]) -> None:
    """An array without a token is refused by name before anything is reduced."""
    for array in (np.zeros(shape, np.float32), torch.zeros(shape)):
        with pytest.raises(ConfigError, match=r"tap 3: x is .*at least one token"):
            calibrate(array, "tap 3")


def test_calibration_needs_floats() -> None:
    """A type that has no magnitude is refused by name too."""
    for array in (np.full((3, 4), "a"), np.zeros((3, 4)), torch.zeros(3, 4, dtype=torch.bool)):
        with pytest.raises(ConfigError, match=r"tap 3: x\.dtype is .*float32 or float16"):
            calibrate(array, "tap 3")


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
        with pytest.raises(ConfigError, match="is 'missing'"):
            check_headers(spec(codec=CodecSpec(format="asym4", block=32)), rest, 3)


def test_widths_of_the_list() -> None:
    """[B-40] Each tap has one of the widths, all with the same block; nothing else passes."""
    what = spec(codec=CodecSpec(format="asym4", block=32, bits=(2, 4, 8)))
    for one in (Format.ASYM2, Format.ASYM8):
        check_headers(what, {**good(), 1: TensorHeader(one, 32, (9, 16))}, 3)
        with pytest.raises(ConfigError, match="tap 1"):
            check_headers(spec(), {**good(), 1: TensorHeader(one, 32, (9, 16))}, 3)
    for wrong in (
        TensorHeader(Format.ASYM3, 32, (9, 16)),
        TensorHeader(Format.NF4, 32, (9, 16)),
        TensorHeader(Format.ASYM2, 64, (9, 16)),
        TensorHeader(Format.F16, 0, (9, 16)),
    ):
        with pytest.raises(ConfigError, match="tap 1"):
            check_headers(what, {**good(), 1: wrong}, 3)


def test_equalizers_of_the_spec() -> None:
    """[B-35] [B-37] Those of the spec's taps may be there, as fp16 numbers of the model's width."""
    factors = TensorHeader(Format.F16, 0, (16,))
    check_headers(spec(), {**good(), EQUALIZERS: factors, EQUALIZERS + 1: factors}, 3)
    for number, header in (
        (EQUALIZERS + 2, factors),
        (EQUALIZERS, TensorHeader(Format.F16, 0, (15,))),
        (EQUALIZERS, TensorHeader(Format.F32, 0, (16,))),
        (EQUALIZERS, TensorHeader(Format.F16, 0, (1, 16))),
    ):
        with pytest.raises(ConfigError, match="equalizer of tap"):
            check_headers(spec(), {**good(), number: header}, 3)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_calibration(kind: str) -> None:
    """[P28] [P31] The root of the median, but never so small that the largest value leaves fp16."""
    x = np.random.default_rng(1).standard_normal((51, 4)).astype(np.float32) * np.array(
        [1, 100, 0, 1], np.float32
    )
    x[7, 3] = 40000.0
    equalizer = calibrate(x if kind == "numpy" else torch.from_numpy(x), "x")
    assert equalizer is not None
    expected = np.sqrt(np.maximum(np.median(np.abs(x), axis=0), np.float32(1e-3))).astype(np.float16)
    expected[3] = np.float16(40000.0 / 16384.0)
    assert equalizer.factors.tobytes() == expected.tobytes()
    for value in (np.nan, np.inf, 3e38):
        x[7, 3] = value
        assert calibrate(x if kind == "numpy" else torch.from_numpy(x), "x") is None
    with pytest.raises(ConfigError, match=r"tap 3: x\.dtype"):
        calibrate(np.ones((3, 4)), "tap 3")


def test_equalizers_that_are_none() -> None:
    """Another type, rank or value is refused."""
    wrong: list[Any] = [np.ones(4, np.float32), np.ones((2, 2), np.float16), np.zeros(4, np.float16)]
    wrong.append(np.ones(0, np.float16))
    for factors in wrong:
        with pytest.raises(ConfigError, match="equalizer"):
            Equalizer(factors)
    header = TensorHeader(Format.F32, 0, (4,))
    with pytest.raises(ConfigError, match=r"equalizer is 'f32 \[4\]'; expected f16"):
        Equalizer.unpack(header, bytes(16))
