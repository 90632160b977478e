from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mobillm.formats import BLOCKS, Format, packed_size
from mobillm.kernels import native, numpy_backend, reference
from mobillm.kernels.equalizer import reciprocal
from mobillm.kernels.workspace import aligned

Array = npt.NDArray[Any]
Expected = Callable[[Array, Format, int], bytes]
FORMATS = [fmt for fmt in Format if native.can(fmt)]
BUILT = native.LEVELS

needs_extension = pytest.mark.skipif(not BUILT, reason="the C extension was not built")


@pytest.fixture(params=BUILT)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Use one instruction set after the other."""
    monkeypatch.setattr(native, "LEVELS", BUILT[: BUILT.index(request.param) + 1])
    return str(request.param)


@pytest.fixture
def flushed() -> Iterator[None]:
    """Make this thread's arithmetic flush subnormal numbers to zero."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def encode(
    x: Array, fmt: Format, block: int = 64, inverse: Array | None = None, kind: str = ""
) -> Array | None:
    """Pack an array; None when it is refused."""
    width = x.shape[-1] if x.ndim else 1
    out = np.full(packed_size(fmt, block, x.shape) + 2, 0x55, np.uint8)
    fine = native.encode(x, native.KINDS[kind or x.dtype.name], fmt, block, width, inverse, out[1:-1])
    assert (out[[0, -1]] == 0x55).all()
    return out[1:-1] if fine else None


def decode(packed: bytes, fmt: Format, shape: tuple[int, ...], block: int = 64) -> Array:
    """Unpack an array to an odd address, and look at the bytes around it."""
    size = 4 * math.prod(shape)
    memory = np.full(size + 2, 0x55, np.uint8)
    octets = np.frombuffer(b"x" + packed, np.uint8)[1:]
    native.decode(octets, fmt, block, shape[-1] if shape else 1, None, memory[1:-1])
    assert (memory[[0, -1]] == 0x55).all()
    return memory[1:-1].copy().view(np.float32).reshape(shape)


def sample(*shape: int) -> Array:
    return (np.random.default_rng(4).standard_normal(shape) * 3).astype(np.float32)


@pytest.mark.parametrize("block", BLOCKS)
def test_bytes_and_values_equal_the_reference(
    level: str, values: Array, block: int, expected: Expected
) -> None:
    """Each instruction set gives the reference's bytes and numbers, and writes nothing else."""
    if values.size == 0:
        return
    for fmt in FORMATS:
        packed = encode(values, fmt, block)
        assert packed is not None
        assert packed.tobytes() == expected(values, fmt, block), fmt
        again = reference.dequantize(packed.tobytes(), fmt, values.shape, block)
        assert decode(packed.tobytes(), fmt, values.shape, block).tobytes() == again.tobytes(), fmt


