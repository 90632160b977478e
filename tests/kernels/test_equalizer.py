from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobillm.errors import ConfigError, QuantizationError
from mobillm.formats import Format
from mobillm.kernels import calibrate, dequantize, quantize, reference, torch_backend, torch_blocks

pytestmark = pytest.mark.usefixtures("backend")

Array = npt.NDArray[Any]
BLOCK_FORMATS = [fmt for fmt in Format if fmt.is_block]


def sample(width: int = 100, tokens: int = 50) -> Array:
    """Return values whose channels differ in size by a factor of a thousand."""
    rng = np.random.default_rng(5)
    sizes = np.exp2(rng.uniform(-5, 5, width))
    return (rng.standard_normal((tokens, width)) * sizes).astype(np.float32)


def test_factors_are_roots_of_the_lower_median() -> None:
    """[P28] Worked out by hand: an even number of tokens, a small channel, a negative one."""
    x = np.array([[1, 0, -9], [4, 0, -9], [16, 1e-5, 9], [100, 1e-5, 25]], np.float32)
    assert calibrate(x).tolist() == [2, float(np.float16(np.sqrt(np.float32(1e-3)))), 3]


@pytest.mark.parametrize("tokens", [1, 2, 50, 51])
def test_both_backends_calibrate_alike(tokens: int) -> None:
    """[P28] numpy and torch give the same numbers, also from fp16, and from bf16 widened."""
    x = sample(tokens=tokens)
    x[0, 3] = 0
    factors = calibrate(x)
    assert factors.dtype == np.float16
    assert torch_backend.calibrate(torch.from_numpy(x)).numpy().tobytes() == factors.tobytes()
    half = x.astype(np.float16)
    assert torch_backend.calibrate(torch.from_numpy(half)).numpy().tobytes() == calibrate(half).tobytes()
    brain = torch.from_numpy(x).to(torch.bfloat16)
    wide = calibrate(brain.to(torch.float32).numpy())
    assert torch_backend.calibrate(brain).numpy().tobytes() == wide.tobytes()


def test_calibration_sees_all_leading_axes_as_tokens() -> None:
    """The last axis is the channels."""
    x = sample(tokens=12)
    assert (calibrate(x.reshape(3, 4, 100)) == calibrate(x)).all()


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name.lower())
@pytest.mark.parametrize("width", [64, 100])
def test_bytes_and_values_equal_the_reference(fmt: Format, width: int) -> None:
    """[P29] [P30] Every backend packs x times 1/c as the reference does, and multiplies by c afterwards."""
    x = sample(width)
    factors = calibrate(x)
    scaled = x * (np.float32(1) / factors.astype(np.float32))
    expected = reference.quantize(scaled, fmt)
    values = reference.dequantize(expected, fmt, x.shape) * factors.astype(np.float32)
    tensor, tensor_factors = torch.from_numpy(x), torch.from_numpy(factors)

    assert quantize(x, fmt, equalizer=factors).tobytes() == expected
    assert dequantize(expected, fmt, x.shape, equalizer=factors).tobytes() == values.tobytes()
    packed = torch_backend.quantize(tensor, fmt, equalizer=tensor_factors)
    assert packed.numpy().tobytes() == expected
    out = torch_backend.dequantize(packed, fmt, x.shape, equalizer=tensor_factors)
    assert out.numpy().tobytes() == values.tobytes()
    if width == 64:
        assert torch_blocks.encode(fmt, torch.from_numpy(scaled)).numpy().tobytes() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_input_is_widened_first(dtype: torch.dtype) -> None:
    """[P29] The product is an fp32 number whatever the input is, and the input is not changed."""
    x = torch.from_numpy(sample()).to(dtype)
    before = x.clone()
    factors = torch_backend.calibrate(x)
    packed = torch_backend.quantize(x, Format.ASYM4, equalizer=factors)
    assert torch.equal(packed, torch_backend.quantize(x.float(), Format.ASYM4, equalizer=factors))
    assert torch.equal(x, before)


def test_many_rows_are_chunked_without_a_seam() -> None:
    """More values than one chunk holds pack as in the numpy backend."""
    x = sample(256, tokens=2100)
    factors = calibrate(x[:100])
    packed = torch_backend.quantize(torch.from_numpy(x), Format.ASYM4, equalizer=torch.from_numpy(factors))
    assert (packed.numpy() == quantize(x, Format.ASYM4, equalizer=factors)).all()


