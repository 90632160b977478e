"""Arrays to and from packed tensors: the one module that knows both the kernels and the wire.

It works without torch on numpy arrays; torch tensors take the torch backend, which gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from . import kernels
from .errors import ConfigError, QuantizationError
from .formats import Format
from .protocol import (
    EQUALIZERS,
    LENGTHS,
    TARGETS,
    TensorHeader,
    checksum,
    compress,
    decompress,
    tensor_name,
)
from .spec import SessionSpec

__all__ = [
    "Equalizer",
    "PackedTensor",
    "calibrate",
    "check_headers",
    "pack",
    "pack_integers",
    "unpack",
    "unpack_torch",
]

Buffer = bytes | bytearray | memoryview

# An equalized value of the sample is at most a quarter of the largest fp16 number: later values, which are
# larger at times, still fit the fp16 scales of the blocks.
HEADROOM = 16384.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Equalizer:
    """The factors that the channels of a tap are divided by before they are packed.

    Args:
        factors: float16 [width], all positive; must not change any more.

    Raises:
        ConfigError: the factors are something else.

    """

    factors: npt.NDArray[np.float16]

    def __post_init__(self) -> None:
        if not self.factors.size:
            raise ConfigError("equalizer", "empty", "float16 [width], one factor per channel")
        kernels.check_equalizer(self.factors, self.factors.size)

    @property
    def packed(self) -> PackedTensor:
        """The factors as the tensor that carries them."""
        header = TensorHeader(Format.F16, 0, self.factors.shape)
        return PackedTensor(header, memoryview(self.factors.astype("<f2").tobytes()))

    @property
    def checksum(self) -> int:
        """CRC32C of the packed factors, which the headers of equalized tensors name."""
        return checksum(self.packed.payload)

    @classmethod
    def unpack(cls, header: TensorHeader, payload: Buffer) -> Equalizer:
        """Return the equalizer of a packed tensor.

        Raises:
            ConfigError: the tensor is another one, or a factor is not positive and finite.

        """
        if header.format is not Format.F16 or len(header.shape) != 1:
            raise ConfigError(
                "equalizer", f"{header.format.name.lower()} {list(header.shape)}", "f16 [width]"
            )
        return cls(unpack(header, payload).astype(np.float16))


@dataclasses.dataclass(frozen=True, slots=True)
class PackedTensor:
    """A header and exactly the bytes it announces, or the zstd frame that holds them.

    Attributes:
        header: format, block and shape.
        payload: ``header.size`` bytes, or the frame; must not change any more.
        equalizer: what the channels were divided by; None: nothing.
        compressed: whether ``payload`` is a frame.

    """

    header: TensorHeader
    payload: memoryview
    equalizer: Equalizer | None = None
    compressed: bool = False

    def smaller(self) -> PackedTensor:
        """Return the tensor compressed, or as it is if that makes it no smaller."""
        frame = compress(self.payload)
        return self if frame is None else dataclasses.replace(self, payload=frame, compressed=True)

    def plain(self) -> PackedTensor:
        """Return the tensor with its packed bytes as payload."""
        if not self.compressed:
            return self
        packed = decompress(self.payload, self.header.size)
        return dataclasses.replace(self, payload=packed, compressed=False)


def calibrate(array: Any, name: str) -> Equalizer | None:
    """Choose the equalizer of a tap from a sample of its hidden states.

    Args:
        array: numpy array or torch tensor of floats [tokens, width] with at least one token.
        name: what the tensor is, for errors.

    Returns:
        the equalizer (``docs/packed-tensors.md``, P28 and P31); None when a value is not finite or a factor
        would be too large for fp16.

    Raises:
        ConfigError: the array has no tokens, or a type that the kernels do not take.

    """
    try:
        kernels.check_sample(tuple(array.shape), array.dtype)
        if _is_torch(array):
            largest = array.detach().abs().amax(dim=0).float().cpu().numpy()
        else:
            largest = np.abs(array).max(axis=0).astype(np.float32)
        if not (largest <= HEADROOM * float(np.finfo(np.float16).max)).all():
            return None
        backend = _torch_backend() if _is_torch(array) else kernels
        factors = np.asarray(backend.calibrate(array).cpu() if _is_torch(array) else backend.calibrate(array))
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc.field}", exc.value, exc.expected) from None
    return Equalizer(np.maximum(factors, (largest / np.float32(HEADROOM)).astype(np.float16)))


def pack(array: Any, fmt: Format, block: int, name: str, equalizer: Equalizer | None = None) -> PackedTensor:
    """Quantize and pack activations or float targets.

    Args:
        array: numpy array or torch tensor of floats, of rank 1 or 2.
        fmt: packed format.
        block: values per scale, for formats with blocks.
        name: what the tensor is, for errors.
        equalizer: divides the channels first, for formats with blocks; None divides by nothing.

    Raises:
        QuantizationError: a value is not finite, or too large for the format.
        ConfigError: the array is empty, a single number, or of a type that the format does not take.

    """
    if len(array.shape) == 0 or math.prod(array.shape) == 0:
        raise ConfigError(name, list(array.shape), "a tensor of rank 1 or more with at least one value")
    try:
        if _is_torch(array):
            factors = None if equalizer is None else _as_torch(equalizer)
            packed = _torch_backend().quantize(array, fmt, block, equalizer=factors).cpu().numpy()
        else:
            numbers = None if equalizer is None else equalizer.factors
            packed = kernels.quantize(np.asarray(array), fmt, block, equalizer=numbers)
    except QuantizationError as exc:
        raise QuantizationError(exc.reason, exc.position, exc.value, name) from None
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc.field}", exc.value, exc.expected) from None
    named = None if equalizer is None else equalizer.checksum
    header = TensorHeader(fmt, block if fmt.is_block else 0, tuple(array.shape), named)
    return PackedTensor(header, packed.data.cast("B"), equalizer)


def pack_integers(values: npt.ArrayLike, name: str) -> PackedTensor:
    """Pack lengths, labels or token ids as 32-bit integers.

    Raises:
        ConfigError: a value is not an integer that fits into 32 bits, or there is none.

    """
    array = np.atleast_1d(np.asarray(values))
    if array.size == 0 or array.dtype.kind not in "iu":
        raise ConfigError(name, f"{array.dtype} of shape {list(array.shape)}", "at least one integer")
    limits = np.iinfo(np.int32)
    if array.min() < limits.min or array.max() > limits.max:
        raise ConfigError(name, int(array.max()), "integers that fit into 32 bits")
    packed = kernels.quantize(np.ascontiguousarray(array, dtype=np.int32), Format.I32)
    return PackedTensor(TensorHeader(Format.I32, 0, tuple(array.shape)), packed.data.cast("B"))


def unpack(header: TensorHeader, payload: Buffer, equalizer: Equalizer | None = None) -> npt.NDArray[Any]:
    """Return the array of a packed tensor: float32, or int32 for integers.

    Args:
        header: the tensor's header.
        payload: its bytes.
        equalizer: the one that the header names; None when it names none.

    Raises:
        ConfigError: the payload does not have the header's size.

    """
    factors = None if equalizer is None else equalizer.factors
    shape, block = header.shape, header.block or 64
    return kernels.dequantize(payload, header.format, shape, block, equalizer=factors)


def unpack_torch(
    header: TensorHeader, payload: Any, device: Any = "cpu", equalizer: Equalizer | None = None
) -> Any:
    """Return the torch tensor of a packed tensor, unpacked on ``device``; else like :func:`unpack`.

    The packed bytes travel to the device, not the floats; they may be there already, as a uint8 tensor.
    """
    factors = None if equalizer is None else _as_torch(equalizer)
    shape, block = header.shape, header.block or 64
    return _torch_backend().dequantize(payload, header.format, shape, block, device=device, equalizer=factors)


def check_headers(spec: SessionSpec, headers: Mapping[int, TensorHeader], samples: int) -> None:
    """Check that a batch's tensors are those that the spec asks for.

    Every tap must be there with the model's width in a format of the spec, all taps with the same number of
    tokens, one for each sample where the spec's ``tokens`` is ``last``; one length for each sample; one
    target for each sample, or for each token when the task is ``causal-lm``. Lengths, classes and token ids
    are ``i32``, the values of a regression ``f32``. Where the spec lets taps be equalized, the batch may also
    hold their equalizers.

    Raises:
        ConfigError: something is missing, superfluous or has another shape or format.

    """
    taps = len(spec.model.taps)
    expected = {*range(taps), LENGTHS, TARGETS}
    optional = {EQUALIZERS + tap for tap in range(taps) if spec.codec.equalize}
    for tensor in sorted(expected ^ (set(headers) - optional)):
        state = "missing" if tensor in expected else "superfluous"
        raise ConfigError(tensor_name(tensor), state, f"exactly {taps} taps, the targets and the lengths")
    tokens = samples if spec.tokens == "last" else headers[0].shape[0]
    for tap in range(taps):
        _check_tap(spec, headers[tap], tokens, tensor_name(tap))
    for tensor in optional & set(headers):
        _expect(headers[tensor], TensorHeader(Format.F16, 0, (spec.model.hidden_size,)), tensor_name(tensor))
    _expect(headers[LENGTHS], TensorHeader(Format.I32, 0, (samples,)), "lengths")
    targets = tokens if spec.task == "causal-lm" else samples
    plain = Format.F32 if spec.task == "regression" else Format.I32
    _expect(headers[TARGETS], TensorHeader(plain, 0, (targets,)), "targets")


def _check_tap(spec: SessionSpec, header: TensorHeader, tokens: int, name: str) -> None:
    formats = spec.codec.formats
    fmt = header.format if header.format in formats else Format.parse(spec.codec.format)
    _expect(
        header,
        TensorHeader(fmt, spec.codec.block if fmt.is_block else 0, (tokens, spec.model.hidden_size)),
        name,
    )
    if header.equalizer is not None and not spec.codec.equalize:
        raise ConfigError(name, "equalized", "a tensor that is not: codec.equalize is false")


def _expect(header: TensorHeader, wanted: TensorHeader, name: str) -> None:
    if header.shape != wanted.shape:
        raise ConfigError(name, list(header.shape), f"the shape {list(wanted.shape)}")
    if (header.format, header.block) != (wanted.format, wanted.block):
        seen = f"{header.format.name.lower()} with blocks of {header.block}"
        raise ConfigError(name, seen, f"{wanted.format.name.lower()} with blocks of {wanted.block}")


def _is_torch(array: object) -> bool:
    # A tensor can only exist once torch was imported, so this never imports it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def _as_torch(equalizer: Equalizer) -> Any:
    return _torch_backend().torch.from_numpy(equalizer.factors)


def _torch_backend() -> Any:
    # Loaded on first use: this module must import without torch.
    return cast(Any, importlib.import_module("mobillm.kernels.torch_backend"))
