"""The registry: which sessions, tenants, tokens and blobs a server has, in one SQLite file.

An operator may read it while the server runs (``sqlite3 registry.sqlite 'select * from sessions'``): it is
in write-ahead mode, so readers and the one writer do not wait for each other. Activation logs, checkpoints
and the content of blobs stay files of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import sqlite3
import time
from collections.abc import Iterator, Mapping
from typing import Self

from ..errors import ConfigError, DamageError, StorageError
from ..protocol import Finished
from ..spec import SessionSpec

__all__ = ["Registry", "SessionRecord"]

# Each script brings the file from the version that is its index to the next one; the file's version is
# its ``user_version``. Scripts are never changed after a release, only added.
MIGRATIONS = (
    """
    CREATE TABLE tenants (
        name TEXT PRIMARY KEY,
        created REAL NOT NULL
    ) STRICT;
    CREATE TABLE tokens (
        hash TEXT PRIMARY KEY,
        tenant TEXT NOT NULL REFERENCES tenants (name),
        created REAL NOT NULL,
        revoked REAL
    ) STRICT;
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY,
        tenant TEXT NOT NULL REFERENCES tenants (name),
        spec TEXT NOT NULL,
        created REAL NOT NULL,
        changed REAL NOT NULL,
        epoch INTEGER NOT NULL,
        last INTEGER,
        ended REAL,
        cancelled INTEGER NOT NULL,
        steps INTEGER,
        loss REAL
    ) STRICT;
    CREATE TABLE blobs (
        digest TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        created REAL NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE sessions ADD COLUMN evaluation TEXT;
    ALTER TABLE sessions ADD COLUMN delivered REAL;
    """,
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What the registry knows of a session.

    Attributes:
        id: its 16 bytes.
        tenant: whose it is.
        spec: what it trains.
        created: when it was opened, seconds since 1970.
        epoch: number of its last attachment.
        last: number of its last batch, once the device has said so.
        finished: set when all epochs have been trained.
        cancelled: whether the operator has ended it.
        ended: when it finished or was cancelled, seconds since 1970; None before that.
        evaluation: figures of the held-out batches with the final weights, ``count`` among them; None
            before the end of training.
        delivered: when the device had the result and its log was deleted, seconds since 1970; None before.

    """

    id: bytes
    tenant: str
    spec: SessionSpec
    created: float = dataclasses.field(default_factory=time.time)
    epoch: int = 0
    last: int | None = None
    finished: Finished | None = None
    cancelled: bool = False
    ended: float | None = None
    evaluation: dict[str, float] | None = None
    delivered: float | None = None


class Registry:
    """The registry of one data directory; for one thread at a time.

    Args:
        path: the file; made, readable by its owner only, if there is none.

    Raises:
        ConfigError: the file was made by a newer version.
        StorageError: it is damaged, or cannot be read or written.

    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        with self._explained():
            # sqlite3 would make it readable by others; its journal takes over the permissions.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; can be called more than once."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # a commit is on the disk when it returns
        self._db.execute("PRAGMA foreign_keys = ON")
        if self._db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("its pages are inconsistent")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise ConfigError(
                str(self.path), f"of version {version}", f"at most {len(MIGRATIONS)}; install a newer mobillm"
            )
        for number in range(version, len(MIGRATIONS)):
            # One transaction for the script and its number: a crash leaves the old version or the new one.
            script = f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
            self._db.executescript(script)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as exc:
            with contextlib.suppress(sqlite3.Error):
                self._db.rollback()
            raise StorageError(f"{self.path} cannot be used: {exc}") from exc
        except sqlite3.DatabaseError as exc:
            raise StorageError(f"{self.path} is damaged ({exc}); restore it from a backup") from exc
        except (PermissionError, IsADirectoryError, FileNotFoundError) as exc:
            raise StorageError(f"{self.path} cannot be opened: {exc.strerror}") from exc

    # Tenants and tokens.

    def note_tokens(self, keys: Mapping[str, bytes]) -> None:
        """Note which tenants may log in from now on; tokens that are not among these count as revoked.

        Only the SHA-256 of a key is stored: it tells tokens apart and cannot be used to log in.

        Args:
            keys: key of each tenant, from :func:`mobillm.protocol.derive_key`.

        Raises:
            StorageError: the disk is full or broken.

        """
        now = time.time()
        hashes = {hashlib.sha256(key).hexdigest(): tenant for tenant, key in keys.items()}
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO tenants VALUES (?, ?)", ((t, now) for t in keys))
            self._db.executemany(
                "INSERT INTO tokens VALUES (?, ?, ?, NULL) ON CONFLICT (hash) DO UPDATE SET revoked = NULL",
                ((digest, tenant, now) for digest, tenant in hashes.items()),
            )
            for (digest,) in self._db.execute("SELECT hash FROM tokens WHERE revoked IS NULL").fetchall():
                if digest not in hashes:
                    self._db.execute("UPDATE tokens SET revoked = ? WHERE hash = ?", (now, digest))

    # Sessions.

    def save_session(self, record: SessionRecord) -> None:
        """Insert a session, or replace what is known of it; it is on the disk then.

        Raises:
            StorageError: the disk is full or broken.

        """
        steps, loss = None, None
        if record.finished is not None:
            steps, loss = record.finished.steps, record.finished.loss
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO tenants VALUES (?, ?)", (record.tenant, record.created))
            self._db.execute(
                "INSERT OR REPLACE INTO sessions (id, tenant, spec, created, changed, epoch, last, ended,"
                " cancelled, steps, loss, evaluation, delivered)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id.hex(),
                    record.tenant,
                    json.dumps(record.spec.to_map()),
                    record.created,
                    time.time(),
                    record.epoch,
                    record.last,
                    record.ended,
                    record.cancelled,
                    steps,
                    loss,
                    None if record.evaluation is None else json.dumps(record.evaluation),
                    record.delivered,
                ),
            )

    def session_ids(self) -> list[bytes]:
        """Return the ids of all sessions, oldest first."""
        with self._explained():
            rows = self._db.execute("SELECT id FROM sessions ORDER BY created, id").fetchall()
        return [bytes.fromhex(name) for (name,) in rows]

    def load_session(self, session: bytes) -> SessionRecord:
        """Return what is known of a session.

        Raises:
            DamageError: its row is damaged.
            StorageError: it is not there.

        """
        with self._explained():
            row = self._db.execute(
                "SELECT tenant, spec, created, epoch, last, ended, cancelled, steps, loss,"
                " evaluation, delivered"
                " FROM sessions WHERE id = ?",
                (session.hex(),),
            ).fetchone()
        if row is None:
            raise StorageError(f"{self.path} has no session {session.hex()}")
        tenant, spec, created, epoch, last, ended, cancelled, steps, loss, evaluation, delivered = row
        try:
            return SessionRecord(
                id=session,
                tenant=tenant,
                spec=SessionSpec.from_map(json.loads(spec)),
                created=created,
                epoch=epoch,
                last=last,
                finished=None if steps is None else Finished(steps=steps, loss=loss),
                cancelled=bool(cancelled),
                ended=ended,
                evaluation=None if evaluation is None else json.loads(evaluation),
                delivered=delivered,
            )
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise DamageError(f"{self.path}: session {session.hex()} cannot be read: {exc}") from exc

    def delete_session(self, session: bytes) -> None:
        """Forget a session.

        Raises:
            StorageError: the disk is full or broken.

        """
        with self._transaction():
            self._db.execute("DELETE FROM sessions WHERE id = ?", (session.hex(),))

    # Blobs.

    def note_blobs(self, sizes: Mapping[str, int]) -> None:
        """Make the table of blobs what the directory of blobs is.

        Args:
            sizes: bytes of each blob, by its SHA-256 in hex.

        Raises:
            StorageError: the disk is full or broken.

        """
        now = time.time()
        with self._transaction():
            known = {digest for (digest,) in self._db.execute("SELECT digest FROM blobs")}
            gone = [(digest,) for digest in known - sizes.keys()]
            self._db.executemany("DELETE FROM blobs WHERE digest = ?", gone)
            self._db.executemany(
                "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?)",
                [(digest, size, now) for digest, size in sizes.items() if digest not in known],
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite has rolled it back itself then
                    self._db.execute("ROLLBACK")
                raise
