"""A device's connection: opening, giving up, and coming back."""

from __future__ import annotations

import asyncio
import pathlib

import pytest

from mobillm.device import Client
from mobillm.errors import ConfigError, ConnectionClosed, HandshakeError, RemoteError
from mobillm.options import Timeouts
from mobillm.protocol import Bye, Detach, Error, Goaway, Open, Opened
from mobillm.transport import Connection, serve
from tests.conftest import Run
from tests.sessions import KEYS, TOKEN, device, serving, spec, submit

SHORT = Timeouts(request=0.2, keepalive=None, drain=0.5)


def test_await_and_async_with(run: Run, tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """Both forms connect; closing twice is fine."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            client = await device(server)
            async with client:
                session = await client.open(spec())
                await submit(session, 1, 1)
                await session.wait_durable()
            await client.close()
            with pytest.raises(ConnectionClosed):
                await client.open(spec())
            with pytest.raises(HandshakeError):
                await device(server, token="wrong")

    run(main())


def test_an_open_that_was_given_up_frees_its_stream(run: Run) -> None:
    """OPENED may come late: the session is left, and the number is used again only then."""
    opened: list[int] = []

    async def slow(connection: Connection) -> None:
        late = 0
        async for message in connection:
            if isinstance(message, Bye):
                return
            if isinstance(message, Open):
                opened.append(message.stream)
                if len(opened) > 1:
                    connection.post(Opened(stream=message.stream, session=bytes(16), epoch=1))
                else:
                    late = message.stream
            if isinstance(message, Detach):
                connection.post(message)
            if len(opened) == 2 and late:
                connection.post(Opened(stream=late, session=bytes(16), epoch=1))
                late = 0

    async def main() -> None:
        async with (
            await serve(slow, "127.0.0.1:0", keys=KEYS) as server,
            device(server, timeouts=SHORT) as client,
        ):
            with pytest.raises(TimeoutError, match=r"did not answer OPEN within 0\.2 s"):
                await client.open(spec())
            assert (await client.open(spec())).stream == 2
            async with asyncio.timeout(5.0):
                while client._abandoned:
                    await asyncio.sleep(0.01)
            assert (await client.open(spec())).stream == 1
        assert opened == [1, 2, 1]

    run(main())


def test_refused_open_frees_its_stream(run_once: Run) -> None:
    """After an ERROR the number is free at once."""

    async def refusing(connection: Connection) -> None:
        async for message in connection:
            if isinstance(message, Open):
                connection.post(Error(stream=message.stream, code=22, text="no"))
            if isinstance(message, Bye):
                return

    async def main() -> None:
        async with await serve(refusing, "127.0.0.1:0", keys=KEYS) as server, device(server) as client:
            for _ in range(3):
                with pytest.raises(RemoteError, match="QUOTA: no"):
                    await client.open(spec())
            assert client._free_stream() == 1

    run_once(main())


def test_missing_blob_leaves_the_session(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A blob that was not given is named, and nothing stays attached."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            with pytest.raises(ConfigError, match=r"0{64}"):
                await client.open(spec(task="causal-lm", head="0" * 64))
            await submit(await client.open(spec()), 1, 1)
            async with asyncio.timeout(5.0):
                while client._abandoned:
                    await asyncio.sleep(0.01)

    run_once(main())


def test_going_away_is_noted(run_once: Run) -> None:
    """A server that is about to stop is known before it does."""

    async def leaving(connection: Connection) -> None:
        connection.post(Goaway(code=0, text="maintenance", grace=1.0))
        async for message in connection:
            if isinstance(message, Bye):
                return

    async def main() -> None:
        async with await serve(leaving, "127.0.0.1:0", keys=KEYS) as server, device(server) as client:
            async with asyncio.timeout(5.0):
                while client.draining is None:
                    await asyncio.sleep(0.01)
            assert client.draining.text == "maintenance"

    run_once(main())


def test_a_callback_that_fails_ends_the_connection(
    run_once: Run, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the app's own callback is logged and told to all who wait."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            client: Client = await device(server)
            session = await client.open(spec())

            def fail(_: object) -> None:
                raise RuntimeError("of the app")

            session.on_metrics = fail
            await submit(session, 1, 1)
            with pytest.raises(ConnectionClosed, match="of the app"):
                await session.wait_applied(9)
            await client.close()

    run_once(main())
    assert "of the app" in caplog.text
    assert TOKEN not in caplog.text
