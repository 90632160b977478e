"""A slow link for users without root: a TCP relay with a token bucket and a delay in each direction.

``python -m benchmarks.link --rate 10mbit --rtt 50ms --listen 127.0.0.1:7708 --to 127.0.0.1:7707``. The rate
is that of the payload of TCP, in each direction. :mod:`benchmarks.namespaces` makes the same
link below TCP, with root, and measures one beside the other.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

from benchmarks import child
from mobillm.cli.arguments import address, between
from mobillm.transport import Address

__all__ = ["Bucket", "Relay", "Shape", "parse_rate", "parse_seconds", "relayed"]

PIECE_SECONDS = 0.004  # of the rate that is read and passed on at once
SMALLEST, LARGEST = 1448, 1 << 16  # bytes of such a piece
AHEAD = 0.05  # seconds of the rate that wait in the relay, as in a router's queue
BURST = 0.01  # seconds by which the relay may be late without losing rate
UNLIMITED_LINE = 64 << 20  # bytes under way on a link without a rate
STOP_SECONDS = 10
ANYWHERE = Address("127.0.0.1", 0)

LEAST_RATE, MOST_RATE = 1e3, 1e11  # bits per second: 1 kbit to 100 gbit
MOST_CORES = 4096
MOST_SECONDS = 60.0  # of a round trip

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rate(text: str) -> float:
    """Return bytes per second of a rate as tc writes it: ``10mbit``, ``2.5mbit``, ``64kbit``; 0 is none.

    Raises:
        argparse.ArgumentTypeError: it is no such rate.

    """
    if text.strip() in ("0", "0bit"):
        return 0.0
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)([kmg]?)bit", text.strip().lower())
    bits = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not LEAST_RATE <= bits <= MOST_RATE:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no rate; give 1kbit to 100gbit, in bit, kbit, mbit or gbit per second such as "
            "10mbit, or 0 for none"
        )
    return bits / 8


def parse_seconds(text: str) -> float:
    """Return the seconds of a time such as ``50ms`` or ``0.2s``.

    Raises:
        argparse.ArgumentTypeError: it is no such time.

    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)(ms|s)", text.strip().lower())
    seconds = float(match[1]) * (0.001 if match[2] == "ms" else 1.0) if match else -1.0
    if not 0.0 <= seconds <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no time; give 0s to {MOST_SECONDS:g}s, in ms or s such as 50ms or 0.2s"
        )
    return seconds


def _target(text: str) -> Address:
    found = address(text)
    if found.port == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r} has the port 0, which nothing listens on; give the server's"
        )
    return found


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a link is like, in both directions.

    Attributes:
        rate: bytes of payload per second; 0 lets all pass.
        rtt: seconds of a round trip; half of it in each direction.

    """

    rate: float = 0.0
    rtt: float = 0.0

    @property
    def piece(self) -> int:
        """Bytes that are passed on at once."""
        return min(LARGEST, max(SMALLEST, int(self.rate * PIECE_SECONDS))) if self.rate else LARGEST

    @property
    def line(self) -> int:
        """Bytes that may be under way in one direction."""
        return max(1 << 18, int(self.rate * (self.rtt + 2 * AHEAD))) if self.rate else UNLIMITED_LINE


class Bucket:
    """When what goes onto a link of a rate has left it; a virtual clock, so lateness does not add up.

    Args:
        rate: bytes per second; 0 lets all pass at once.

    Attributes:
        busy: (start, end) of the times in which something was on its way, merged; in order.

    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.busy: list[tuple[float, float]] = []
        self._free = 0.0

    def admit(self, size: int, now: float) -> float:
        """Put ``size`` bytes onto the link; return when the last of them has left it."""
        if not self.rate:
            return now
        start = max(self._free, now - BURST)
        self._free = start + size / self.rate
        if self.busy and start <= self.busy[-1][1]:
            self.busy[-1] = (self.busy[-1][0], self._free)
        else:
            self.busy.append((max(start, min(now, self._free)), self._free))
        return self._free

    def backlog(self, now: float) -> float:
        """Return in how many seconds all will have left."""
        return max(0.0, self._free - now) if self.rate else 0.0


