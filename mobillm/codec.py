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
from .protocol import LENGTHS, TARGETS, TensorHeader, tensor_name
from .spec import SessionSpec

__all__ = ["PackedTensor", "check_headers", "pack", "pack_integers", "unpack", "unpack_torch"]

Buffer = bytes | bytearray | memoryview


@dataclasses.dataclass(frozen=True, slots=True)
class PackedTensor:
    """A header and exactly the bytes it announces.

    Attributes:
        header: format, block and shape.
        payload: ``header.size`` bytes; must not change any more.

    """

    header: TensorHeader
    payload: memoryview


def pack(array: Any, fmt: Format, block: int, name: str) -> PackedTensor:
    """Quantize and pack activations or float targets.

    Args:
        array: numpy array or torch tensor of floats, of rank 1 or 2.
        fmt: packed format.
        block: values per scale, for formats with blocks.
        name: what the tensor is, for errors.

    Raises:
        QuantizationError: a value is not finite, or too large for the format.
        ConfigError: the array is empty, a single number, or of a type that the format does not take.

    """
    if len(array.shape) == 0 or math.prod(array.shape) == 0:
        raise ConfigError(name, list(array.shape), "a tensor of rank 1 or more with at least one value")
    try:
        if _is_torch(array):
            packed = _torch_backend().quantize(array, fmt, block).cpu().numpy()
        else:
            packed = kernels.quantize(np.asarray(array), fmt, block)
    except QuantizationError as exc:
        raise QuantizationError(exc.reason, exc.position, exc.value, name) from None
    except ConfigError as exc:
        raise ConfigError(f"{name}: {exc.field}", exc.value, exc.expected) from None
    header = TensorHeader(fmt, block if fmt.is_block else 0, tuple(array.shape))
    return PackedTensor(header, packed.data.cast("B"))


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


def unpack(header: TensorHeader, payload: Buffer) -> npt.NDArray[Any]:
    """Return the array of a packed tensor: float32, or int32 for integers.

    Raises:
        ConfigError: the payload does not have the header's size.

    """
    return kernels.dequantize(payload, header.format, header.shape, header.block or 64)


def unpack_torch(header: TensorHeader, payload: Buffer, device: Any = "cpu") -> Any:
    """Return the torch tensor of a packed tensor, unpacked on ``device``.

    The packed bytes travel to the device, not the floats.
    """
    backend = _torch_backend()
    return backend.dequantize(payload, header.format, header.shape, header.block or 64, device=device)


def check_headers(spec: SessionSpec, headers: Mapping[int, TensorHeader], samples: int) -> None:
    """Check that a batch's tensors are those that the spec asks for.

    Every tap must be there with the model's width in the spec's format, all taps with the same number of
    tokens; one length for each sample; one target for each sample, or for each token when the task is
    ``causal-lm``. Lengths, classes and token ids are ``i32``, the values of a regression ``f32``. One
    format per session lets batches be cut up and joined again without unpacking them.

    Raises:
        ConfigError: something is missing, superfluous or has another shape or format.

    """
    taps = len(spec.model.taps)
    expected = {*range(taps), LENGTHS, TARGETS}
    for tensor in sorted(expected ^ set(headers)):
        state = "is missing" if tensor in expected else "was not announced by the spec"
        raise ConfigError(tensor_name(tensor), state, f"exactly {taps} taps, the targets and the lengths")
    tokens = headers[0].shape[0]
    fmt = Format.parse(spec.codec.format)
    block = spec.codec.block if fmt.is_block else 0
    for tap in range(taps):
        wanted = TensorHeader(fmt, block, (tokens, spec.model.hidden_size))
        _expect(headers[tap], wanted, tensor_name(tap))
    _expect(headers[LENGTHS], TensorHeader(Format.I32, 0, (samples,)), "lengths")
    targets = tokens if spec.task == "causal-lm" else samples
    plain = Format.F32 if spec.task == "regression" else Format.I32
    _expect(headers[TARGETS], TensorHeader(plain, 0, (targets,)), "targets")


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


def _torch_backend() -> Any:
    # Loaded on first use: this module must import without torch.
    return cast(Any, importlib.import_module("mobillm.kernels.torch_backend"))
