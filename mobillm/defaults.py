"""What suits each kind of side network where nothing else is asked for, see ``benchmarks/LOG.md``."""

from __future__ import annotations

from typing import NamedTuple

from .spec import OptimizerSpec

__all__ = ["DEFAULTS", "EPOCHS", "TAIL_DEFAULTS", "Defaults", "defaults_of", "epochs_of"]

# Passes over the data of each task. They cost a device nothing, and a few labelled texts need several.
EPOCHS = {"classification": 4, "regression": 4, "causal-lm": 1}


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


def epochs_of(task: str) -> int:
    """Return the passes over the data for a task; 1 for one that does not exist."""
    return EPOCHS.get(task, 1)
