from __future__ import annotations

import concurrent.futures
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest

from mobillm.errors import ConfigError, QuantizationError
from mobillm.formats import BLOCKS, Format, packed_size
from mobillm.kernels import dequantize, quantize, reference

pytestmark = pytest.mark.usefixtures("backend")

Array = npt.NDArray[Any]
Expected = Callable[[Array, Format, int], bytes]
FLOAT_FORMATS = [fmt for fmt in Format if fmt is not Format.I32]

# Largest error of one value, as a part of its block's range (tables: of its largest magnitude).
STEP = {
    Format.ASYM2: 1 / 8 + 0.005,
    Format.ASYM3: 1 / 16 + 0.005,
    Format.ASYM4: 1 / 30 + 0.002,
    Format.ASYM5: 1 / 64 + 0.005,
    Format.ASYM6: 1 / 128 + 0.005,
    Format.ASYM7: 1 / 256 + 0.003,
    Format.ASYM8: 1 / 510 + 0.001,
    Format.NF4: 0.156,
    Format.FP4: 0.171,
    Format.F8: 0.037,
}


def sample(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return (np.random.default_rng(1).standard_normal(shape) * 3).astype(dtype)


def test_package_does_not_import_torch() -> None:
    """An app that holds numpy arrays does not pay for torch."""
    code = "import mobillm.kernels, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_bytes_equal_the_reference(values: Array, expected: Expected) -> None:
    """Each format packs each hard case to exactly the reference's bytes."""
    for fmt in FLOAT_FORMATS:
        packed = quantize(values, fmt)
        assert packed.dtype == np.uint8
        assert packed.shape == (packed_size(fmt, 64, values.shape),)
        assert packed.tobytes() == expected(values, fmt, 64), fmt


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("width", [31, 32, 100, 130])
def test_every_block_length_equals_the_reference(
    fmt: Format, block: int, width: int, expected: Expected
) -> None:
    """Rows shorter and longer than a block, with and without a rest."""
    x = sample((2, width))
    assert quantize(x, fmt, block).tobytes() == expected(x, fmt, block)


def test_values_equal_the_reference(values: Array, expected: Expected) -> None:
    """Decoding gives the reference's fp32 numbers, bit for bit, in a new array."""
    for fmt in FLOAT_FORMATS:
        packed = expected(values, fmt, 64)
        out = dequantize(packed, fmt, values.shape)
        assert out.dtype == np.float32
        assert out.shape == values.shape
        assert out.flags.writeable
        again = reference.dequantize(packed, fmt, values.shape)
        assert out.tobytes() == again.tobytes(), fmt


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    x=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40),
        elements=st.floats(-65504, 65504, width=32, allow_subnormal=True),
    ),
    fmt=st.sampled_from(FLOAT_FORMATS),
    block=st.sampled_from(BLOCKS),
)
def test_any_values_equal_the_reference(x: Array, fmt: Format, block: int) -> None:
    """Bytes and decoded values follow the rules for arbitrary content."""
    packed = quantize(x, fmt, block)
    assert packed.tobytes() == reference.quantize(x, fmt, block)
    again = reference.dequantize(packed.tobytes(), fmt, x.shape, block)
    assert dequantize(packed, fmt, x.shape, block).tobytes() == again.tobytes()


def test_fp16_input_is_widened_exactly(fmt: Format) -> None:
    """The same values in fp16 and fp32 give the same bytes."""
    x = sample((3, 100), np.float16)
    assert (quantize(x, fmt) == quantize(x.astype(np.float32), fmt)).all()


@pytest.mark.parametrize("fmt", STEP)
def test_error_of_one_value_is_bounded(fmt: Format) -> None:
    """A value comes back within half a step, with a margin for the fp16 trailer."""
    x = sample((50, 64))
    error = np.abs(dequantize(quantize(x, fmt), fmt, x.shape) - x).max(axis=1)
    scale = np.ptp(x, axis=1) if fmt.is_asym else np.abs(x).max(axis=1)
    assert (error <= STEP[fmt] * scale).all()
    assert error.max() > STEP[fmt] * scale.min() / 8


