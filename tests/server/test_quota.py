"""What a tenant may take of a server, and that another tenant does not notice."""

from __future__ import annotations

import pathlib
import types
from typing import Any, cast

import pytest

from mobillm.errors import ErrorCode, RemoteError
from mobillm.options import Limits
from mobillm.protocol import Ack, Error, Opened
from mobillm.server.quota import Quota
from mobillm.server.session import Session
from tests.conftest import Run
from tests.server.raw import raw
from tests.sessions import device, packed, serving, spec, submit, train


def _session(name: bytes, stored: int, *, finished: bool = False, tenant: str = "acme") -> Session:
    fake: Any = types.SimpleNamespace(id=name, tenant=tenant, stored=stored, ended=finished)
    return cast(Session, fake)


def test_counting() -> None:
    """Unfinished, attached and coming sessions count; finished ones count for storage only."""
    attached: set[bytes] = set()
    quota = Quota(Limits(sessions=3, stored=1 << 20), attached)
    assert quota.refuse_session("acme") is None
    for number in range(2):
        quota.add(_session(bytes([number]), 100))
    quota.add(_session(b"done", 1000, finished=True))
    quota.add(_session(b"other", 1 << 30, tenant="other"))
    assert quota.refuse_session("acme") is None
    with quota.reserved("acme"):
        assert quota.refuse_session("acme") is not None
    assert quota.refuse_session("acme") is None
    attached.add(b"done")
    excess = quota.refuse_session("acme")
    assert excess is not None
    assert excess.limit == "sessions"
    assert "has 3 sessions that are attached or not finished, and may have 3" in excess.text
    assert quota.refuse_batch("acme", (1 << 20) - 1200) is None
    excess = quota.refuse_batch("acme", (1 << 20) - 1199)
    assert excess is not None
    assert excess.limit == "stored"
    assert "hold 1200 bytes on the server, and may hold 1048576" in excess.text
    assert quota.refuse_session("other") is not None


def test_sessions_of_a_tenant(run: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """[O-38] [L-17] [E-10] One too many is refused; those that live go on; others have their own share."""

    async def main() -> None:
        limits = Limits(sessions=2)
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            first, second = await client.open(spec()), await client.open(spec())
            with pytest.raises(RemoteError) as info:
                await client.open(spec())
            assert (info.value.code, info.value.retry_after) == (ErrorCode.QUOTA, 30.0)
            assert "finish or detach from some" in info.value.text
            assert "default: no session more (--limits sessions): the tenant has 2 sessions" in caplog.text
            await submit(first, 1, 2)
            await first.wait_applied()
            async with device(server, tenant="other", token="other token") as stranger:
                await stranger.open(spec())
            await second.detach()
            await client.attach(second.id, spec())  # not a new one
            await first.finish()
            await first.wait_finished()
            await first.detach()
            await client.open(spec())
        # Sessions that a restart has brought back count like before.
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            with pytest.raises(RemoteError, match="QUOTA"):
                await client.open(spec())

    run(main())


def test_stored_bytes_of_a_tenant(run: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    """[B-34] [L-18] [E-10] A batch beyond the share is refused alone; the session goes on."""

    async def main() -> None:
        big = packed(spec(), 1, samples=1200)
        limits = Limits(stored=big.size + (1 << 14))
        async with serving(tmp_path, limits=limits) as server, raw(server) as peer:
            name = (await peer.opened(spec())).session.hex()
            await peer.batch(big)
            await peer.applied(1)
            await peer.batch(packed(spec(), 2, samples=1200))
            error = await peer.get(Error)
            assert (error.seq, error.code, error.retry_after) == (2, ErrorCode.QUOTA, 30.0)
            assert "have the server's owner delete finished ones" in error.text
            await peer.batch(packed(spec(), 2, samples=1200))
            await peer.get(Error)
            line = f"session {name}: its batches are refused (--limits stored): the tenant's sessions hold"
            assert caplog.text.count(line) == 1
            await peer.batch(packed(spec(), 2, samples=2))
            await peer.applied(2)
            assert peer.of(Ack)[-1].received == 2

    run(main())


def test_no_new_session_without_storage(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-38] A tenant whose share is used up starts no session, and can still attach to those it has."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session, _ = await train(client, spec(batches=40), 40)
        async with serving(tmp_path, limits=Limits(stored=1 << 14)) as server, raw(server) as peer:
            answer = await peer.open(spec())
            assert isinstance(answer, Error)
            assert answer.code == ErrorCode.QUOTA
            assert isinstance(await peer.open(session.id), Opened)

    run_once(main())
