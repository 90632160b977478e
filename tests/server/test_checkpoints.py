"""Checkpoints: the last two are kept, damaged ones passed over."""

from __future__ import annotations

import logging
import os
import pathlib

import pytest

from mobillm.errors import StorageError
from mobillm.server.checkpoints import Checkpoints


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Checkpoints:
    """Return those of a session that has none."""
    return Checkpoints(tmp_path)


def names(store: Checkpoints) -> list[str]:
    """Return the names of the checkpoints, oldest first."""
    return sorted(os.listdir(store.directory))


def test_the_newest_two_checkpoints_are_kept(store: Checkpoints) -> None:
    """Older ones are deleted; the newest is loaded."""
    assert store.load() is None
    for steps in (5, 90, 100, 1000):
        store.save(steps, str(steps).encode())
    assert len(names(store)) == 2
    assert store.load() == b"1000"


def test_several_after_as_many_steps(store: Checkpoints) -> None:
    """Without a step between them the one that was written last counts; one that is the same is no other."""
    for round_ in range(12):
        store.save(7, str(round_).encode())
        assert store.load() == str(round_).encode()
    kept = names(store)
    store.save(7, b"11")
    assert names(store) == kept
    assert len(kept) == 2
    store.save(8, b"eight")
    assert store.load() == b"eight"


def test_damaged_checkpoints(store: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged one is passed over; when all are damaged, nothing is guessed."""
    store.save(1, b"one")
    store.save(2, b"two")
    newest = store.directory / names(store)[-1]
    for damage in (b"", b"twO"):
        newest.write_bytes(damage)
        with caplog.at_level(logging.ERROR):
            assert store.load() == b"one"
        assert newest.name in caplog.text
    (store.directory / names(store)[0]).write_bytes(b"")
    with pytest.raises(StorageError, match="restore one from a backup"):
        store.load()
    newest.unlink()
    newest.mkdir()  # cannot be read at all
    with pytest.raises(StorageError):
        store.load()
