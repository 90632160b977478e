"""Listening sockets: which they are, and what happens when nothing can be accepted."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import socket
from typing import Any

import pytest

from mobillm.transport import Address
from mobillm.transport.listener import accept, listen
from tests.conftest import Run
from tests.transport.wire import eventually


def test_one_socket_for_a_port_of_the_systems_choice(run: Run, no_fd_leak: None) -> None:
    """Port 0 gives one socket with a real port; a second listener there is refused, and leaves nothing."""

    async def main() -> None:
        (sock,) = await listen(Address("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert port > 0
        assert not sock.getblocking()
        with pytest.raises(OSError, match="in use"):
            await listen(Address("127.0.0.1", port))
        sock.close()

    run(main())


def test_all_addresses_of_a_name(run_once: Run, monkeypatch: pytest.MonkeyPatch, no_fd_leak: None) -> None:
    """A name that stands for two addresses is listened on at both, on the same port."""

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def found(host: str, port: int, **_: Any) -> list[Any]:
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, (place, port)) for place in ("127.0.0.2", "127.0.0.3", "127.0.0.2")]

        monkeypatch.setattr(loop, "getaddrinfo", found)
        (probe,) = await listen(Address("two.example", 0))
        port = probe.getsockname()[1]
        probe.close()
        sockets = await listen(Address("two.example", port))
        assert [sock.getsockname() for sock in sockets] == [("127.0.0.2", port), ("127.0.0.3", port)]
        for sock in sockets:
            sock.close()

    run_once(main())


class Exhausted:
    """A loop's ``sock_accept`` that fails for as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
        self.tries = 0
        self.error: int | None = error
        self._accept = asyncio.get_running_loop().sock_accept
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_accept", self.accept)

    async def accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        """Accept a connection, or fail."""
        self.tries += 1
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        return await self._accept(sock)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
def test_no_room_is_logged_once_and_passes(
    run_once: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    """A system without room is asked again after a pause; one line of the log says so, however many tries."""
    taken: list[str] = []

    def take(sock: socket.socket, host: str) -> None:
        taken.append(host)
        sock.close()

    async def main() -> None:
        monkeypatch.setattr("mobillm.transport.listener.ACCEPT_PAUSE", 0.001)
        (sock,) = await listen(Address("127.0.0.1", 0))
        exhausted = Exhausted(monkeypatch, error)
        accepting = asyncio.create_task(accept(sock, take))
        _, writer = await asyncio.open_connection(*sock.getsockname())
        await eventually(lambda: exhausted.tries > 20)
        assert taken == []
        exhausted.error = None
        await eventually(lambda: taken == ["127.0.0.1"])
        writer.close()
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        sock.close()

    with caplog.at_level(logging.INFO, logger="mobillm"):
        run_once(main())
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert os.strerror(error) in caplog.text


def test_some_descriptors_are_kept_for_files(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection whose descriptor is one of the last ones is closed at once, and the log says why."""
    taken: list[socket.socket] = []

    async def main() -> None:
        (sock,) = await listen(Address("127.0.0.1", 0))
        gc.collect()  # what earlier tests left behind is closed now, not between the two connections
        # The client's own end takes the first free descriptor of this process, the server's end the second
        # one, which need not be the next number.
        with socket.socket(), socket.socket() as probe:
            last = probe.fileno()
        monkeypatch.setattr("mobillm.transport.listener._descriptors", lambda: last + 32 + 1)
        accepting = asyncio.create_task(accept(sock, lambda end, _: taken.append(end)))
        first = socket.create_connection(sock.getsockname())
        await eventually(lambda: len(taken) == 1)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await reader.read() == b""
        assert len(taken) == 1
        writer.close()
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        for end in (first, sock, *taken):
            end.close()

    with caplog.at_level(logging.INFO, logger="mobillm"):
        run(main())
    assert "kept for files" in caplog.text


def test_a_flood_leaves_the_loop_time(run: Run) -> None:
    """Between two accepted connections everything else of the loop has its turn."""
    turns = 0
    taken: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def take(sock: socket.socket, _: str) -> None:
        taken.append(turns)
        sock.close()

    async def main() -> None:
        (sock,) = await listen(Address("127.0.0.1", 0))
        waiting = [socket.create_connection(sock.getsockname()) for _ in range(20)]
        tasks = [asyncio.create_task(accept(sock, take)), asyncio.create_task(others())]
        await eventually(lambda: len(taken) == 20)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for end in (sock, *waiting):
            end.close()
        assert len(set(taken)) == 20

    run(main())
