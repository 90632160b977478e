"""Who may open what: sessions of other tenants, takeovers, streams that fail alone."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np
import pytest

from mobillm.codec import PackedTensor, pack, pack_integers
from mobillm.device import Client, Session
from mobillm.errors import ConnectionClosedError, ErrorCode, RemoteError, StorageError
from mobillm.formats import Format
from mobillm.nn.side import SideNetwork
from mobillm.options import Limits, Timeouts
from mobillm.protocol import LENGTHS, TARGETS, Detach, Error, TensorHeader
from mobillm.server.attachment import Attachment
from mobillm.server.gateway import Gateway
from mobillm.server.registry import SessionRecord
from mobillm.server.store import SessionStore
from mobillm.spec import ModelSpec, SessionSpec, SideSpec
from mobillm.transport import Server
from tests.conftest import Run
from tests.server.raw import Raw, raw
from tests.sessions import device, packed, serving, spec, submit, train


def test_sessions_of_another_tenant_do_not_exist(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A foreign session and one that never was are refused alike."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            async with device(server, tenant="other", token="other token") as stranger:
                texts = set()
                for name in (session.id, bytes(16)):
                    with pytest.raises(RemoteError) as info:
                        await stranger.attach(name, spec())
                    assert info.value.code == ErrorCode.SESSION_UNKNOWN
                    texts.add(str(info.value))
                assert len(texts) == 1
            await submit(session, 1, 1)
            await session.wait_applied()

    run_once(main())


def test_networks_beyond_the_limit_are_refused(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[O-39] [O-16] [L-20] A network that is too large is refused before it is made; a smaller one is not."""
    made: list[SessionSpec] = []
    from_spec = SideNetwork.from_spec.__func__  # type: ignore[attr-defined]

    def noted(cls: type[SideNetwork], what: SessionSpec, *options: Any) -> Any:
        made.append(what)
        return from_spec(cls, what, *options)

    monkeypatch.setattr(SideNetwork, "from_spec", classmethod(noted))
    huge = spec(model=ModelSpec(name="huge", hidden_size=65536, layers=4, taps=(2, 4)))

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            with pytest.raises(RemoteError, match=r"number of parameters is \d+; expected at most") as info:
                await client.open(dataclasses.replace(huge, side=SideSpec(width=65536, heads=1)))
            assert info.value.code == ErrorCode.SCHEMA_MISMATCH
            assert not made
            assert not list((tmp_path / "sessions").iterdir())
            session = await client.open(spec())
            await submit(session, 1, 1)
            await session.wait_applied()
            assert made == [spec()]

    run_once(main())


def test_takeover(run: Run, tmp_path: pathlib.Path) -> None:
    """The newest attachment wins, and nothing that the older one sends has any effect."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as old, device(server) as new:
            first = await old.open(spec())
            await submit(first, 1, 2)
            await first.wait_applied()
            second = await new.attach(first.id, spec())
            assert second.received == 2
            with pytest.raises(RemoteError) as info:
                await _go_on(first)
            assert info.value.code == ErrorCode.SESSION_TAKEN_OVER
            await submit(second, 3, 4)
            await second.wait_applied()
            assert second.applied == 4

    run(main())


async def _go_on(session: Session) -> None:
    await submit(session, 3, 20)
    await session.wait_applied(20)


def test_many_takeovers_at_once(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several attachments at once exactly one lives, and it can train."""
    close = Attachment.close

    async def slow(self: Attachment) -> None:
        await asyncio.sleep(0.02)  # as if an answer had to be waited for
        await close(self)

    monkeypatch.setattr(Attachment, "close", slow)

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            await submit(session, 1, 3)
            clients = [await device(server) for _ in range(4)]
            sessions = await asyncio.gather(*(other.attach(session.id, spec()) for other in clients))
            await asyncio.sleep(0.1)
            alive = [candidate for candidate in sessions if candidate._failed is None]
            assert len(alive) == 1
            await submit(alive[0], alive[0].received + 1, 6)
            await alive[0].wait_applied(6)
            for other in clients:
                await other.close()

    run_once(main())


