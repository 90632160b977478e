"""The operator's socket: what it answers, and whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import sqlite3
import stat
from typing import Any

import pytest

from mobillm.cli.control import request
from mobillm.device.pending import Pending
from mobillm.device.pull import pull_async
from mobillm.errors import ConfigError, DataError, ErrorCode, MobiLLMError, RemoteError
from mobillm.nn.saved import SideConfig
from mobillm.options import Limits
from mobillm.protocol import Finished
from mobillm.server import control
from mobillm.server.control import LONGEST_REQUEST, MAX_CALLERS, SOCKET
from mobillm.server.metrics import PrometheusMeter
from mobillm.server.registry import Registry, SessionRecord
from mobillm.server.store import SessionStore
from mobillm.transport import Address
from tests.conftest import Run
from tests.sessions import QUICK, TOKEN, device, packed, serving, spec, submit, train


async def ask(folder: pathlib.Path, command: str, **values: Any) -> tuple[dict[str, Any], bytes]:
    """Ask from another thread, as the command line would."""
    return await asyncio.to_thread(request, folder, command, **values)


async def raw(folder: pathlib.Path, line: bytes) -> bytes:
    """Send bytes and return all that comes back."""
    reader, writer = await asyncio.open_unix_connection(folder / SOCKET)
    writer.write(line)
    answer = await reader.read()
    writer.close()
    return answer


def test_list_and_show(run: Run, tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """Sessions are found by their first digits; a name of none or of several is refused."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            assert (await ask(tmp_path, "list"))[0] == {"sessions": []}
            sessions = [await client.open(spec()) for _ in range(17)]  # two begin with the same digit
            names = sorted(session.id.hex() for session in sessions)
            listed, _ = await ask(tmp_path, "list")
            assert sorted(one["session"] for one in listed["sessions"]) == names
            shown, _ = await ask(tmp_path, "show", session=names[0].upper())
            assert (shown["session"], shown["attached"]) == (names[0], True)
            assert shown["spec"] == json.loads(json.dumps(spec().to_map()))
            digits = [name[0] for name in names]
            twice = next(digit for digit in digits if digits.count(digit) > 1)
            with pytest.raises(ConfigError, match=r"more digits; [0-9]+ sessions begin so"):
                await ask(tmp_path, "show", session=twice)
            for name in ("", "x", None):
                with pytest.raises(ConfigError, match=r"SESSION is .*; expected a session of"):
                    await ask(tmp_path, "show", session=name)

    run(main())


def test_cancel(run: Run, tmp_path: pathlib.Path) -> None:
    """The device is told, can come back no more, and a restart changes nothing; weights can be exported."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            await submit(session, 1, 3)
            await session.wait_applied()
            weights = await session.pull()
            other = await client.open(spec())
            answer, _ = await ask(tmp_path, "cancel", session=session.id.hex())
            assert (answer["state"], answer["attached"]) == ("cancelled", True)
            with pytest.raises(RemoteError, match="owner has cancelled") as info:
                await session.wait_finished()
            assert info.value.code == ErrorCode.SESSION_UNKNOWN
            await submit(other, 1, 2)
            await other.wait_applied()
        async with serving(tmp_path) as server, device(server) as client:
            with pytest.raises(RemoteError, match="owner has cancelled") as info:
                await client.attach(session.id, session.spec)
            assert info.value.code == ErrorCode.SESSION_UNKNOWN
            async with device(server, tenant="other", token="other token") as stranger:
                with pytest.raises(RemoteError, match="no such session"):
                    await stranger.attach(session.id, session.spec)
            answer, data = await ask(tmp_path, "export", session=session.id.hex())
            assert (answer["state"], data) == ("cancelled", weights)

    run(main())


def test_delete(run: Run, tmp_path: pathlib.Path) -> None:
    """Nothing is left of a deleted session, also not for the tenant's share; others stay."""

    async def main() -> None:
        async with serving(tmp_path, limits=Limits(sessions=1)) as server, device(server) as client:
            done, _ = await train(client, spec(batches=2), 2)
            await done.detach()
            going = await client.open(spec())
            with pytest.raises(ConfigError, match="one that is not finished"):
                await ask(tmp_path, "cancel", session=done.id.hex())
            with pytest.raises(ConfigError, match="cancel it first, or give --force"):
                await ask(tmp_path, "delete", session=going.id.hex())
            for session, force in ((done, False), (going, True)):
                await ask(tmp_path, "delete", session=session.id.hex(), force=force)
                assert not (tmp_path / "sessions" / session.id.hex()).exists()
            with pytest.raises(RemoteError, match="owner has cancelled"):
                await going.wait_finished()
            assert (await ask(tmp_path, "list"))[0] == {"sessions": []}
            await client.open(spec())  # the only one that the tenant may have
        async with serving(tmp_path) as server, device(server) as client:
            with pytest.raises(RemoteError, match="no such session"):
                await client.attach(done.id, done.spec)

    run(main())


