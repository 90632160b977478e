"""Which layers are tapped: the ``taps`` option as layer numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..errors import ConfigError

__all__ = ["parse_taps"]

_DIGITS = 9
_EXPECTED = "'all', 'every:N' with N of at least 1, 'N/M' below 1, or ascending layer numbers as in '6,10,30'"


def parse_taps(taps: str | Sequence[int], layers: int) -> tuple[int, ...]:
    """Turn the ``taps`` option into layer numbers.

    Tap ``k`` is the output of layer ``k``, counted from 1; tap 0 is the embedding's output, which is
    the input of layer 1.

    Args:
        taps: ``every:N`` (layers N, 2N, ... and always the last one), ``all`` (every layer), ``N/M``
            (one, after that part of the layers), a comma list of layer numbers, or the numbers
            themselves.
        layers: number of layers of the backbone.

    Returns:
        the layer numbers, strictly ascending.

    Raises:
        ConfigError: the option cannot be read, the numbers are empty or not strictly ascending, or one
            lies outside the backbone.

    """
    if isinstance(taps, str):
        text = taps.strip()
        if text == "all":
            return tuple(range(1, layers + 1))
        if "/" in text:
            return _part(text, layers)
        if text.startswith("every:"):
            return _every(text, layers)
        numbers = tuple(_number(part.strip(), taps) for part in text.split(","))
    else:
        numbers = tuple(taps)
    if not numbers or any(a >= b for a, b in itertools.pairwise(numbers)):
        raise ConfigError("taps", taps, _EXPECTED)
    if numbers[0] < 0 or numbers[-1] > layers:
        expected = f"layer numbers from 0 (the embedding's output) to {layers}, the number of layers"
        raise ConfigError("taps", taps, expected)
    return numbers


def _every(text: str, layers: int) -> tuple[int, ...]:
    step = _number(text.removeprefix("every:").strip(), text)
    if step < 1:
        raise ConfigError("taps", text, _EXPECTED)
    numbers = list(range(step, layers + 1, step))
    if not numbers or numbers[-1] != layers:
        numbers.append(layers)
    return tuple(numbers)


def _part(text: str, layers: int) -> tuple[int, ...]:
    part, whole = (_number(piece.strip(), text) for piece in text.split("/", 1))
    if not 0 < part < whole:
        raise ConfigError("taps", text, _EXPECTED)
    return (max(1, layers * part // whole),)


def _number(part: str, taps: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) <= _DIGITS):
        raise ConfigError("taps", taps, _EXPECTED)
    return int(part)
