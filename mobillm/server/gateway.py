"""Connections to sessions: who may open what, and which sessions there are."""

from __future__ import annotations

import asyncio
import logging
import os
import pathlib
from collections.abc import Mapping

from ..errors import ConfigError, ConnectionClosed, EngineError, ErrorCode, MobiLLMError, StorageError
from ..options import Limits
from ..protocol import CAPABILITY, HEADER_SIZE, Bye, Detach, Open, Opened, Phase
from ..spec import SessionSpec
from ..transport import Connection
from .attachment import Attachment
from .blobs import BlobStore
from .engine import Engine
from .engine_local import LocalEngine
from .lock import DirectoryLock
from .memory import Memory, check_weights
from .meter import Meter
from .pace import Pace
from .parking import Parking, cancelled
from .quota import Quota
from .refusal import CANCELLED, NOWHERE, plain, plain_spec, refusal, storage
from .registry import Registry, SessionRecord
from .session import Session
from .store import SessionStore
from .trainer import Trainer, check_size
from .workers import Workers

__all__ = ["Gateway"]

logger = logging.getLogger("mobillm.server")

BEGIN = 10.0  # seconds for which a server that starts waits for its sessions to go on
RETRY = 30.0  # seconds between two attempts to start a session that the engine has no room for


class Gateway:
    """All sessions of a server, and the handler of its connections.

    Args:
        directory: where everything is kept.
        limits: the server's limits.
        keys: key of each tenant that may log in; the registry notes their hashes.
        keep: whether the activation log of a finished session stays when the device has the result.
        device: torch device to train on; not used with an engine.
        engine: trains the sessions; None does so in the server's own training thread. Closed at the end.
        group: most sessions whose steps are taken together; not used with an engine.
        meter: counts what happens.
        away: seconds after which a session that waits for its device is parked; None: never.

    Attributes:
        sessions: all of them, by id.
        unreadable: why a session that the registry lists cannot be read from it, by id.
        connections: how many are logged in now.
        workers: the server's threads.
        engine: trains the sessions.

    Raises:
        ConfigError: another server uses the directory.
        StorageError: the registry is damaged.
        OSError: the directory cannot be used.

    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        limits: Limits,
        keys: Mapping[str, bytes] | None = None,
        keep: bool = False,
        device: str = "cpu",
        engine: Engine | None = None,
        group: int = 1,
        meter: Meter | None = None,
        away: float | None = None,
    ) -> None:
        self.limits = limits
        self._keep = keep
        self._meter = meter or Meter()
        self.connections = 0
        self.sessions: dict[bytes, Session] = {}
        self.unreadable: dict[bytes, str] = {}
        self._loading = asyncio.Lock()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if directory.stat().st_mode & 0o022:
            logger.warning("! %s can be written by others; run: chmod go-w %s", directory, directory)
        self._lock = DirectoryLock(directory)
        try:
            self._directory = directory / "sessions"
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._registry = Registry(directory / "registry.sqlite")
            try:
                self._registry.note_tokens(keys or {})
                self._blobs = BlobStore(directory / "blobs", self._registry)
            except BaseException:
                self._registry.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        self.workers = Workers(group)
        self.engine = engine or LocalEngine(self.workers, device)
        self._attachments: dict[bytes, Attachment] = {}
        self._parking = Parking(self.sessions, self.is_attached, away)
        self._stalling: dict[bytes, asyncio.Task[None]] = {}  # that wait for room in the engine
        self._quota = Quota(limits, self._attachments)
        self._memory = Memory(limits.memory, limits.frame + HEADER_SIZE)
        self._pace = Pace(limits.steps)

    async def restore(self) -> None:
        """Load all sessions from the disk and go on training those that are complete but not finished."""
        self._parking.start()
        known = await self.workers.write(self._registry.session_ids)
        begun: list[asyncio.Task[None]] = []
        for session_id in known:
            try:
                session = await self.workers.write(self._load, session_id)
                self._add(session)
                if session.finished is not None:
                    self._check_blobs(session)
                if session.failed:
                    logger.error("! session %s is left alone: %s", session.id.hex(), session.failure)
                elif session.last is not None and not session.ended:
                    begun.append(self._begin(session))
            except (MobiLLMError, ValueError, OSError) as exc:
                logger.error("! session %s is left alone: %s", session_id.hex(), exc)
                self.unreadable[session_id] = str(exc)
        if begun:
            await asyncio.wait(begun, timeout=BEGIN)
        names = {session_id.hex() for session_id in known}
        for path in await self.workers.write(lambda: sorted(self._directory.iterdir())):
            if path.name not in names:
                logger.error("! %s is left alone: the registry has no such session", path)

    def _check_blobs(self, session: Session) -> None:
        """Have a finished session, which nothing is asked of yet, say that it lacks a blob."""
        try:
            for digest in session.spec.blobs:
                self._blobs.check(bytes.fromhex(digest))
        except StorageError as exc:
            session.failure = str(exc)

    def _begin(self, session: Session) -> asyncio.Task[None]:
        """Start a session that needs no device; say it if that fails."""

        def begun(task: asyncio.Task[None]) -> None:
            exc = None if task.cancelled() else task.exception()
            if exc is not None and not isinstance(exc, EngineError):
                logger.error("! session %s is left alone: %s", session.id.hex(), exc)

        task = session.begin(self._blobs)
        task.add_done_callback(begun)
        return task

    def _stalled(self, session: Session) -> None:
        if session.id in self._stalling:
            return
        task = asyncio.get_running_loop().create_task(self._retry(session))
        self._stalling[session.id] = task
        task.add_done_callback(lambda _: self._stalling.pop(session.id, None))

    async def _retry(self, session: Session) -> None:
        """Start a session again until there is room for it; one that waits for its device is left to that."""
        while True:
            await asyncio.sleep(RETRY)
            running = session.training is not None and not session.failed
            if running or session.ended or session.last is None:
                return
            if session.id in self._attachments:
                continue
            async with session.attaching:
                await session.recover()
                task = self._begin(session)
            await asyncio.wait([task])
            if not isinstance(task.exception(), EngineError):
                return

    def _add(self, session: Session) -> None:
        self.sessions[session.id] = session
        self._quota.add(session)
        self._parking.watch(session)
        session.on_finished = lambda: self._parking.finished(session)
        session.on_stalled = lambda: self._stalled(session)

    def _load(self, session_id: bytes) -> Session:
        return self._session(SessionStore(self._directory / session_id.hex(), self._registry, session_id))

    def _session(self, store: SessionStore) -> Session:
        return Session(store, self.workers, self.engine, self._meter, self._pace)

    async def _load_again(self, session_id: bytes) -> None:
        """Load a session if it could not be read before: the operator may have mended the registry.

        Raises:
            StorageError: it still cannot be read.

        """
        async with self._loading:
            if session_id in self.unreadable:
                self._add(await self.workers.write(self._load, session_id))
                del self.unreadable[session_id]

    @property
    def attached(self) -> int:
        """How many sessions have a device."""
        return len(self._attachments)

    @property
    def claimed(self) -> int:
        """Packed bytes of all sessions that wait for training, with the credit that devices have not used."""
        return self._memory.total

    def is_attached(self, session: Session) -> bool:
        """Tell whether a device is attached to a session."""
        return session.id in self._attachments

    async def delete(self, session: Session) -> None:
        """Cancel a session unless it has ended, and delete all of it.

        Raises:
            StorageError: the disk is full or broken.

        """
        del self.sessions[session.id]
        self._quota.remove(session)
        await cancelled(self._stalling.get(session.id))
        await self._parking.interrupt(session.id)
        await session.cancel()
        self._memory.leave(session.id, 0)
        await self.workers.write(session.store.delete)

    async def forget(self, session_id: bytes) -> None:
        """Delete what there is of a session that cannot be read.

        Raises:
            StorageError: the disk is full or broken.

        """
        async with self._loading:
            if self.unreadable.pop(session_id, None) is not None:
                store = SessionStore(self._directory / session_id.hex(), self._registry, session_id)
                await self.workers.write(store.delete)

    async def export(self, session: Session) -> bytes:
        """Return a session's weights as they are now, a safetensors file.

        Raises:
            ConfigError: nothing has been trained yet.
            StorageError: its checkpoints are damaged, or a blob is.

        """
        if session.training is not None:
            return (await session.weights())[1]
        checkpoint = await self.workers.write(session.store.checkpoints.load)
        if checkpoint is None:
            raise ConfigError("session", session.id.hex(), "one with a checkpoint; this one has none yet")
        blobs = await self.workers.write(self._blobs.read_all, session.spec)

        def work() -> bytes:
            trainer = Trainer(session.spec, blobs)
            trainer.load(checkpoint)
            return trainer.weights()

        return await self.workers.train(session.id.hex(), work)

    async def close(self) -> None:
        """Write a checkpoint of each session, end the threads, and give the directory free."""
        await cancelled(*self._stalling.values())
        await self._parking.close()
        for session in self.sessions.values():
            try:
                await session.close()
            except MobiLLMError as exc:
                logger.error("! session %s: %s", session.id.hex(), exc)
        await self.engine.close()
        if self._meter.curves is not None:
            await self.workers.write(self._meter.curves.close)
        self.workers.close()
        self._registry.close()
        self._lock.release()

    async def handle(self, connection: Connection) -> None:
        """Serve one connection until it ends."""
        self.connections += 1
        self._meter.opened()
        reason = "lost"
        try:
            await self._converse(connection)
            reason = "ok"
        except ConnectionClosed as exc:
            reason = _reason(exc.code)
            raise
        finally:
            self.connections -= 1
            self._meter.closed(reason, connection.bytes_received, connection.bytes_sent)

    async def _converse(self, connection: Connection) -> None:
        streams: dict[int, Attachment] = {}
        try:
            async for message in connection:
                if isinstance(message, Bye):
                    return
                if isinstance(message, Open):
                    await self._open(connection, message, streams)
                elif isinstance(message, Detach):
                    await self._leave(streams.pop(message.stream, None))
                    connection.post(Detach(stream=message.stream))
                elif message.stream in streams:
                    await streams[message.stream].receive(message)
        finally:
            for attachment in streams.values():
                await self._detach(attachment)

    async def _leave(self, attachment: Attachment | None) -> None:
        """Act on DETACH; it also says that a device which has been sent the result has it."""
        await self._detach(attachment)
        if attachment is None:
            return
        session = attachment.session
        logger.info("= session %s: its device has left", session.id.hex())
        if not attachment.delivered or self._keep:
            return
        if session.id not in self._attachments:
            try:
                await session.release()
            except StorageError as exc:
                logger.error("! session %s: %s", session.id.hex(), exc)

    async def _detach(self, attachment: Attachment | None) -> None:
        if attachment is None:
            return
        if self._attachments.get(attachment.session.id) is attachment:
            del self._attachments[attachment.session.id]
        await attachment.close()
        await self._parking.left(attachment.session)

    async def _open(self, connection: Connection, message: Open, streams: dict[int, Attachment]) -> None:
        tenant = connection.endpoint.tenant
        if connection.endpoint.phase is Phase.DRAINING:
            again = connection.timeouts.drain  # by then this server is gone, and another one may be there
            text = "the server is about to stop"
            connection.post(refusal(message.stream, ErrorCode.DRAINING, text, retry_after=again))
            return
        if not self._memory.has_room and message.session not in self._attachments:
            text = "the server has no memory for another session's batches now"
            connection.post(refusal(message.stream, ErrorCode.SERVER_BUSY, text))
            return
        excess = self._quota.refuse_session(tenant) if message.session is None else None
        if excess is not None:
            logger.warning("! %s: no session more (--limits %s): %s", tenant, *excess)
            connection.post(refusal(message.stream, ErrorCode.QUOTA, excess.text))
            return
        try:
            with self._quota.reserved(tenant):
                session = await self._find(tenant, message, connection.endpoint.caps)
        except StorageError as exc:
            logger.error("! %s", exc)
            code, text, again = storage(exc, message.session or b"", "the server cannot store a session")
            connection.post(refusal(message.stream, code, text, again=again))
            return
        except ConfigError as exc:
            connection.post(refusal(message.stream, ErrorCode.SCHEMA_MISMATCH, plain_spec(exc)))
            return
        if session is None or session.record.cancelled:
            text = "there is no such session" if session is None else CANCELLED
            connection.post(refusal(message.stream, ErrorCode.SESSION_UNKNOWN, text))
            return
        if message.session is not None:
            self._meter.resumed()
        await self._attach(connection, message.stream, session, streams)

    async def _attach(
        self, connection: Connection, stream: int, session: Session, streams: dict[int, Attachment]
    ) -> None:
        async with session.attaching:  # one after another, so that their numbers rise
            await self._parking.interrupt(session.id)
            epoch = session.record.epoch
            try:
                await session.recover()
                epoch = await session.begin_epoch()
            except StorageError as exc:
                logger.error("! session %s: %s", session.id.hex(), exc)
                # Nothing of one that has ended changes any more, and its weights can still be pulled.
                if not session.ended:
                    code, text, again = storage(
                        exc, session.id, "the server cannot read or store this session's data"
                    )
                    connection.post(refusal(stream, code, text, again=again))
                    return
            # The newest attachment wins: the device may have come back before its old link died.
            while (old := self._attachments.pop(session.id, None)) is not None:
                old.fail(ErrorCode.SESSION_TAKEN_OVER, "the session was attached to another connection")
                await old.close()
            attachment = Attachment(
                session,
                connection,
                stream,
                self._blobs,
                self.limits,
                self._quota,
                self._memory,
                self._meter,
            )
            self._attachments[session.id] = attachment
            streams[stream] = attachment
            session.observer = attachment
            connection.post(_opened(attachment, epoch))
        try:
            await attachment.start()
        except StorageError as exc:
            attachment.fail_storage(exc, "the server cannot read this session's data")
        except EngineError:
            attachment.fail(ErrorCode.SERVER_BUSY, NOWHERE)
        except ConnectionClosed:
            raise
        except MobiLLMError as exc:
            attachment.fail(ErrorCode.SCHEMA_MISMATCH, plain(exc))
        except Exception:
            # One session's fault must not end the others of the connection.
            logger.exception("! session %s cannot be attached", session.id.hex())
            attachment.fail(ErrorCode.INTERNAL, "the server failed; its log says why")

    async def _find(self, tenant: str, message: Open, caps: tuple[str, ...]) -> Session | None:
        if message.session is not None:
            await self._load_again(message.session)
            session = self.sessions.get(message.session)
            # Another tenant's session is as unknown as none at all.
            return session if session is not None and session.tenant == tenant else None
        spec = SessionSpec.from_map(message.spec)
        if spec.codec.compression != "none" and CAPABILITY not in caps:
            expected = f"none on a connection without the capability {CAPABILITY}"
            raise ConfigError("codec.compression", spec.codec.compression, expected)
        await self.workers.train(tenant, lambda: check_size(spec, self.limits.parameters))
        check_weights(spec, self.limits.memory)
        record = SessionRecord(id=os.urandom(16), tenant=tenant, spec=spec)
        store = await self.workers.write(SessionStore.create, self._directory, self._registry, record)
        session = await self.workers.write(self._session, store)
        if session.failure is not None:  # its log could not be made
            await self.workers.write(store.delete)
            raise StorageError(session.failure)
        self._add(session)
        logger.info("= %s: session %s opened, task %s", tenant, session.id.hex(), session.spec.task)
        return session


def _reason(code: int | None) -> str:
    """Return a word for the end of a connection, of which there are few: a peer may send any code."""
    if code is None:
        return "lost"
    return ErrorCode(code).name.lower() if code in list(ErrorCode) else "other"


def _opened(attachment: Attachment, epoch: int) -> Opened:
    session = attachment.session
    return Opened(
        stream=attachment.stream,
        session=session.id,
        epoch=epoch,
        received=session.received,
        durable=session.durable,
        applied=session.applied,
        missing=attachment.missing,
        finished=session.finished is not None,
    )
