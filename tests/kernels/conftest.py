"""Tensors that are hard to quantize, and the reference's bytes for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mobillm.formats import Format
from mobillm.kernels import native, reference
from mobillm.kernels.tables import table_of

Array = npt.NDArray[Any]

_SHAPES: dict[str, tuple[int, ...]] = {
    "rank 0": (),
    "1 value": (1,),
    "7 values": (7,),
    "63 values": (63,),
    "64 values": (64,),
    "65 values": (65,),
    "100 values": (100,),
    "576 values": (576,),
    "empty": (0,),
    "empty rows": (3, 0),
    "no rows": (0, 64),
    "width 1": (5, 1),
    "width 3": (4, 3),
    "width 64": (3, 64),
    "3 x 5 x 100": (3, 5, 100),
    "rank 4": (2, 1, 2, 65),
    "rank 8": (1, 2, 1, 1, 1, 2, 1, 33),
}


def _f32(values: Any) -> Array:
    return np.asarray(values, np.float32)


def _hard_values() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    normal = _f32(rng.standard_normal((2, 100)))
    sink = normal.copy()
    sink[0, 5], sink[1, 70] = 27000, -27000
    zeros = _f32(np.where(normal > 0, 0.0, -0.0))
    steps = np.arange(64) + 0.5
    return {
        "all zero": _f32(np.zeros((2, 70))),
        "negative zeros": _f32(np.full((2, 70), -0.0)),
        "both zeros": zeros,
        "both zeros and more": _f32(np.where(normal > 1, normal, zeros)),
        "constant": _f32(np.full((2, 70), 3.3)),
        "constant, minimum rounds up": _f32(np.full(65, 2049.5)),
        "nearly constant": _f32(1000 + normal * 1e-4),
        "minimum far from zero": _f32(40000 + normal),
        "negative": -np.abs(normal) - 1,
        "sink tokens": sink,
        "largest": _f32(np.linspace(-65504, 65504, 130)),
        "tiny": normal * _f32(1e-9),
        "minimum rounds to negative zero": np.abs(normal) - _f32(1e-9),
        "small scales": normal * _f32(3e-6),
        "subnormal fp16": normal * _f32(1e-7),
        "subnormal fp32": normal * _f32(1e-40),
        "smallest and largest": _f32([1e-45, -1e-45, 65504, -65504, 0.0]),
        "4-bit ties": _f32([0.0, 15.0, *steps[:15]]),
        "8-bit ties": _f32([0.0, 255.0, *(steps * 3.984375)]).round(1),
        "8-bit ties, unit step": np.stack([_f32([0.0, 255.0, *(steps + k)]) for k in (0, 64, 128, 190)]),
        "grid ties": np.stack([_f32([127.5, -127.5, *(steps - k)]) for k in (0, 32, 64, 120)]),
        "NF4 table": _f32([*table_of(Format.NF4).values, *(table_of(Format.NF4).values / 3)]),
        "FP4 table": _f32([*table_of(Format.FP4).values, *(table_of(Format.FP4).values / 3)]),
        "F8 table": _f32(table_of(Format.F8).values[:127] * 448),
        "F8 ties": _f32([448.0, *(np.arange(16) + 0.5) * 2.0**-9, *(np.arange(16) + 8.5) * 4]),
        "F8 ties after a division": _f32([[720.0, 1920.0], [3.0, 26.0], [5.0, 44.0], [1.75, 11.0]]),
        "absolute maximum rounds down": _f32([1.0004, -1.0004, 0.7, -0.7]),
        "bf16 ties": _f32([1.00390625, 1.01171875, -1.00390625, 1.0039063, 1.0039062]),
        "fp16 ties": _f32([2049.0, 2051.0, 6.1e-5, 2.98e-8, 8.9e-8, -2.98e-8]),
    }


def _cases() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    cases = {name: _f32(rng.standard_normal(shape) * 3) for name, shape in _SHAPES.items()}
    return cases | _hard_values()


_CASES = _cases()


@pytest.fixture(params=["without native", "native"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test without the C extension and with it, where it was built."""
    if request.param == "without native":
        monkeypatch.setattr(native, "LEVELS", ())
    elif not native.LEVELS:
        pytest.skip("the C extension was not built: there was no compiler, or it is older than this test")


@pytest.fixture(params=_CASES)
def values(request: pytest.FixtureRequest) -> Array:
    """Give one float32 array per case; it must not be changed."""
    return _CASES[request.param]


@pytest.fixture(params=[fmt for fmt in Format if fmt is not Format.I32], ids=lambda fmt: fmt.name.lower())
def fmt(request: pytest.FixtureRequest) -> Format:
    """Give every format for floats in turn."""
    return Format(request.param)


@functools.lru_cache(maxsize=4096)
def _packed(content: bytes, shape: tuple[int, ...], fmt: Format, block: int) -> bytes:
    return reference.quantize(np.frombuffer(content, np.float32).reshape(shape), fmt, block)


@pytest.fixture
def expected() -> Callable[[Array, Format, int], bytes]:
    """Give the reference's packing of a float32 array; equal questions are answered once."""
    return lambda x, fmt, block: _packed(x.tobytes(), x.shape, fmt, block)
