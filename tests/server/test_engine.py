"""What passes between a session and its worker can be sent to another process, and is not changed there."""

from __future__ import annotations

import dataclasses

import pytest

from mobillm.server.engine import Saved, Status, Step
from mobillm.server.progress import Progress


@pytest.mark.parametrize(
    "value", [Step(0.5, 1, 2), Saved(3, 0.5), Status(4, 0, 0.1, Progress(applied=4))], ids=repr
)
def test_values_are_frozen(value: Step | Saved | Status) -> None:
    """They are plain values: equal when their fields are, and nobody changes one that somebody else has."""
    assert dataclasses.replace(value) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, 9)
