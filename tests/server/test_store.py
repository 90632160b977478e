"""A session's files: damaged checkpoints and descriptions."""

from __future__ import annotations

import logging
import os
import pathlib

import pytest

from mobillm.errors import StorageError
from mobillm.server.registry import Registry, SessionRecord
from mobillm.server.store import SessionStore
from tests.sessions import new_store, spec


@pytest.fixture
def store(tmp_path: pathlib.Path) -> SessionStore:
    """Return a new session's files."""
    return new_store(tmp_path, spec())


def checkpoints(store: SessionStore) -> list[str]:
    """Return the names of the checkpoints, oldest first."""
    return sorted(name for name in os.listdir(store.directory) if name.startswith("checkpoint"))


def test_made_once(registry: Registry, tmp_path: pathlib.Path) -> None:
    """A new session has its record; it cannot be made twice, and a failed one leaves nothing."""
    record = SessionRecord(id=bytes(16), tenant="acme", spec=spec())
    assert SessionStore.create(tmp_path, registry, record).record() == record
    with pytest.raises(StorageError, match="cannot be made"):
        SessionStore.create(tmp_path, registry, record)
    registry.close()
    with pytest.raises(StorageError):
        SessionStore.create(tmp_path / "other", registry, record)
    assert list((tmp_path / "other").iterdir()) == []


def test_deletion(registry: Registry, tmp_path: pathlib.Path) -> None:
    """The record and all files go; what cannot be deleted is named."""
    record = SessionRecord(id=bytes(16), tenant="acme", spec=spec())
    store = SessionStore.create(tmp_path, registry, record)
    store.save_checkpoint(1, b"one")
    store.delete()
    assert not store.directory.exists()
    assert registry.session_ids() == []
    with pytest.raises(StorageError, match=f"{bytes(16).hex()} cannot be deleted"):
        store.delete()


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