def test_wrong_shapes_fail_one_stream_only(run: Run, tmp_path: pathlib.Path) -> None:
    """A batch that does not fit its spec ends that session's stream; another one goes on."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            bad, good = await client.open(spec()), await client.open(spec())
            tensors = _wrong_tensors()
            batch = bad.begin(2)
            for number, tensor in tensors.items():
                await batch.send(number, tensor)
            batch._headers = dict(_right_headers(2))  # a device that does not check itself
            await batch.commit()
            with pytest.raises(RemoteError) as info:
                await bad.wait_applied()
            assert info.value.code == ErrorCode.SCHEMA_MISMATCH
            assert "batch 1" in str(info.value)
            await submit(good, 1, 2)
            await good.wait_applied()
            await bad.detach()
            again = await client.attach(bad.id, spec())
            assert again.received == 0
            await submit(again, 1, 1)
            await again.wait_applied()

    run(main())


def _wrong_tensors() -> dict[int, PackedTensor]:
    wide = np.ones((2, 32), np.float32)  # the spec says 16
    return {
        0: pack(wide, Format.ASYM4, 32, "tap"),
        1: pack(wide, Format.ASYM4, 32, "tap"),
        LENGTHS: pack_integers([1, 1], "lengths"),
        TARGETS: pack_integers([0, 1], "targets"),
    }


def _right_headers(samples: int) -> dict[int, TensorHeader]:
    return dict(packed(spec(), 1, samples=samples).headers)


def test_streams_are_limited_and_used_again(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A number is free again after detaching."""

    async def main() -> None:
        async with serving(tmp_path, limits=Limits(streams=2)) as server, device(server) as client:
            first, second = await client.open(spec()), await client.open(spec())
            with pytest.raises(ValueError, match="sessions is 2"):
                await client.open(spec())
            await first.detach()
            await first.detach()
            third = await client.attach(first.id, spec())
            assert third.stream == first.stream != second.stream
            await submit(third, 1, 1)
            await third.wait_applied()

    run_once(main())