class _Direction:
    """What one end sends to the other one: bucket, delay, and a line that is bounded in bytes."""

    def __init__(self, shape: Shape) -> None:
        self.bucket = Bucket(shape.rate)
        self.passed = 0
        self.ended = False  # whether the end has been passed on
        self.source: asyncio.Transport | None = None
        self.sink: asyncio.Transport | None = None
        self.back: _Direction | None = None  # the other direction of the same connection
        self._shape = shape
        self._line: collections.deque[tuple[float, bytes]] = collections.deque()
        self._held = 0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._sink_full = True  # until it is connected
        self._paused = False

    def push(self, data: bytes) -> None:
        """Take a piece in; an empty one is the end."""
        now = self._loop.time()
        due = self.bucket.admit(len(data), now) + self._shape.rtt / 2
        self._line.append((due, data))
        self._held += len(data)
        if self.bucket.backlog(now) > AHEAD or self._held > self._shape.line:
            self._pause(True)
        self._deliver()

    def set_full(self, full: bool) -> None:
        """Note that the sink takes nothing now, or again."""
        self._sink_full = full
        if not full:
            self._deliver()

    def _end(self) -> None:
        assert self.sink is not None
        assert self.source is not None
        self.ended = True
        if self.back is not None and self.back.ended:
            self.sink.close()
            self.source.close()
        else:
            self.sink.write_eof()

    def close(self) -> None:
        """Drop what is under way."""
        self._line.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _pause(self, pause: bool) -> None:
        if self.source is not None and not self.source.is_closing() and pause != self._paused:
            self._paused = pause
            if pause:
                self.source.pause_reading()
            else:
                self.source.resume_reading()

    def _deliver(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        while self._line and self._line[0][0] <= now and not self._sink_full:
            _, data = self._line.popleft()
            self._held -= len(data)
            self.passed += len(data)
            if self.sink is None or self.sink.is_closing():
                continue
            if data:
                self.sink.write(data)
            else:
                self._end()
        backlog = self.bucket.backlog(now)
        if backlog <= AHEAD / 2 and self._held <= self._shape.line:
            self._pause(False)
        times = [self._line[0][0]] if self._line and not self._sink_full else []
        if self._paused and backlog > AHEAD / 2:
            times.append(now + backlog - AHEAD / 2)
        if times:
            self._timer = self._loop.call_at(max(now, min(times)), self._deliver)


class _End(asyncio.BufferedProtocol):
    """One of the two sockets of a connection."""

    def __init__(self, out: _Direction, back: _Direction, size: int) -> None:
        self._out, self._back = out, back  # what this end says, and what it is told
        self._buffer = memoryview(bytearray(size))
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let what is meant for this end go."""
        self.transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._out.source = self._back.sink = self.transport
        self._back.set_full(False)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Read at most one piece at once."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Pass a piece on."""
        self._out.push(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        """Pass the end on; the other direction stays."""
        self._out.push(b"")
        return True

    def pause_writing(self) -> None:
        """Hold back what is meant for this end."""
        self._back.set_full(True)

    def resume_writing(self) -> None:
        """Let it go on."""
        self._back.set_full(False)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other socket, too."""
        self._back.close()
        if self.other is not None and self.other.transport is not None:
            self.other.transport.abort()
        if not self.lost.done():
            self.lost.set_result(None)


class Relay:
    """Relay TCP connections to a target over a link.

    Args:
        target: where they go.
        shape: of the link; each connection has a link of its own.
        listen: where they come from; port 0 takes a free one.

    """

    def __init__(self, target: Address, shape: Shape, listen: Address = ANYWHERE) -> None:
        self.target = target
        self.shape = shape
        self._listen = listen
        self._server: asyncio.Server | None = None
        self._ends: set[_End] = set()
        self._directions: list[tuple[_Direction, _Direction]] = []
        self._dialling: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> Address:
        """Where it listens."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def figures(self) -> dict[str, Any]:
        """Return for each connection the bytes passed and the busy times, on the monotonic clock."""
        return {
            "connections": [
                {"up": up.passed, "down": down.passed, "busy_up": up.bucket.busy}
                for up, down in self._directions
            ]
        }

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, sock=self._socket(self._listen))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._dialling:
            task.cancel()
        await asyncio.gather(*self._dialling, return_exceptions=True)
        ends = list(self._ends)
        for end in ends:
            if end.transport is not None:
                end.transport.abort()
        await asyncio.gather(*(end.lost for end in ends if end.transport is not None))
        await self._server.wait_closed()

    def _socket(self, bind: Address | None) -> socket.socket:
        sock = socket.socket()
        if self.shape.rate:
            # The kernel would take in megabytes ahead of the link, seconds of a narrow one.
            size = int(self.shape.rate * AHEAD)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, min(1 << 22, max(1 << 15, size)))
        if bind is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((bind.host, bind.port))
            except OSError:
                sock.close()
                raise
        sock.setblocking(False)
        return sock

    def _accept(self) -> _End:
        up, down = _Direction(self.shape), _Direction(self.shape)
        up.back, down.back = down, up
        self._directions.append((up, down))
        near, far = _End(up, down, self.shape.piece), _End(down, up, self.shape.piece)
        near.other, far.other = far, near
        for end in (near, far):
            self._ends.add(end)
            end.lost.add_done_callback(functools.partial(self._forget, end))
        task = asyncio.get_running_loop().create_task(self._dial(near, far))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return near

    def _forget(self, end: _End, _: asyncio.Future[None]) -> None:
        self._ends.discard(end)

    async def _dial(self, near: _End, far: _End) -> None:
        loop = asyncio.get_running_loop()
        sock = self._socket(None)
        try:
            await loop.sock_connect(sock, (self.target.host, self.target.port))
            await loop.create_connection(lambda: far, sock=sock)
        except OSError as error:
            sock.close()
            place = f"{self.target.host}:{self.target.port}"
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            print(f"cannot reach {place}: {reason}", file=sys.stderr, flush=True)
            if near.transport is not None:
                near.transport.abort()


