from __future__ import annotations

import concurrent.futures
import math
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobillm.errors import ConfigError, QuantizationError
from mobillm.formats import BLOCKS, Format, packed_size
from mobillm.kernels import numpy_backend, reference
from mobillm.kernels.torch_backend import dequantize, quantize

pytestmark = pytest.mark.usefixtures("backend")

Array = npt.NDArray[Any]
Expected = Callable[[Array, Format, int], bytes]
FLOAT_FORMATS = [fmt for fmt in Format if fmt is not Format.I32]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small operations on a busy machine lose their time waiting for torch's other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sample(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3


def test_bytes_equal_the_reference(values: Array, expected: Expected) -> None:
    """Each format packs each hard case to exactly the reference's bytes."""
    for fmt in FLOAT_FORMATS:
        packed = quantize(torch.from_numpy(values), fmt)
        assert packed.dtype is torch.uint8
        assert packed.shape == (packed_size(fmt, 64, values.shape),)
        assert packed.numpy().tobytes() == expected(values, fmt, 64), fmt


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("width", [31, 32, 100, 130])
def test_every_block_length_equals_the_reference(
    fmt: Format, block: int, width: int, expected: Expected
) -> None:
    """Rows shorter and longer than a block, with and without a rest."""
    x = sample(2, width)
    assert quantize(x, fmt, block).numpy().tobytes() == expected(x.numpy(), fmt, block)


def test_values_equal_the_reference(values: Array, expected: Expected) -> None:
    """Decoding gives the reference's fp32 numbers, bit for bit, in a new tensor."""
    for fmt in FLOAT_FORMATS:
        packed = expected(values, fmt, 64)
        out = dequantize(packed, fmt, values.shape)
        assert out.dtype is torch.float32
        assert out.shape == values.shape
        again = reference.dequantize(packed, fmt, values.shape)
        assert out.numpy().tobytes() == again.tobytes(), fmt


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    x=arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=150),
        elements=st.floats(-65504, 65504, width=32, allow_subnormal=True),
    ),
    fmt=st.sampled_from(FLOAT_FORMATS),
    block=st.sampled_from(BLOCKS),
)
def test_any_values_equal_the_numpy_backend(x: Array, fmt: Format, block: int) -> None:
    """Bytes and decoded values are those of the numpy backend for arbitrary content."""
    packed = quantize(torch.from_numpy(x), fmt, block)
    assert packed.numpy().tobytes() == numpy_backend.quantize(x, fmt, block).tobytes()
    out = dequantize(packed, fmt, x.shape, block)
    assert out.numpy().tobytes() == numpy_backend.dequantize(packed.numpy(), fmt, x.shape, block).tobytes()


def test_damaged_content_decodes_like_numpy(fmt: Format) -> None:
    """Random bytes, with trailers that are not finite, decode without a warning in both backends."""
    for width in (9, 64, 100):
        packed = np.random.default_rng(width).integers(0, 256, packed_size(fmt, 64, (4, width)), np.uint8)
        packed[-2:] = [0x01, 0x7D]
        out = dequantize(packed, fmt, (4, width)).numpy()
        assert np.array_equal(out, numpy_backend.dequantize(packed, fmt, (4, width)), equal_nan=True)


@pytest.mark.parametrize("exponent", range(-45, 5, 2))
def test_blocks_of_every_magnitude_equal_the_numpy_backend(exponent: int) -> None:
    """Random blocks from subnormal to the limit, on a fine and on a coarse grid."""
    x = sample(200, 64).mul_(10.0**exponent).clamp_(-65504, 65504)
    grid = torch.round(sample(200, 64)) * 2.0 ** round(exponent * 3.3)
    for values in (x, grid, x[:, :1].expand(-1, 64)):
        for fmt in (Format.ASYM4, Format.ASYM8, Format.ASYM3, Format.BF16, Format.F16):
            packed = numpy_backend.quantize(values.numpy(), fmt)
            assert quantize(values, fmt).numpy().tobytes() == packed.tobytes()


