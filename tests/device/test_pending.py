"""What a device remembers of a result that it has not fetched."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from mobillm.device.pending import PENDING_FILE, Pending, check_trained
from mobillm.device.resume import SESSION_FILE
from mobillm.errors import DataError, ModelError
from mobillm.nn.saved import SideConfig
from mobillm.protocol import Finished
from tests.sessions import spec

PENDING = Pending(
    session=bytes(range(16)),
    batches=5,
    config=SideConfig(spec=spec(epochs=4), max_length=32, labels=("bad", "göod")),
    heldout=True,
)


def test_round_trip(tmp_path: pathlib.Path) -> None:
    """All that saving the result needs comes back; without the file the error says what to do."""
    place = tmp_path / "new" / "out"
    PENDING.save(place)
    assert Pending.load(place) == PENDING
    Pending.clear(place)
    Pending.clear(place)
    with pytest.raises(DataError, match="run 'mobillm finetune --detach' first"):
        Pending.load(place)
    (place / SESSION_FILE).write_text("{}")
    with pytest.raises(DataError, match="the same 'mobillm finetune' again goes on with it"):
        Pending.load(place)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session", "00"),
        ("session", 5),
        ("heldout", 1),
        ("batches", None),
        ("batches", True),
        ("config", None),
        ("config", {"format": 1}),
    ],
)
def test_damaged(tmp_path: pathlib.Path, name: str, value: object) -> None:
    """A field that cannot be right is refused with the file's name."""
    PENDING.save(tmp_path)
    path = tmp_path / PENDING_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(DataError, match=rf"{PENDING_FILE} cannot be read"):
        Pending.load(tmp_path)
    for content in ("", "[]", "[" * 100_000):
        path.write_text(content)
        with pytest.raises(DataError, match=rf"{PENDING_FILE} cannot be read"):
            Pending.load(tmp_path)


def test_another_session_by_now(tmp_path: pathlib.Path) -> None:
    """A result is not saved where a new run has begun, or where it was fetched already."""
    PENDING.save(tmp_path)
    PENDING.check(tmp_path)
    dataclasses.replace(PENDING, session=bytes(16)).save(tmp_path)
    with pytest.raises(DataError, match="waits for another session by now"):
        PENDING.check(tmp_path)
    Pending.clear(tmp_path)
    with pytest.raises(DataError, match="no result is to be fetched for"):
        PENDING.check(tmp_path)


def test_a_result_of_no_use(tmp_path: pathlib.Path) -> None:
    """Without a finite loss it is refused, and forgotten so that other options can be tried."""
    check_trained(Finished(steps=0, loss=None), tmp_path)
    check_trained(Finished(steps=3, loss=0.5), None)
    PENDING.save(tmp_path)
    (tmp_path / SESSION_FILE).write_text("{}")
    for place in (None, tmp_path):
        assert (tmp_path / PENDING_FILE).exists()
        with pytest.raises(ModelError, match="no step of the last epoch had a finite loss"):
            check_trained(Finished(steps=3, loss=None), place)
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    """The error names the directory."""
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="choose another --out"):
        PENDING.save(tmp_path / "out")
