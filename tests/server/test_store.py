"""A session's files: made once, deleted whole."""

from __future__ import annotations

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
    store.checkpoints.save(1, b"one")
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