@pytest.mark.parametrize("step", [2.0**-6, 0.25, 1.0, 16.0, 480.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_few_digits_equal_the_numpy_backend(dtype: torch.dtype, step: float) -> None:
    """Rounded values often lie between two codes, where one rounding too many shows."""
    x = (sample(300, 64).round() * step).to(dtype)
    x[:4, :2] = torch.tensor([720.0, 1920.0])
    for fmt in (fmt for fmt in FLOAT_FORMATS if fmt.is_block):
        packed = numpy_backend.quantize(x.float().numpy(), fmt)
        assert quantize(x, fmt).numpy().tobytes() == packed.tobytes(), fmt


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [100, 128])
def test_half_precision_input_is_widened_exactly(fmt: Format, dtype: torch.dtype, width: int) -> None:
    """The same values in 16 bits and in fp32 give the same bytes."""
    x = sample(3, width).to(dtype)
    assert torch.equal(quantize(x, fmt), quantize(x.float(), fmt))


def test_i32_round_trip() -> None:
    """Integers survive unchanged and come back as int32."""
    x = torch.tensor([[-(2**31), -1, 0], [1, 7, 2**31 - 1]], dtype=torch.int32)
    packed = quantize(x, Format.I32)
    assert packed.numpy().tobytes() == reference.quantize(x.numpy(), Format.I32)
    out = dequantize(packed, Format.I32, x.shape)
    assert out.dtype is torch.int32
    assert torch.equal(out, x)


def test_many_blocks_are_chunked_without_a_seam(fmt: Format) -> None:
    """More blocks than one chunk holds pack as in the numpy backend."""
    x = sample(2500, 70)
    assert (quantize(x, fmt).numpy() == numpy_backend.quantize(x.numpy(), fmt)).all()


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded", "offset", "columns"])
def test_strides_do_not_matter(fmt: Format, view: str) -> None:
    """A view packs like a contiguous copy of it."""
    x = sample(130, 6, 128)
    x = {
        "transposed": x.transpose(0, 2),
        "strided": x[::7, :, ::2],
        "expanded": x[0, 0, :3].expand(5, 3).T,
        "offset": x[3:5, 1:, 64:],
        "columns": x[:, 0, 64:],
    }[view]
    assert not x.is_contiguous()
    assert torch.equal(quantize(x, fmt), quantize(x.contiguous(), fmt))


def test_gradients_are_cut_and_input_is_kept(fmt: Format) -> None:
    """A tensor that needs gradients packs like its values, and nothing is written to it."""
    x = sample(2, 64).requires_grad_()
    before = x.detach().clone()
    packed = quantize(x, fmt)
    assert not packed.requires_grad
    packed.fill_(0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_non_finite_value_is_refused_with_its_place(fmt: Format, bad: float, dtype: torch.dtype) -> None:
    """The error holds the index in the caller's shape and the value, and asks for the origin."""
    x = sample(3, 5, 100).to(dtype)
    x[1, 2, 63] = bad
    x[2, 4, 99] = bad
    with pytest.raises(QuantizationError, match="overflow in the model") as caught:
        quantize(x, fmt)
    assert caught.value.position == (1, 2, 63)
    assert str(caught.value.value) == str(bad)


@pytest.mark.parametrize("bad", [65520.0, -65504.0039, 1e38, 3.38e38])
def test_value_above_the_limit_is_refused(fmt: Format, bad: float) -> None:
    """What fp16 cannot hold is refused by every format that stores fp16, and by no other."""
    x = sample(3, 70)
    x[1, 68] = bad
    if fmt in (Format.F32, Format.BF16):
        assert quantize(x, fmt).numel()
        return
    with pytest.raises(QuantizationError, match=r"above 65504, .*use format bf16 or f32") as caught:
        quantize(x, fmt)
    assert caught.value.position == (1, 68)
    assert caught.value.value == np.float32(bad)


def test_bf16_refuses_what_would_round_to_infinity() -> None:
    """The largest fp32 values have no bf16 neighbour."""
    with pytest.raises(QuantizationError, match="use format f32"):
        quantize(torch.tensor([0.0, 3.3999e38]), Format.BF16)


@pytest.mark.parametrize(
    ("dtype", "fmt"),
    [(torch.float64, Format.ASYM4), (torch.int32, Format.F16), (torch.float32, Format.I32)],
)
def test_other_types_are_refused(dtype: torch.dtype, fmt: Format) -> None:
    """A type that would be narrowed silently is an error that names the accepted ones."""
    with pytest.raises(ConfigError, match=r"x.dtype is '\w+'; expected (float32 or float16|int32)"):
        quantize(torch.zeros(3, dtype=dtype), fmt)


@pytest.mark.parametrize("change", [-1, 1])
def test_size_mismatch_is_refused(fmt: Format, change: int) -> None:
    """A payload that is one byte short or long never decodes."""
    size = packed_size(fmt, 64, (3, 70))
    with pytest.raises(ConfigError, match=f"packed size is {size + change}; expected {size} bytes"):
        dequantize(bytes(size + change), fmt, (3, 70))


def test_packed_tensor_of_another_type_is_refused() -> None:
    """Only bytes are bytes."""
    with pytest.raises(ConfigError, match=r"packed\.dtype is 'int8'; expected uint8"):
        dequantize(torch.zeros(4, dtype=torch.int8), Format.F32, (1,))


def test_packed_may_be_any_buffer(fmt: Format) -> None:
    """Bytes, writable or not, arrays and tensors decode alike, also from an odd address."""
    packed = quantize(sample(2, 70), fmt)
    raw = packed.numpy().tobytes()
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), packed])[1:]
    values = dequantize(packed, fmt, (2, 70))
    for buffer in (raw, bytearray(raw), memoryview(b"x" + raw)[1:], packed.numpy(), shifted):
        assert torch.equal(values, dequantize(buffer, fmt, (2, 70)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_result(fmt: Format, dtype: torch.dtype) -> None:
    """Values are computed in fp32 and converted once."""
    packed = quantize(sample(2, 70), fmt)
    out = dequantize(packed, fmt, (2, 70), dtype=dtype, device="cpu")
    assert torch.equal(out, dequantize(packed, fmt, (2, 70)).to(dtype))
    assert out.dtype is dtype


def test_two_threads_at_once(fmt: Format) -> None:
    """Calls share no scratch memory."""
    inputs = [sample(40, 100) * (i + 1) for i in range(8)]
    packed = [quantize(x, fmt) for x in inputs]
    values = [dequantize(octets, fmt, (40, 100)) for octets in packed]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(lambda x: quantize(x, fmt), inputs), packed))
            back = pool.map(lambda octets: dequantize(octets, fmt, (40, 100)), packed)
            assert all(map(torch.equal, back, values))


