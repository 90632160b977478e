"""Arrays of one batch as the packed tensors that leave the device, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec import PackedTensor, check_headers, pack, pack_integers
from ..errors import ConfigError
from ..formats import Format
from ..protocol import LENGTHS, TARGETS
from ..spec import IGNORED, SessionSpec
from .taps import TapPacker

__all__ = ["pack_batch", "pack_targets"]


def pack_batch(
    spec: SessionSpec,
    taps: Sequence[npt.NDArray[Any]],
    lengths: Sequence[int],
    targets: npt.ArrayLike,
    packer: TapPacker | None = None,
) -> dict[int, PackedTensor]:
    """Pack the tensors of one batch and check them against the spec; see :meth:`mobillm.Session.submit`.

    The packer is that of the session; None packs the taps as they are.

    """
    packer = packer or TapPacker(spec, None)
    tensors = {LENGTHS: pack_integers(list(lengths), "lengths"), TARGETS: pack_targets(spec, targets)}
    for index, tap in enumerate(taps):
        tensors[index] = packer.pack(index, tap)
    check_headers(spec, {tensor: packed.header for tensor, packed in tensors.items()}, len(lengths))
    tokens = tensors[0].header.shape[0]
    if min(lengths) < 1 or sum(lengths) != tokens:
        raise ConfigError("lengths", f"a sum of {sum(lengths)}", f"positive lengths with the sum {tokens}")
    return tensors


def pack_targets(spec: SessionSpec, targets: npt.ArrayLike) -> PackedTensor:
    """Pack the targets of one batch.

    Raises:
        ConfigError: a class or a token id is outside the range that the spec states, or a value does not
            fit a 32-bit float.
        QuantizationError: a value is not finite.

    """
    array = np.atleast_1d(np.asarray(targets))
    if array.dtype.kind not in "iuf":
        raise ConfigError("targets", str(array.dtype), "numbers")
    if spec.task == "regression":
        large = np.isfinite(array) & (np.abs(array) > np.finfo(np.float32).max)
        if large.any():
            raise ConfigError(
                "targets", float(array[large][0]), "values that fit a 32-bit float, up to 3.4e38"
            )
        return pack(array.astype(np.float32), Format.F32, 64, "targets")
    if array.dtype.kind == "f" and np.isfinite(array).all() and (array == np.rint(array)).all():
        array = array.astype(np.int64)  # whole numbers, as a table of targets for any task holds them
    packed = pack_integers(array, "targets")
    wrong = (array < 0) | (array >= spec.outputs)
    if spec.task == "causal-lm":
        wrong &= (array != IGNORED) | (spec.tokens == "loss")
    if wrong.any():
        first = int(array[wrong][0])
        raise ConfigError("targets", first, f"numbers from 0 to {spec.outputs - 1}")
    return packed
