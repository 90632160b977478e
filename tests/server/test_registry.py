"""The registry: records that survive, migrations, and files that are none."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import sqlite3

import pytest

from mobillm.errors import ConfigError, StorageError
from mobillm.protocol import Finished
from mobillm.server import registry as module
from mobillm.server.registry import MIGRATIONS, Registry, SessionRecord
from tests.sessions import KEYS, spec

RECORD = SessionRecord(id=bytes(range(16)), tenant="acme", spec=spec(epochs=3), created=1.5)


def query(path: pathlib.Path, text: str) -> list[tuple[object, ...]]:
    """Ask as an operator would, with SQLite alone."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(text).fetchall()


def test_records_survive(tmp_path: pathlib.Path) -> None:
    """What was saved last is there after a restart, and an operator can read it while the server runs."""
    path = tmp_path / "registry.sqlite"
    done = dataclasses.replace(
        RECORD, epoch=2, last=7, finished=Finished(steps=21, loss=0.25), ended=9.0, cancelled=True
    )
    with Registry(path) as registry:
        registry.save_session(RECORD)
        assert registry.load_session(RECORD.id) == RECORD
        registry.save_session(done)
        assert query(path, "SELECT tenant, steps, loss, last FROM sessions") == [("acme", 21, 0.25, 7)]
    assert path.stat().st_mode & 0o777 == 0o600
    with Registry(path) as registry:
        assert registry.load_session(RECORD.id) == done
        registry.save_session(dataclasses.replace(RECORD, id=bytes(16), created=0.5))
        assert registry.session_ids() == [bytes(16), RECORD.id]
        registry.delete_session(RECORD.id)
        with pytest.raises(StorageError, match=f"has no session {RECORD.id.hex()}"):
            registry.load_session(RECORD.id)


def test_tokens_are_hashed_and_revoked(tmp_path: pathlib.Path, registry: Registry) -> None:
    """Neither secret nor key is in the file; a token that is gone is marked, and may come back."""
    registry.note_tokens(KEYS)
    registry.note_tokens({"default": KEYS["default"]})
    rows = query(registry.path, "SELECT tenant, revoked IS NULL FROM tokens ORDER BY tenant")
    assert rows == [("default", 1), ("other", 0)]
    content = b"".join(path.read_bytes() for path in registry.path.parent.iterdir())
    assert hashlib.sha256(KEYS["other"]).hexdigest().encode() in content
    for key in KEYS.values():
        assert key not in content
        assert key.hex().encode() not in content
    registry.note_tokens(KEYS)
    assert query(registry.path, "SELECT count(*) FROM tokens WHERE revoked IS NULL") == [(2,)]


def test_blobs_follow_the_directory(registry: Registry) -> None:
    """The table is what was found last; what stays keeps its time."""
    registry.note_blobs({"aa": 1, "bb": 2})
    before = query(registry.path, "SELECT * FROM blobs WHERE digest = 'bb'")
    registry.note_blobs({"bb": 2, "cc": 3})
    assert query(registry.path, "SELECT digest, size FROM blobs ORDER BY digest") == [("bb", 2), ("cc", 3)]
    assert query(registry.path, "SELECT * FROM blobs WHERE digest = 'bb'") == before


def test_migrations(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of an older version is brought up once; one of a newer version is refused."""
    path = tmp_path / "registry.sqlite"
    with Registry(path) as registry:
        registry.save_session(RECORD)
    more = (*MIGRATIONS, "CREATE TABLE more (x INTEGER) STRICT;")
    monkeypatch.setattr(module, "MIGRATIONS", more)
    for _ in range(2):
        with Registry(path) as registry:
            assert registry.load_session(RECORD.id) == RECORD
    assert query(path, "PRAGMA user_version") == [(len(more),)]
    monkeypatch.setattr(module, "MIGRATIONS", MIGRATIONS)
    with pytest.raises(ConfigError, match="install a newer mobillm"):
        Registry(path)


def test_a_migration_is_whole_or_not_there(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that fails half way leaves the version before it."""
    path = tmp_path / "registry.sqlite"
    Registry(path).close()
    monkeypatch.setattr(module, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE more (x); CREATE TABLE more (x);"))
    with pytest.raises(StorageError, match="table more already exists"):
        Registry(path)
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
    assert query(path, "SELECT name FROM sqlite_master WHERE name = 'more'") == []


@pytest.mark.parametrize(
    "content", [b"no database at all, whatever it is called" * 9, b"SQLite format 3\0" * 99]
)
def test_damaged_file(tmp_path: pathlib.Path, content: bytes, no_fd_leak: None) -> None:
    """A file that is no registry is named, and left as it is."""
    path = tmp_path / "registry.sqlite"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"registry\.sqlite is damaged"):
        Registry(path)
    assert path.read_bytes() == content


def test_damaged_row(registry: Registry) -> None:
    """A row with something else than a spec is a storage error that names the session."""
    registry.save_session(RECORD)
    for text in ("", "[]", "{}", '{"task": 1}'):
        with contextlib.closing(sqlite3.connect(registry.path)) as db, db:
            db.execute("UPDATE sessions SET spec = ?", (text,))
        with pytest.raises(StorageError, match=f"session {RECORD.id.hex()} cannot be read"):
            registry.load_session(RECORD.id)


def test_disk_full(registry: Registry) -> None:
    """A disk without room is a storage error; what was there stays, and it works again with room."""
    registry.save_session(RECORD)
    registry._db.execute("PRAGMA max_page_count = 1")
    others = [dataclasses.replace(RECORD, id=number.to_bytes(16, "big")) for number in range(100)]
    with pytest.raises(StorageError, match="full"):
        list(map(registry.save_session, others))
    registry._db.execute("PRAGMA max_page_count = 1000000")
    registry.save_session(dataclasses.replace(RECORD, epoch=5))
    assert registry.load_session(RECORD.id).epoch == 5


def test_no_permission(tmp_path: pathlib.Path) -> None:
    """A path that cannot be opened is named."""
    (tmp_path / "registry.sqlite").mkdir()
    with pytest.raises(StorageError, match=r"registry\.sqlite cannot be opened"):
        Registry(tmp_path / "registry.sqlite")