def test_equalization_halves_the_error() -> None:
    """Channels of different size spoil each other's blocks; equalized ones do not."""
    x = sample(512, tokens=200)
    factors = calibrate(x[:100])
    plain = dequantize(quantize(x, Format.ASYM4), Format.ASYM4, x.shape)
    packed = quantize(x, Format.ASYM4, equalizer=factors)
    equalized = dequantize(packed, Format.ASYM4, x.shape, equalizer=factors)
    error, other = (np.median(np.abs(y - x) / np.abs(x)) for y in (plain, equalized))
    assert other < error / 2


def test_value_that_is_too_large_after_equalization_is_refused() -> None:
    """The error names the value and says that the limit is that of the quotient."""
    x = np.ones((3, 64), np.float32)
    x[1, 7] = 60000
    factors = np.full(64, 0.5, np.float16)
    for call in (
        lambda: quantize(x, Format.ASYM4, equalizer=factors),
        lambda: torch_backend.quantize(
            torch.from_numpy(x), Format.ASYM4, equalizer=torch.from_numpy(factors)
        ),
    ):
        with pytest.raises(QuantizationError, match="by its channel's factor is above 65504") as caught:
            call()
        assert (caught.value.position, caught.value.value) == ((1, 7), 60000)


@pytest.mark.parametrize(
    ("factors", "match"),
    [
        (np.ones(63, np.float16), r"equalizer is 'float16 \[63\]'; expected float16 \[64\]"),
        (np.ones(64, np.float32), r"equalizer is 'float32 \[64\]'"),
        (np.array([1.0] * 63 + [0.0], np.float16), r"equalizer\[63\] is 0.0; expected a positive number"),
        (np.array([math.nan] + [1.0] * 63, np.float16), r"equalizer\[0\] is nan"),
        (np.array([1.0, math.inf] * 32, np.float16), r"equalizer\[1\] is inf"),
    ],
)
def test_wrong_equalizer_is_refused(factors: Array, match: str) -> None:
    """Length, type and range are checked on both ways and in both backends."""
    x = np.ones((2, 64), np.float32)
    packed = quantize(x, Format.ASYM4)
    with pytest.raises(ConfigError, match=match):
        quantize(x, Format.ASYM4, equalizer=factors)
    with pytest.raises(ConfigError, match=match):
        dequantize(packed, Format.ASYM4, x.shape, equalizer=factors)
    with pytest.raises(ConfigError, match=match):
        torch_backend.quantize(torch.from_numpy(x), Format.ASYM4, equalizer=torch.from_numpy(factors))
    with pytest.raises(ConfigError, match=match):
        torch_backend.dequantize(packed, Format.ASYM4, x.shape, equalizer=torch.from_numpy(factors))


def test_plain_formats_take_no_equalizer() -> None:
    """fp16 has a scale for each value already."""
    with pytest.raises(ConfigError, match="equalizer is 'f16'; expected a block format"):
        quantize(np.ones((2, 64), np.float32), Format.F16, equalizer=np.ones(64, np.float16))


@pytest.mark.parametrize("shape", [(), (0, 4), (3, 0)])
def test_calibration_needs_values(shape: tuple[int, ...]) -> None:
    """Nothing can be learned from nothing."""
    with pytest.raises(ConfigError, match="at least one token"):
        calibrate(np.zeros(shape, np.float32))
    with pytest.raises(ConfigError, match="at least one token"):
        torch_backend.calibrate(torch.zeros(shape))


def test_calibration_refuses_other_types_and_overflow() -> None:
    """Integers and doubles are not hidden states; a median that is not finite is an overflow."""
    with pytest.raises(ConfigError, match=r"x.dtype is 'float64'"):
        calibrate(np.zeros((3, 4)))
    with pytest.raises(ConfigError, match=r"x.dtype is 'int32'"):
        torch_backend.calibrate(torch.zeros(3, 4, dtype=torch.int32))
    bad = np.ones((3, 4), np.float32)
    bad[:, 2] = math.inf
    with pytest.raises(ConfigError, match=r"equalizer\[2\] is inf"):
        calibrate(bad)
    for large in (4.3e9, 3e38):
        with pytest.raises(ConfigError, match=r"equalizer\[0\] is inf; .* below 4.29e9"):
            calibrate(np.full((3, 4), large, np.float32))
        with pytest.raises(ConfigError, match=r"equalizer\[0\] is inf; .* below 4.29e9"):
            torch_backend.calibrate(torch.full((3, 4), large))