def test_a_gateway_without_sessions_closes(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Restoring and closing an empty directory does nothing."""

    async def main() -> None:
        gateway = Gateway(tmp_path, limits=Limits())
        await gateway.restore()
        assert gateway.sessions == {}
        await gateway.close()

    run_once(main())


@pytest.mark.parametrize(("mode", "said"), [(0o700, False), (0o755, False), (0o775, True), (0o707, True)])
def test_a_directory_that_others_may_write(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, mode: int, said: bool
) -> None:
    """Whoever can write there can change what is trained: the log says so at the start."""
    tmp_path.chmod(mode)

    async def main() -> None:
        await Gateway(tmp_path, limits=Limits()).close()

    run_once(main())
    assert (f"{tmp_path} can be written by others; run: chmod go-w" in caplog.text) == said


def test_no_session_begins_while_the_server_stops(run: Run, tmp_path: pathlib.Path) -> None:
    """[K-15] [O-15] [E-10] After GOAWAY OPEN is refused with DRAINING and a time; an open session goes on."""

    async def main() -> None:
        timeouts = Timeouts(keepalive=None, drain=5.0)
        async with serving(tmp_path, timeouts=timeouts) as server, device(server) as client:
            session = await client.open(spec())
            stopping = asyncio.get_running_loop().create_task(server.close())
            while client.draining is None:
                await asyncio.sleep(0.01)
            for refused in (client.open, lambda what: client.attach(session.id, what)):
                with pytest.raises(RemoteError) as info:
                    await refused(spec())
                assert (info.value.code, info.value.retry_after) == (ErrorCode.DRAINING, 5.0)
            await submit(session, 1, 1)
            await session.wait_durable()
            await client.close()
            await stopping

    run(main())


def test_epochs_go_on_after_a_restart(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-4] [O-37] The number of an attachment is on the disk before the device learns it."""

    async def main() -> None:
        epochs = []
        async with serving(tmp_path) as server, raw(server) as peer:
            opened = await peer.opened(spec())
            epochs += [opened.epoch, (await peer.opened(opened.session, stream=2)).epoch]
        for _ in range(2):
            async with serving(tmp_path) as server, raw(server) as peer:
                epochs.append((await peer.opened(opened.session)).epoch)
        assert epochs == [1, 2, 3, 4]

    run_once(main())


def test_an_attachment_that_cannot_be_stored(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[E-10] A full disk refuses the attachment for a time; the number of the stream is free again."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            opened = await peer.opened(spec())
            with monkeypatch.context() as patch:
                patch.setattr(SessionStore, "save", _full)
                answer = await peer.open(opened.session, stream=2)
                assert isinstance(answer, Error)
                assert (answer.code, answer.retry_after) == (ErrorCode.STORAGE_FULL, 30.0)
            assert (await peer.opened(opened.session, stream=2)).epoch == 3

    run_once(main())


def test_a_session_whose_log_cannot_be_made(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused for a time, and nothing of it is left."""

    def full(*_: object) -> None:
        raise StorageError("no space left on device")

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            with monkeypatch.context() as patch:
                patch.setattr(SessionStore, "open_log", full)
                with pytest.raises(RemoteError, match="cannot store a session") as info:
                    await client.open(spec())
            assert (info.value.code, info.value.retry_after) == (ErrorCode.STORAGE_FULL, 30.0)
            assert list((tmp_path / "sessions").iterdir()) == []
            await client.open(spec())

    run_once(main())


def test_weights_can_be_pulled_from_a_full_disk(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished session can be attached to although nothing can be written."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session, weights = await train(client, spec(batches=2), 2)
            monkeypatch.setattr(SessionStore, "save", _full)
            again = await client.attach(session.id, session.spec)
            assert await again.pull() == weights

    run_once(main())


def _full(self: SessionStore, record: SessionRecord) -> None:
    raise StorageError("no space left on device")


async def _half(server: Server) -> Session:
    """Train the first two of four batches."""
    async with device(server) as client:
        session = await client.open(spec(batches=4, epochs=2))
        await submit(session, 1, 2)
        await session.wait_applied()
    return session


async def _other_half(client: Client, half: Session) -> bytes:
    """Train the other two batches, and the second epoch."""
    session = await client.attach(half.id, half.spec)
    assert session.received == 2
    await submit(session, 3, 4)
    await session.finish()
    await session.wait_finished()
    return await session.pull()


def test_files_that_may_not_be_read(
    run_once: Run, bound_by_permissions: pathlib.Path, caplog: pytest.LogCaptureFixture, no_fd_leak: None
) -> None:
    """A log or a checkpoint with wrong permissions is named; others train on, and mended, so do these."""

    async def main() -> None:
        async with serving(bound_by_permissions) as server:
            async with device(server) as client:
                _, expected = await train(client, spec(batches=4, epochs=2), 4)
            closed, older = await _half(server), await _half(server)
        place = bound_by_permissions / "sessions"
        log = place / closed.id.hex() / "activations.log"
        log.chmod(0)
        sorted((place / older.id.hex()).glob("checkpoint-*"))[-1].chmod(0)
        caplog.clear()
        async with serving(bound_by_permissions) as server, device(server) as client:
            with pytest.raises(RemoteError, match="cannot read or store this session's data") as info:
                await client.attach(closed.id, closed.spec)
            assert info.value.code == ErrorCode.STORAGE_FULL
            assert f"{log} cannot be opened: Permission denied" in caplog.text
            with pytest.raises(RemoteError):  # all checkpoints cannot be read: it is not begun anew
                await _other_half(client, older)
            assert "cannot be read: Permission denied; an older checkpoint is tried" in caplog.text
            _, weights = await train(client, spec(batches=4, epochs=2), 4)
            assert weights == expected
            for path in place.glob("*/*"):
                path.chmod(0o600)
            assert await _other_half(client, closed) == expected
            assert await _other_half(client, older) == expected

    caplog.set_level(logging.ERROR, "mobillm")
    run_once(main())
    caplog.clear()


def test_a_directory_that_may_not_be_used(run_once: Run, bound_by_permissions: pathlib.Path) -> None:
    """A server that may not write its directory, or read its registry, does not start and says which file."""

    async def start() -> None:
        async with serving(bound_by_permissions):
            pass

    bound_by_permissions.chmod(0o500)
    with pytest.raises(StorageError, match=rf"{bound_by_permissions / 'lock'} cannot be opened: Permission"):
        run_once(start())
    bound_by_permissions.chmod(0o700)
    run_once(start())
    for name in ("registry.sqlite", "sessions", "blobs"):
        path = bound_by_permissions / name
        path.chmod(0)
        with pytest.raises(OSError, match=rf"{path}.*[Pp]ermission|[Pp]ermission.*{path}"):
            run_once(start())
        path.chmod(0o700)
    run_once(start())


def test_a_loop_of_attachments_is_ended(run: Run, tmp_path: pathlib.Path) -> None:
    """[K-28] [L-16] OPEN and DETACH over and over end with CALM; another tenant trains on meanwhile."""

    async def loop(peer: Raw, session: bytes) -> None:
        for _ in range(1000):
            await peer.opened(session)
            peer.connection.post(Detach(stream=1))
            await peer.get(Detach)

    async def main() -> None:
        async with (
            serving(tmp_path) as server,
            device(server, tenant="other", token="other token") as calm,
            raw(server) as peer,
        ):
            session = await calm.open(spec())
            opened = await peer.opened(spec())
            peer.connection.post(Detach(stream=1))
            await peer.get(Detach)
            ending = asyncio.get_running_loop().create_task(loop(peer, opened.session))
            await submit(session, 1, 20)
            with pytest.raises(ConnectionClosedError, match="CALM: too many OPEN frames"):
                await ending
            await submit(session, 21, 22)
            await session.wait_applied(22)

    run(main())
