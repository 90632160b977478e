"""What suits each kind of side network where nothing else is asked for, see ``benchmarks/LOG.md``."""

from __future__ import annotations

from typing import NamedTuple

from .spec import OptimizerSpec

__all__ = ["DEFAULTS", "TAIL_DEFAULTS", "Defaults", "defaults_of"]


class Defaults(NamedTuple):
    """Settings of a run.

    Attributes:
        taps: layers whose output is sent, see :func:`mobillm.nn.taps.parse_taps`.
        batch_size: samples of an optimizer step.
        optimizer: of the server.

    """

    taps: str
    batch_size: int
    optimizer: OptimizerSpec


DEFAULTS = Defaults("every:4", 32, OptimizerSpec())
# LoRA learns from more and larger steps than a ladder.
TAIL_DEFAULTS = Defaults("1/3", 16, OptimizerSpec(lr=1e-3))


def defaults_of(kind: str) -> Defaults:
    """Return the settings for a kind of side network."""
    return TAIL_DEFAULTS if kind == "tail" else DEFAULTS