@contextlib.contextmanager
def relayed(target: Address, shape: Shape, *, core: int | None = None) -> Iterator[tuple[Address, Any]]:
    """Run a relay in a process of its own for the time of the block.

    Args:
        target: where the connections go.
        shape: of the link.
        core: processor core that the process is pinned to; None leaves it to the system.

    Yields:
        where it listens, and a function that stops it and returns :meth:`Relay.figures`.

    Raises:
        RuntimeError: the process ended by itself.

    """
    command = ["-m", "benchmarks.link", "--to", f"{target.host}:{target.port}", "--json"]
    command += ["--rate", f"{shape.rate * 8:.0f}bit", "--rtt", f"{shape.rtt:.6f}s"]
    if core is not None:
        command += ["--core", str(core)]
    with child.start(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        figures: dict[str, Any] = {}

        def read(line: str) -> dict[str, Any]:
            if not line:
                raise RuntimeError(f"the link's process ended by itself, with the status {process.wait()}")
            found: dict[str, Any] = json.loads(line)
            return found

        def stop() -> dict[str, Any]:
            if not figures:
                process.terminate()
                output, _ = process.communicate(timeout=STOP_SECONDS)
                figures.update(read(output))
            return figures

        try:
            yield Address.parse(read(process.stdout.readline())["address"]), stop
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=STOP_SECONDS)


async def _serve(args: argparse.Namespace) -> dict[str, Any]:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    async with Relay(args.to, Shape(rate=args.rate, rtt=args.rtt), args.listen) as relay:
        place = f"{relay.address.host}:{relay.address.port}"
        print(json.dumps({"address": place}) if args.json else f"listening on {place}", flush=True)
        await over.wait()
        return relay.figures()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a relay until it is interrupted."""
    parser = argparse.ArgumentParser(prog="benchmarks.link", description=__doc__)
    parser.add_argument(
        "--rate", type=parse_rate, default=0.0, help="1kbit to 100gbit, such as 10mbit; 0: none (default)"
    )
    parser.add_argument(
        "--rtt", type=parse_seconds, default=0.0, help="round trip such as 50ms or 0.2s (default: none)"
    )
    parser.add_argument(
        "--listen", type=address, default=ANYWHERE, metavar="HOST:PORT", help="default: a free port"
    )
    parser.add_argument("--to", type=_target, required=True, metavar="HOST:PORT", help="the server")
    parser.add_argument(
        "--core", type=between(0, MOST_CORES - 1), metavar="N", help="processor core to be pinned to"
    )
    parser.add_argument("--json", action="store_true", help="address and figures as JSON")
    args = parser.parse_args(argv)
    if args.core is not None:
        try:
            # Only the system knows which there are: the process that started this one may be pinned itself.
            os.sched_setaffinity(0, {args.core})
        except OSError:
            last = (os.cpu_count() or 1) - 1
            parser.error(f"argument --core: {args.core} is none of this machine's cores, 0 to {last}")
    try:
        figures = asyncio.run(_serve(args))
    except OSError as error:  # of --listen: what happens to a connection ends that one alone
        place = f"{args.listen.host}:{args.listen.port}"
        print(f"cannot listen at {place}: {error.strerror}", file=sys.stderr)
        return 1
    if args.json:
        try:
            print(json.dumps(figures), flush=True)
        except BrokenPipeError:  # who wanted them was killed
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        for number, link in enumerate(figures["connections"], 1):
            print(f"connection {number}: {link['up']} bytes there, {link['down']} back")
    return 0


if __name__ == "__main__":
    sys.exit(main())