def test_i32_round_trip() -> None:
    """Integers survive unchanged and come back as int32."""
    x = np.array([[-(2**31), -1, 0], [1, 7, 2**31 - 1]], np.int32)
    packed = quantize(x, Format.I32)
    assert packed.tobytes() == reference.quantize(x, Format.I32)
    out = dequantize(packed, Format.I32, x.shape)
    assert out.dtype == np.int32
    assert (out == x).all()


def test_many_rows_are_chunked_without_a_seam(expected: Expected) -> None:
    """More rows than one chunk holds pack as each row does on its own."""
    x = sample((5000, 70))
    packed = quantize(x, Format.ASYM3).reshape(len(x), -1)
    for row in (0, 4212, 4213, 4214, 4999):
        assert packed[row].tobytes() == expected(x[row], Format.ASYM3, 64)
    assert (
        dequantize(packed.reshape(-1), Format.ASYM3, x.shape)[-1]
        == reference.dequantize(packed[-1].tobytes(), Format.ASYM3, (70,))
    ).all()


@pytest.mark.parametrize("view", ["transposed", "strided", "reversed", "offset"])
def test_memory_order_does_not_matter(fmt: Format, view: str) -> None:
    """A view packs like a contiguous copy of it."""
    x = sample((130, 6, 80))
    x = {
        "transposed": x.T,
        "strided": x[::7, :, ::2],
        "reversed": x[:4, ::-1, ::-1],
        "offset": x[3:5, 1:, 9:],
    }[view]
    assert not x.flags.c_contiguous
    assert (quantize(x, fmt) == quantize(x.copy(), fmt)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [(0, 0, 0), (1, 2, 63), (2, 4, 99)])
def test_non_finite_value_is_refused_with_its_place(
    fmt: Format, bad: float, position: tuple[int, int, int]
) -> None:
    """The error holds the index in the caller's shape and the value, and asks for the origin."""
    x = sample((3, 5, 100))
    x[position] = bad
    x[2, 4, 99] = bad
    with pytest.raises(QuantizationError, match="overflow in the model") as caught:
        quantize(x, fmt)
    assert caught.value.position == position
    assert str(caught.value.value) == str(bad)


@pytest.mark.parametrize("bad", [65520.0, -65504.0039, 1e38, 3.38e38])
def test_value_above_the_limit_is_refused(fmt: Format, bad: float) -> None:
    """What fp16 cannot hold is refused by every format that stores fp16, and by no other."""
    x = sample((3, 70))
    x[1, 68] = bad
    if fmt in (Format.F32, Format.BF16):
        assert quantize(x, fmt).size
        return
    with pytest.raises(QuantizationError, match=r"above 65504, .*use format bf16 or f32") as caught:
        quantize(x, fmt)
    assert caught.value.position == (1, 68)
    assert caught.value.value == np.float32(bad)


def test_bf16_refuses_what_would_round_to_infinity() -> None:
    """The largest fp32 values have no bf16 neighbour; the largest bf16 value passes."""
    largest = np.array([0x7F7F0000], np.uint32).view(np.float32)
    assert quantize(largest, Format.BF16).tobytes() == bytes.fromhex("7f 7f")
    with pytest.raises(QuantizationError, match="use format f32"):
        quantize(np.nextafter(largest, np.float32(np.inf)), Format.BF16)


@pytest.mark.parametrize(
    ("dtype", "fmt"),
    [("float64", Format.ASYM4), ("int32", Format.F16), ("float32", Format.I32), ("int64", Format.I32)],
)
def test_other_types_are_refused(dtype: str, fmt: Format) -> None:
    """A type that would be narrowed silently is an error that names the accepted ones."""
    with pytest.raises(ConfigError, match=rf"x.dtype is '{dtype}'; expected (float32 or float16|int32) for"):
        quantize(np.zeros(3, dtype), fmt)


