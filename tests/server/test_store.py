"""A session's files: damaged checkpoints and descriptions."""

from __future__ import annotations

import logging
import os
import pathlib

import pytest

from mobillm.errors import StorageError
from mobillm.server.store import SessionStore
from tests.sessions import spec

NAME = bytes(range(16))


@pytest.fixture
def store(tmp_path: pathlib.Path) -> SessionStore:
    """Return a new session's files."""
    return SessionStore.create(tmp_path, NAME, "acme", spec())


def checkpoints(store: SessionStore) -> list[str]:
    """Return the names of the checkpoints, oldest first."""
    return sorted(name for name in os.listdir(store.directory) if name.startswith("checkpoint"))


def test_description(store: SessionStore, tmp_path: pathlib.Path) -> None:
    """A new session is described; it cannot be made twice."""
    expected = {"tenant": "acme", "spec": spec(), "last": None, "epoch": 0, "finished": None}
    assert store.description() == expected
    with pytest.raises(StorageError, match="cannot be made"):
        SessionStore.create(tmp_path, NAME, "acme", spec())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"tenant": "a", "spec": {}}',
        b"\xff",
        '{"tenant": 1, "last": null, "epoch": 0, "finished": null, "spec": %s}',
        '{"tenant": "a", "last": "x", "epoch": 0, "finished": null, "spec": %s}',
        '{"tenant": "a", "last": 1, "epoch": 0, "finished": {"steps": 1}, "spec": %s}',
        '{"tenant": "a", "last": 1, "finished": null, "spec": %s}',
        '{"tenant": "a", "last": 1, "epoch": -1, "finished": null, "spec": %s}',
        '{"tenant": "a", "last": 1, "epoch": true, "finished": null, "spec": %s}',
    ],
)
def test_damaged_description(store: SessionStore, content: str | bytes) -> None:
    """A description that is none is a storage error, whatever it is instead."""
    path = store.directory / "session.json"
    good = path.read_text().split('"spec": ')[1].split(', "last"')[0]
    good = good[: good.index('"last"')].rstrip().rstrip(",")
    data = content if isinstance(content, bytes) else content.replace("%s", good).encode()
    path.write_bytes(data)
    with pytest.raises(StorageError, match=r"session\.json cannot be read"):
        store.description()


def test_size_of_the_log(store: SessionStore) -> None:
    """It is known without opening the log."""
    assert store.log_size() == 0
    (store.directory / "activations.log").write_bytes(bytes(100))
    assert store.log_size() == 100


def test_the_newest_two_checkpoints_are_kept(store: SessionStore) -> None:
    """Older ones are deleted; the newest is loaded."""
    assert store.load_checkpoint() is None
    for steps in (5, 90, 100, 1000):
        store.save_checkpoint(steps, str(steps).encode())
    assert len(checkpoints(store)) == 2
    assert store.load_checkpoint() == b"1000"


def test_damaged_checkpoints(store: SessionStore, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged one is passed over; when all are damaged, nothing is guessed."""
    store.save_checkpoint(1, b"one")
    store.save_checkpoint(2, b"two")
    newest = store.directory / checkpoints(store)[-1]
    for damage in (b"", b"twO"):
        newest.write_bytes(damage)
        with caplog.at_level(logging.ERROR):
            assert store.load_checkpoint() == b"one"
        assert newest.name in caplog.text
    (store.directory / checkpoints(store)[0]).write_bytes(b"")
    with pytest.raises(StorageError, match="restore one from a backup"):
        store.load_checkpoint()
    newest.unlink()
    newest.mkdir()  # cannot be read at all
    with pytest.raises(StorageError):
        store.load_checkpoint()