def test_results_go_into_memory_of_the_callers(fmt: Format) -> None:
    """The tensor that was given holds the packed bytes, or the values in any shape."""
    x = sample(3, 5, 70)
    packed = torch.zeros(packed_size(fmt, 64, x.shape), dtype=torch.uint8)
    assert quantize(x, fmt, out=packed) is packed
    assert torch.equal(packed, quantize(x, fmt))
    memory = torch.zeros(x.numel())
    values = dequantize(packed, fmt, x.shape, out=memory)
    assert values.data_ptr() == memory.data_ptr()
    assert torch.equal(values, dequantize(packed, fmt, x.shape))
    with pytest.raises(ConfigError, match=r"out is '1049 x float32'; expected 1050 x float32"):
        dequantize(packed, fmt, x.shape, out=memory[1:])
    with pytest.raises(ConfigError, match="x uint8, contiguous and writable"):
        quantize(x, fmt, out=packed.expand(2, -1).T)


@pytest.mark.parametrize("kind", ["gradient", "bfloat16", "meta", "negated"])
def test_memory_that_does_not_fit_is_refused(fmt: Format, kind: str) -> None:
    """The error is the same whatever does the work."""
    packed = quantize(sample(70), fmt)
    out = {
        "gradient": torch.zeros(70, requires_grad=True),
        "bfloat16": torch.zeros(70, dtype=torch.bfloat16),
        "meta": torch.zeros(70, device="meta"),
        "negated": negated(70),
    }[kind]
    with pytest.raises(ConfigError, match=r"out is .*; expected 70 x float32, contiguous and writable"):
        dequantize(packed, fmt, (70,), out=out)


def negated(*shape: int) -> torch.Tensor:
    """Return a contiguous view that torch negates only when it is read, as parts of conjugates are."""
    view = torch._neg_view(sample(*shape))
    assert view.is_neg()
    return view


def test_views_that_are_negated_when_they_are_read(fmt: Format) -> None:
    """Such a tensor packs like its values, whichever of the arguments it is."""
    x = negated(3, 70)
    packed = quantize(x, fmt)
    assert torch.equal(packed, quantize(-sample(3, 70), fmt))
    view = torch._neg_view(-packed)
    assert torch.equal(dequantize(view, fmt, (3, 70)), dequantize(packed, fmt, (3, 70)))
    if fmt.is_block:
        factors = torch.full((70,), 2.0, dtype=torch.float16)
        view = torch._neg_view(-factors)
        halved = quantize(x, fmt, equalizer=factors)
        assert torch.equal(quantize(x, fmt, equalizer=view), halved)
        doubled = dequantize(halved, fmt, (3, 70), equalizer=factors)
        assert torch.equal(dequantize(halved, fmt, (3, 70), equalizer=view), doubled)


def test_equalizer_of_16_bits_of_another_kind_is_refused() -> None:
    """Factors in bfloat16 would be rounded already."""
    factors = torch.ones(64, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=r"equalizer is 'bfloat16 \[64\]'"):
        quantize(sample(2, 64), Format.ASYM4, equalizer=factors)
    with pytest.raises(ConfigError, match=r"equalizer is 'bfloat16 \[64\]'"):
        dequantize(bytes(72), Format.ASYM4, (2, 64), equalizer=factors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_may_not_overlap_the_input(fmt: Format, dtype: torch.dtype) -> None:
    """Writing would change what is still to be read; memory right behind the input is fine."""
    size = packed_size(fmt, 64, (2, 64))
    memory = torch.zeros(4096, dtype=torch.uint8)
    x = memory[: 128 * dtype.itemsize].view(dtype).reshape(2, 64)
    end = x.numel() * dtype.itemsize
    quantize(x, fmt, out=memory[end : end + size])
    with pytest.raises(ConfigError, match="does not overlap the input"):
        quantize(x, fmt, out=memory[end - 1 : end - 1 + size])
    packed = memory[:size]
    start = -(-size // 4) * 4
    dequantize(packed, fmt, (2, 64), out=memory[start : start + 512].view(torch.float32))
    with pytest.raises(ConfigError, match="does not overlap the input"):
        dequantize(packed, fmt, (2, 64), out=memory[start - 4 : start + 508].view(torch.float32))
    with pytest.raises(ConfigError, match="does not overlap the input"):
        dequantize(packed.numpy(), fmt, (2, 64), out=memory[:512].view(torch.float32))