@pytest.mark.parametrize("width", range(1, 131, 3))
def test_every_width_and_many_rows(level: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of any length, more of them than are handled at a time, as numpy packs them, factors and all."""
    x = sample(37, width)
    factors = (np.abs(sample(width)) + 0.1).astype(np.float16)
    for fmt in (fmt for fmt in FORMATS if fmt.is_block):
        for block in BLOCKS:
            packed = encode(x, fmt, block, reciprocal(factors))
            assert packed is not None
            out = np.empty(x.shape, np.float32)
            native.decode(packed, fmt, block, width, factors.astype(np.float32), out)
            with monkeypatch.context() as patch:
                patch.setattr(native, "LEVELS", ())
                assert (packed == numpy_backend.quantize(x, fmt, block, equalizer=factors)).all()
                again = numpy_backend.dequantize(packed, fmt, x.shape, block, equalizer=factors)
            assert out.tobytes() == again.tobytes()


@pytest.mark.parametrize(("width", "start"), [(640, 0), (608, 0), (648, 0), (640, 16)])
def test_large_results_are_as_in_numpy(
    level: str, width: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results for which no cache has room; from a line's start on they are written past all of them."""
    shape = (512, width)
    x, factors = sample(*shape), (np.abs(sample(width)) + 0.1).astype(np.float16)
    for fmt, block in ((Format.ASYM4, 64), (Format.ASYM3, 128), (Format.NF4, 32), (Format.F8, 64)):
        packed = numpy_backend.quantize(x, fmt, block, equalizer=factors)
        memory = aligned(x.nbytes + 128)
        memory[:] = 0x55
        native.decode(packed, fmt, block, width, factors.astype(np.float32), memory[64 + start :][: x.nbytes])
        assert (memory[: 64 + start] == 0x55).all()
        assert (memory[64 + start + x.nbytes :] == 0x55).all()
        with monkeypatch.context() as patch:
            patch.setattr(native, "LEVELS", ())
            again = numpy_backend.dequantize(packed, fmt, shape, block, equalizer=factors)
        assert memory[64 + start :][: x.nbytes].tobytes() == again.tobytes()


def test_every_16_bit_number_is_widened_exactly(level: str) -> None:
    """All finite fp16 and bf16 numbers, as input and as packed values; what is not finite stays so."""
    bits = np.arange(1 << 16).astype(np.uint16)
    wide = {"float16": bits.view(np.float16).astype(np.float32)}
    wide["bfloat16"] = (bits.astype(np.uint32) << 16).view(np.float32)
    for kind, fmt in (("float16", Format.F16), ("bfloat16", Format.BF16)):
        assert np.array_equal(decode(bits.tobytes(), fmt, (len(bits),)), wide[kind], equal_nan=True)
        finite = np.isfinite(wide[kind])
        packed = encode(bits[finite], fmt, kind=kind)
        assert packed is not None
        assert (packed.view(np.uint16) == bits[finite]).all()
        values = encode(bits[finite], Format.F32, kind=kind)
        assert values is not None
        assert values.tobytes() == wide[kind][finite].tobytes()


def test_every_trailer_decodes_as_in_numpy(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any scale and minimum, infinite ones and NaN too."""
    records = np.random.default_rng(5).integers(0, 256, (1 << 16, 36), np.uint8)
    records[:, 32:34] = np.arange(1 << 16, dtype=np.uint16)[:, None].view(np.uint8)
    values = decode(records.tobytes(), Format.ASYM4, (1 << 16, 64))
    monkeypatch.setattr(native, "LEVELS", ())
    again = numpy_backend.dequantize(records.reshape(-1), Format.ASYM4, values.shape)
    assert np.array_equal(values, again, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, -math.nan, math.inf, -math.inf, 65504.004, -65504.004])
def test_each_bad_value_is_seen_at_each_place(level: str, bad: float) -> None:
    """No place of a block, a short block, a group or a row hides a value that cannot be packed."""
    for x in (sample(10, 128), sample(18, 100)):
        for place in range(x.size):
            before, x.flat[place] = x.flat[place], bad
            assert encode(x, (Format.ASYM4, Format.NF4, Format.F16)[place % 3]) is None
            x.flat[place] = before
    x[7, 70] = bad
    assert (encode(x, Format.F32) is None) == (not math.isfinite(bad))
    assert (encode(x, Format.BF16) is None) == (not math.isfinite(bad))


@pytest.mark.parametrize("runs", [1, 2, 15, 16, 17, 18, 256])
def test_any_table_of_codes_is_looked_up(level: str, runs: int) -> None:
    """Each of the 256 points at each place of a block, with few changes of code along the table or many."""
    extension: Any = native._extension
    ends = np.linspace(0, 256, runs + 1).astype(int)
    table = np.repeat(np.random.default_rng(6).permutation(runs) % 16, np.diff(ends)).astype(np.uint8)
    for block in BLOCKS:
        points = np.add.outer(np.arange(256), np.arange(block - 2)) % 256
        x = np.empty((256, block), np.float32)
        x[:, :-2] = points / 127.5 - 1
        x[:, -2:] = -1, 1  # the points lie between the extremes
        packed = np.empty(len(x) * (block // 2 + 2), np.uint8)
        arguments = (x, 0, packed, Format.NF4, block, block, None, table)
        assert extension.encode(*arguments, len(native.LEVELS) - 1)
        codes = packed.reshape(len(x), -1)[:, :-2]
        nibbles = np.stack([codes & 15, codes >> 4], axis=2).reshape(x.shape)
        assert (nibbles[:, :-2] == table[points]).all()


@pytest.mark.usefixtures("flushed")
def test_the_callers_floating_point_mode_does_not_matter(level: str) -> None:
    """Subnormal numbers are kept although the thread flushes them, and the thread's mode comes back."""
    x = np.array([1e-40, -1e-40, 2e-39], np.float32)
    packed = encode(x, Format.F32)
    assert packed is not None
    halves = np.array([1, 0x8001, 0x3FF], np.uint16).view(np.float16)
    wide = encode(halves, Format.F32)
    assert wide is not None
    assert wide.tobytes() == halves.astype(np.float32).tobytes()
    tiny = encode(np.full(64, 3e-8, np.float32), Format.ASYM4)
    assert tiny is not None
    assert tiny[-2:].tobytes() == b"\x01\x00"  # the smallest fp16 number
    assert decode(tiny.tobytes(), Format.ASYM4, (64,)).min() == 2.0**-24
    assert (torch.tensor([1e-40]) * 1.0).item() == 0


@needs_extension
@pytest.mark.parametrize("change", ["a byte less", "a byte more", "a row less", "a row more"])
@pytest.mark.parametrize("which", ["x", "out", "factors"])
def test_buffers_of_another_size_are_refused(fmt: Format, which: str, change: str) -> None:
    """The extension measures buffers itself, and touches nothing when one is too short or too long."""
    rows = {"x": 4 * 70, "out": packed_size(fmt, 64, (70,)), "factors": 4 * 70}
    sizes = {"x": 3 * rows["x"], "out": 3 * rows["out"], "factors": rows["factors"]}
    sizes[which] += (1 if "byte" in change else rows[which]) * (1 if "more" in change else -1)
    x, out, factors = (np.full(size, 0x55, np.uint8) for size in sizes.values())  # bytes will do
    with pytest.raises(ValueError, match="bytes; expected"):
        native.encode(x, 0, fmt, 64, 70, cast(Any, factors), out)
    assert (out == 0x55).all()
    values, packed = np.full(sizes["x"], 0x55, np.uint8), np.zeros(sizes["out"], np.uint8)
    with pytest.raises(ValueError, match="bytes; expected"):
        native.decode(packed, fmt, 64, 70, cast(Any, factors), values)
    assert (values == 0x55).all()


@needs_extension
def test_numbers_out_of_range_are_refused() -> None:
    """Formats, blocks, widths, kinds, levels and tables that do not exist."""
    extension: Any = native._extension
    x, out = np.zeros(256, np.uint8), np.zeros(36, np.uint8)
    good = [x, 0, out, Format.ASYM4, 64, 64, None, None, 0]
    assert extension.encode(*good)
    bad: list[tuple[int, Any, str]] = [
        (1, 3, "kind is 3"),
        (3, Format.I32, "format is 3"),
        (3, 25, "format is 25"),
        (4, 0, "block is 0"),
        (4, 65, "block is 65"),
        (5, 0, "width is 0"),
        (5, -64, "width is -64"),
        (5, sys.maxsize, "width is"),
        (7, b"x", "table has 1 bytes"),
        (8, -1, "level is -1"),
        (8, 3, "level is 3"),
    ]
    for place, value, message in bad:
        arguments = list(good)
        arguments[place] = value
        with pytest.raises(ValueError, match=message):
            extension.encode(*arguments)
    with pytest.raises(ValueError, match="table has 0 bytes; expected 64"):
        extension.decode(bytes(34), bytearray(256), Format.NF4, 64, 64, None, None, 0)
    for memory in (bytes(36), np.zeros(72, np.uint8)[::2]):  # read-only; not contiguous
        with pytest.raises((TypeError, BufferError, ValueError)):
            extension.encode(x, 0, memory, Format.ASYM4, 64, 64, None, None, 0)


def test_without_the_extension_all_works_alike() -> None:
    """Where there was no compiler, the import of the extension fails and nothing else does."""
    code = """
import sys
sys.modules["mobillm.kernels._native"] = None
import numpy, torch
from mobillm import kernels
from mobillm.formats import Format
from mobillm.kernels import native, torch_backend
assert native.LEVELS == () and not native.can(Format.ASYM4)
x = numpy.linspace(-1, 1, 640, dtype=numpy.float32).reshape(5, 128)
packed = kernels.quantize(x, Format.ASYM4)
assert (torch_backend.quantize(torch.from_numpy(x), Format.ASYM4).numpy() == packed).all()
sys.stdout.buffer.write(packed.tobytes())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.PIPE)
    x = np.linspace(-1, 1, 640, dtype=np.float32).reshape(5, 128)
    assert done.stdout == numpy_backend.quantize(x, Format.ASYM4).tobytes()