def _lose(folder: pathlib.Path, session: str, what: str) -> None:
    """Damage a session, one way or the other."""
    place = folder / "sessions" / session
    if what == "log":
        data = bytearray((place / "activations.log").read_bytes())
        data[len(data) // 8] ^= 1
        (place / "activations.log").write_bytes(data)
    elif what == "row":
        with contextlib.closing(sqlite3.connect(folder / "registry.sqlite")) as db, db:
            db.execute("UPDATE sessions SET spec = '{}'")
    for path in place.glob("checkpoint-*") if what == "checkpoints" else ():
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("log", "batch 1, at byte 0, is damaged"),
        ("checkpoints", "no checkpoint in"),
        ("row", "registry.sqlite"),
    ],
)
def test_damaged_sessions(run_once: Run, tmp_path: pathlib.Path, what: str, text: str) -> None:
    """One that cannot go on is listed as failed, shown with the reason, counted, and deleted."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            await submit(session, 1, 3)
            await session.wait_applied()
        name = session.id.hex()
        _lose(tmp_path, name, what)
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        async with serving(tmp_path, meter=meter) as server, device(server) as client:
            (listed,) = (await ask(tmp_path, "list"))[0]["sessions"]
            assert (listed["session"], listed["state"]) == (name, "failed")
            shown, _ = await ask(tmp_path, "show", session=name[:8])
            assert text in shown["failure"]
            assert meter.registry.get_sample_value("mobillm_sessions", {"state": "failed"}) == 1
            with pytest.raises(RemoteError, match=f"session {name} are damaged"):
                await client.attach(session.id, session.spec)
            if what == "row":
                with pytest.raises(ConfigError, match="expected one that can be read"):
                    await ask(tmp_path, "export", session=name)
            else:
                await ask(tmp_path, "cancel", session=name)
            assert (await ask(tmp_path, "delete", session=name))[0]["session"] == name
            assert (await ask(tmp_path, "list"))[0] == {"sessions": []}
            with pytest.raises(RemoteError, match="no such session"):
                await client.attach(session.id, session.spec)
        assert not (tmp_path / "sessions" / name).exists()

    run_once(main())


@pytest.mark.parametrize("finished", [None, Finished(steps=1, loss=0.5)])
def test_a_blob_that_is_gone(run_once: Run, tmp_path: pathlib.Path, finished: Finished | None) -> None:
    """A session whose device has sent everything cannot go on without its blob, and says so."""
    what = spec(task="causal-lm", head="0" * 64)
    name = bytes(range(16))

    async def main() -> None:
        async with serving(tmp_path):
            pass
        ended = None if finished is None else 1.0
        record = SessionRecord(id=name, tenant="default", spec=what, last=1, finished=finished, ended=ended)
        with Registry(tmp_path / "registry.sqlite") as registry:
            log = SessionStore.create(tmp_path / "sessions", registry, record).open_log()
            log.append([packed(what, 1)])
            log.close()
        async with serving(tmp_path) as server, device(server) as client:
            with pytest.raises(ConfigError, match="blobs"):
                await client.attach(name, what)
            shown, _ = await ask(tmp_path, "show", session=name.hex())
            assert shown["state"] == "failed"
            assert f"{'0' * 64} is gone; restore it from a backup" in shown["failure"]
            output = tmp_path / "out"
            config = SideConfig(spec=what, max_length=9)
            Pending(session=name, batches=1, config=config, heldout=False).save(output)
            with pytest.raises(DataError, match=f"lost weights that session {name.hex()} needs"):
                await pull_async(output, server=str(server.address), token=TOKEN, timeouts=QUICK)

    run_once(main())


def test_export(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Weights come from the running trainer or from the checkpoint; without either there are none."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            weights = await session.pull()
            assert (await ask(tmp_path, "export", session=session.id.hex()))[1] == weights
            name = session.id.hex()
        for path in (tmp_path / "sessions" / name).glob("checkpoint-*"):
            path.unlink()
        async with serving(tmp_path):
            with pytest.raises(ConfigError, match="this one has none yet"):
                await ask(tmp_path, "export", session=name)

    run_once(main())


def test_strange_requests(run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no request is answered with an error; a caller that says nothing is cut off."""
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.2)

    async def main() -> None:
        async with serving(tmp_path):
            mode = (tmp_path / SOCKET).stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            for line in (b"\n", b"[]\n", b'{"command": 1}\n', b'{"command": "no"}\n', b"[" * 3000 + b"\n"):
                assert "no line of JSON" in json.loads(await raw(tmp_path, line))["error"]
            assert b"no line of JSON" in await raw(tmp_path, b"x" * (3 * LONGEST_REQUEST))
            assert await raw(tmp_path, b'{"command"') == b""
            silent = [await asyncio.open_unix_connection(tmp_path / SOCKET) for _ in range(MAX_CALLERS + 1)]
            assert await silent[-1][0].read() == b""
            for _, writer in silent:
                writer.close()

    run(main())


def test_a_fault_of_the_server(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that fails says so, and the next one is answered."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(spec())
            with monkeypatch.context() as patch:
                patch.setattr(control, "summarise", broken)
                with pytest.raises(MobiLLMError, match="the server failed; its log says why"):
                    await ask(tmp_path, "show", session=session.id.hex())
            await ask(tmp_path, "show", session=session.id.hex())

    run_once(main())


def test_the_socket_is_gone(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server that cannot be asked any more is told from one that does not run."""

    async def main() -> None:
        async with serving(tmp_path):
            (tmp_path / SOCKET).unlink()
            with pytest.raises(
                MobiLLMError, match=r"its socket control\.sock there is gone; restart the server"
            ):
                await ask(tmp_path, "list")
        with pytest.raises(
            ConfigError, match="the --data-dir that a server on this machine was started with"
        ):
            await ask(tmp_path, "list")

    run_once(main())


def test_long_path(run: Run, tmp_path: pathlib.Path) -> None:
    """A path beyond what a socket's address can hold works on both sides; the socket goes with the server."""

    async def main() -> None:
        folder = tmp_path / ("d" * 100) / "x"
        async with serving(folder):
            assert (await ask(folder, "list"))[0] == {"sessions": []}
        assert not (folder / SOCKET).exists()

    run(main())
