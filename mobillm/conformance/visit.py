"""One run of the client under test: we listen, it comes, and at the end it says how it went."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable

from ..protocol import derive_key
from ..transport import Address
from .case import Deviation
from .peer import Log, Peer

__all__ = ["Drive", "Visit", "command_drive"]

# Starts the client with an address and a token; returns its exit status.
Drive = Callable[[str, str], Awaitable[int]]

ARRIVAL = 30.0  # seconds that a client may take to start
SHOWN = 12  # lines of a client's output in a report


def command_drive(command: str, say: Callable[[str], None] = lambda _: None) -> Drive:
    """Return what runs a command in a process of its own; a client that is not waited for is killed.

    Args:
        command: with ``{address}`` and ``{token}`` where these belong.
        say: called with each line of its output.

    """
    words = shlex.split(command)

    async def drive(address: str, token: str) -> int:
        process = await asyncio.create_subprocess_exec(
            *(word.replace("{address}", address).replace("{token}", token) for word in words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await process.communicate()
            for line in output.decode(errors="replace").splitlines()[-SHOWN:]:
                say(line)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0

    return drive


class Visit:
    """What one case against a client works with.

    Args:
        drive: starts the client.
        listen: where to listen; port 0 takes a free one.
        token: the secret that the client is given.
        bound: seconds that an answer of the client may take.

    Attributes:
        log: what was sent and what came back.

    """

    def __init__(self, drive: Drive, listen: Address, token: str, *, bound: float = 15.0) -> None:
        self.log = Log()
        self.key = derive_key(token)
        self.bound = bound
        self._drive = drive
        self._listen = listen
        self._token = token
        self._server: asyncio.Server | None = None
        self._client: asyncio.Task[int] | None = None
        self._arrived: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []

    async def close(self) -> None:
        """End the client and cut its connections."""
        if self._client is not None:
            self._client.cancel()
            await asyncio.gather(self._client, return_exceptions=True)
        for peer in self._peers:
            peer.abort()
        if self._server is not None:
            self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = "" if not self._peers else f"{len(self._peers) + 1}"
        peer = Peer(reader, writer, self.log, name=name, bound=self.bound)
        # A device refuses with ERROR at any time, never with REJECT.
        peer.welcomed = True
        self._peers.append(peer)
        self._arrived.put_nowait(peer)

    async def begin(self) -> Peer:
        """Listen, start the client, and return its connection.

        Raises:
            Deviation: it did not come.

        """
        listen = self._listen
        self._server = await asyncio.start_server(self._accept, listen.host, listen.port)
        port = self._server.sockets[0].getsockname()[1]
        address = str(Address(listen.host, port))
        self.log.add(f"listening on {address}")
        self._client = asyncio.create_task(self._run(address))
        return await self.arrival(ARRIVAL)

    async def _run(self, address: str) -> int:
        status = await self._drive(address, self._token)
        self.log.add(f"the client has ended with status {status}")
        return status

    async def arrival(self, bound: float) -> Peer:
        """Return the client's next connection."""
        assert self._client is not None
        waiting = asyncio.create_task(self._arrived.get())
        try:
            done, _ = await asyncio.wait(
                (waiting, self._client), timeout=bound, return_when=asyncio.FIRST_COMPLETED
            )
            if waiting in done:
                return waiting.result()
        finally:
            waiting.cancel()
        how = f"it ended with status {self._client.result()}" if self._client in done else "it still runs"
        raise Deviation(f"expected a connection of the client within {bound:g} s; none came, {how}")

    async def status(self, bound: float | None = None) -> int:
        """Wait for the client's end and return its exit status.

        Raises:
            Deviation: it went on for longer than ``bound`` seconds.

        """
        assert self._client is not None
        bound = self.bound if bound is None else bound
        done, _ = await asyncio.wait((self._client,), timeout=bound)
        if not done:
            raise Deviation(f"expected the client to end within {bound:g} s; it still runs")
        return self._client.result()

    async def succeeds(self) -> None:
        """See the client end with status 0."""
        status = await self.status()
        if status:
            raise Deviation(f"expected the client to end with status 0; it is {status}")

    async def fails(self, bound: float | None = None) -> None:
        """See the client end with another status than 0."""
        if not await self.status(bound):
            raise Deviation("expected the client to report a failure; it ended with status 0")