@pytest.mark.parametrize("change", [-1, 1])
def test_size_mismatch_is_refused(fmt: Format, change: int) -> None:
    """A payload that is one byte short or long never decodes."""
    size = packed_size(fmt, 64, (3, 70))
    with pytest.raises(ConfigError, match=f"packed size is {size + change}; expected {size} bytes"):
        dequantize(bytes(size + change), fmt, (3, 70))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.array])
def test_packed_may_be_any_buffer(fmt: Format, kind: Callable[[Any], Any]) -> None:
    """Bytes, writable or not, and arrays decode alike, also from an odd address."""
    packed = quantize(sample((2, 70)), fmt)
    buffer = packed if kind is np.array else kind(packed.tobytes())
    shifted = memoryview(b"x" + packed.tobytes())[1:]
    values = dequantize(buffer, fmt, (2, 70))
    assert values.tobytes() == dequantize(shifted, fmt, (2, 70)).tobytes()


def test_two_threads_at_once(fmt: Format) -> None:
    """Calls share no scratch memory."""
    inputs = [sample((40, 100)) * (i + 1) for i in range(8)]
    packed = [quantize(x, fmt).tobytes() for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert [out.tobytes() for out in pool.map(lambda x: quantize(x, fmt), inputs)] == packed
            back = pool.map(lambda octets: dequantize(octets, fmt, (40, 100)), packed)
            assert [quantize(x, Format.F32).tobytes() for x in back] == [
                dequantize(octets, fmt, (40, 100)).tobytes() for octets in packed
            ]


def test_results_go_into_memory_of_the_callers(fmt: Format) -> None:
    """The array that was given comes back, filled, for packed bytes and for values of any shape."""
    x = sample((3, 5, 70))
    packed = np.zeros(packed_size(fmt, 64, x.shape), np.uint8)
    assert np.shares_memory(quantize(x, fmt, out=packed), packed)
    assert (packed == quantize(x, fmt)).all()
    memory = np.zeros(x.size, np.float32)
    values = dequantize(packed, fmt, x.shape, out=memory)
    assert values.shape == x.shape
    assert np.shares_memory(values, memory)
    assert (values == dequantize(packed, fmt, x.shape)).all()


@pytest.mark.parametrize(
    "out", [np.zeros(35, np.uint8), np.zeros(36, np.int8), np.zeros(72, np.uint8)[::2], b"read-only"]
)
def test_memory_that_does_not_fit_is_refused(out: Any) -> None:
    """Too small, of another type, with gaps, or not to be written to."""
    if isinstance(out, bytes):
        out = np.frombuffer(bytes(36), np.uint8)
    with pytest.raises(ConfigError, match=r"out is .*; expected 36 x uint8, contiguous and writable"):
        quantize(sample((64,)), Format.ASYM4, out=out)


def test_result_may_not_overlap_the_input(fmt: Format) -> None:
    """Writing would change what is still to be read; memory right behind the input is fine."""
    size = packed_size(fmt, 64, (2, 64))
    memory = np.zeros(4096, np.uint8)
    x = memory[:512].view(np.float32).reshape(2, 64)
    quantize(x, fmt, out=memory[512 : 512 + size])
    with pytest.raises(ConfigError, match="does not overlap the input"):
        quantize(x, fmt, out=memory[511 : 511 + size])
    packed = memory[:size]
    start = -(-size // 4) * 4
    dequantize(packed, fmt, (2, 64), out=memory[start : start + 512].view(np.float32))
    with pytest.raises(ConfigError, match="does not overlap the input"):
        dequantize(packed, fmt, (2, 64), out=memory[start - 4 : start + 508].view(np.float32))


@pytest.mark.parametrize(
    "packed",
    [
        np.zeros(36, np.int8),
        np.zeros(9, np.float32),
        np.zeros(72, np.uint8)[::2],
        np.zeros(9, "datetime64[s]"),
        memoryview(bytes(36)).cast("i"),
        "x" * 36,
        36,
    ],
)
def test_packed_of_another_type_is_refused(packed: Any) -> None:
    """Only contiguous bytes are packed bytes."""
    with pytest.raises(ConfigError, match=r"packed is .*; expected bytes or a contiguous uint8 array"):
        dequantize(packed, Format.ASYM4, (64,))
