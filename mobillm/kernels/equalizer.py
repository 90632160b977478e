"""Channel equalization: one factor per channel that evens out how large the channels of a tap are.

A few channels of a language model's hidden states are tens of times larger than the rest, and spoil the
scale of every block that they are in. Dividing each channel by the root of its typical magnitude before
coding, and multiplying afterwards, halves the error at 4 bits. The vector is a property of the layer: it
is calibrated once, on a few hundred tokens, and serves all later ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..formats import Format

__all__ = ["SMALLEST_MEDIAN", "calibrate", "check_equalizer", "check_sample", "reciprocal"]

SMALLEST_MEDIAN = np.float32(1e-3)


def calibrate(x: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Choose the equalizer of a tap.

    Channel ``d`` gets fp16(sqrt(max(median over tokens of abs(x[:, d]), 0.001))), where the median of an
    even number of values is the lower of the two in the middle.

    Args:
        x: float32 or float16 hidden states [..., width] of at least one token.

    Returns:
        float16 [width], every factor positive.

    Raises:
        ConfigError: the type is another one, there is no value, or a channel's factor is above 65504, as
            that of a median that is not finite or above 4.29e9.

    """
    check_sample(x.shape, x.dtype)
    size = np.abs(x.reshape(-1, x.shape[-1]).astype(np.float32))
    middle = (len(size) - 1) // 2
    median = np.partition(size, middle, axis=0)[middle]
    with np.errstate(over="ignore"):
        factors: npt.NDArray[np.float16] = np.sqrt(np.maximum(median, SMALLEST_MEDIAN)).astype(np.float16)
    check_equalizer(factors, len(factors))
    return factors


def check_sample(shape: tuple[int, ...], dtype: object) -> None:
    """Refuse a sample that nothing can be calibrated on.

    Args:
        shape: its axes.
        dtype: its type, of numpy or torch.

    Raises:
        ConfigError: the type is none that the kernels take, there is no axis, or one of length 0.

    """
    library, _, name = str(dtype).rpartition(".")
    accepted = ("float32", "float16", "bfloat16") if library == "torch" else ("float32", "float16")
    if name not in accepted:
        raise ConfigError("x.dtype", name, f"{' or '.join(accepted)}; convert the values first")
    if not shape or 0 in shape:
        raise ConfigError("x", list(shape), "hidden states [..., width] of at least one token")


def check_equalizer(factors: npt.NDArray[Any], width: int, fmt: Format = Format.ASYM4) -> None:
    """Refuse an equalizer that does not fit.

    Args:
        factors: the equalizer.
        width: length of the tensor's last axis.
        fmt: the packed format.

    Raises:
        ConfigError: the format has no blocks, or the equalizer is not ``width`` positive float16 numbers.

    """
    if not fmt.is_block:
        raise ConfigError("equalizer", fmt.name.lower(), "a block format; the others need no equalizer")
    if factors.dtype != np.float16 or factors.shape != (width,):
        seen = f"{factors.dtype} {list(factors.shape)}"
        raise ConfigError("equalizer", seen, f"float16 [{width}], one factor per channel")
    if not (np.isfinite(factors) & (factors > 0)).all():
        channel = int(np.argmin(np.isfinite(factors) & (factors > 0)))
        raise ConfigError(
            f"equalizer[{channel}]",
            float(factors[channel]),
            "a positive number; calibrate on finite values below 4.29e9",
        )


def reciprocal(factors: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Return what channels are multiplied by before coding: fp32 reciprocals, each rounded once."""
    return np.float32(1) / factors.astype(np.float32)
