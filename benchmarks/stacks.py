"""The ways to move payloads that :mod:`benchmarks.transport` compares, each end a process of its own.

``python -m benchmarks.stacks receive STACK`` listens, prints its port and ends with its standard input.
``... send STACK --port P`` connects, prints a line, reads jobs as JSON lines (``size``, ``count``) and
answers each with a line: the seconds until the receiver has confirmed the last payload, its own CPU
seconds, and the bytes handed to the transport where the stack counts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import itertools
import json
import os
import pathlib
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import uvloop

from benchmarks.bare import CONFIRMED, JOB, BareReceiver, BareSender
from mobillm.formats import Format
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Ack, Bye, Commit, Credit, Data, Open, Opened, derive_key
from mobillm.transport import Connection, connect, device_context, serve, server_context

__all__ = ["LOOPS", "STACKS"]

HOST = "localhost"  # as in the certificate
ADDRESS = "127.0.0.1"
TOKEN = "transport"
TIMEOUTS = Timeouts(keepalive=None)
LIMITS = Limits()
BATCH = 16 * 2**20  # payload bytes of a batch, or one payload if that is longer
POOL = 64 * 2**20  # distinct bytes that are sent, so that they come from memory, as tensors do

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}

# Sends payloads of a size, so many, and returns the bytes handed to the transport; None where nobody counts.
Job = Callable[[int, int], Awaitable[int | None]]


class Tls(NamedTuple):
    """Certificates for TLS 1.3, from ``mobillm certs``."""

    directory: pathlib.Path

    def read(self, name: str) -> bytes:
        """Return the content of a PEM file."""
        return (self.directory / name).read_bytes()

    def server(self) -> ssl.SSLContext:
        """Return the receiver's context."""
        return server_context(self.directory / "server.pem", self.directory / "server.key")

    def device(self) -> ssl.SSLContext:
        """Return the sender's context."""
        return device_context(self.directory / "ca.pem")


class Stack(NamedTuple):
    """Two ends of one way to move payloads.

    Attributes:
        receive: listens; returns the port and what has to be kept for as long as it should.
        send: connects to a port and yields what does a job.

    """

    receive: Callable[[Tls | None], Awaitable[tuple[int, object]]]
    send: Callable[[int, Tls | None], contextlib.AbstractAsyncContextManager[Job]]


@functools.lru_cache(maxsize=1)
def pool(size: int) -> list[memoryview]:
    """Return distinct payloads of a size."""
    block = memoryview(os.urandom(max(POOL, size)))
    return [block[start : start + size] for start in range(0, len(block) - size + 1, size)]


@functools.lru_cache(maxsize=1)
def bytes_pool(size: int) -> list[bytes]:
    """Return distinct payloads of a size as the objects that others ask for."""
    return [bytes(payload) for payload in pool(size)]


# The ceiling.


async def bare_receive(tls: Tls | None, *, checksum: bool) -> tuple[int, object]:
    """Listen with nothing but a buffer."""
    server = await asyncio.get_running_loop().create_server(
        lambda: BareReceiver(checksum), ADDRESS, 0, ssl=None if tls is None else tls.server()
    )
    return server.sockets[0].getsockname()[1], server


@contextlib.asynccontextmanager
async def bare_send(port: int, tls: Tls | None, *, checksum: bool) -> AsyncIterator[Job]:
    """Write to a socket and nothing else."""
    transport, sender = await asyncio.get_running_loop().create_connection(
        lambda: BareSender(checksum),
        ADDRESS,
        port,
        ssl=None if tls is None else tls.device(),
        server_hostname=None if tls is None else HOST,
    )

    async def job(size: int, count: int) -> None:
        await sender.send(pool(size), count)

    yield job
    transport.close()


# Ours.


async def take(connection: Connection) -> None:
    """Drop what comes, grant it again at the end of each batch, and acknowledge the batch."""
    async for message in connection:
        if isinstance(message, Open):
            connection.post(Opened(stream=1, session=bytes(16), epoch=1))
            connection.post(Credit(stream=1, offset=LIMITS.queue, last=2**62))
        elif isinstance(message, Commit):
            offset = connection.endpoint.credit_used(1) + LIMITS.queue
            connection.post(Credit(stream=1, offset=offset, last=2**62))
            connection.post(Ack(stream=1, received=message.seq, durable=0, applied=0))
        elif isinstance(message, Bye):
            return


async def mobillm_receive(tls: Tls | None) -> tuple[int, object]:
    """Listen as a server does, without sessions."""
    context = None if tls is None else tls.server()
    keys = {"default": derive_key(TOKEN)}
    server = await serve(take, f"{ADDRESS}:0", keys=keys, tls=context, timeouts=TIMEOUTS)
    return server.address.port, server


@contextlib.asynccontextmanager
async def mobillm_send(port: int, tls: Tls | None) -> AsyncIterator[Job]:
    """Send payloads as tensors of batches, in parts, as a device's session does."""
    where = f"mobillm://{ADDRESS}:{port}" if tls is None else f"mobillms://{HOST}:{port}"
    context = None if tls is None else tls.device()
    async with connect(where, token=TOKEN, tls=context, timeouts=TIMEOUTS) as connection:
        connection.post(Open(stream=1, session=bytes(16)))
        while not isinstance(await connection.recv(), Credit):
            pass
        batches = itertools.count(1)

        async def job(size: int, count: int) -> int:
            before = connection.bytes_sent
            payloads = itertools.cycle(pool(size))
            each = min(1000, max(1, BATCH // size))
            seq = 0
            for start in range(0, count, each):
                seq = next(batches)
                tensors = [next(payloads) for _ in range(min(each, count - start))]
                await send_batch(connection, seq, tensors)
            received = 0
            while received < seq:
                message = await connection.recv()
                received = message.received if isinstance(message, Ack) else received
            return connection.bytes_sent - before

        yield job


async def send_batch(connection: Connection, seq: int, payloads: Sequence[memoryview]) -> None:
    """Send payloads as the tensors of one batch."""
    chunk = connection.endpoint.limits.chunk
    for tensor, payload in enumerate(payloads):
        for offset in range(0, len(payload), chunk):
            await connection.send(
                Data(
                    stream=1,
                    seq=seq,
                    tensor=tensor,
                    offset=offset,
                    format=None if offset else int(Format.I32),
                    block=None if offset else 0,
                    shape=None if offset else (len(payload) // 4,),
                    payload=payload[offset : offset + chunk],
                )
            )
    tensors, size, checksum = connection.endpoint.batch_summary(1)
    await connection.send(Commit(stream=1, seq=seq, tensors=tensors, size=size, checksum=checksum, samples=1))


# Others.

WEBSOCKETS: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}


async def websockets_receive(tls: Tls | None) -> tuple[int, object]:
    """Listen for messages; compression off."""
    from websockets.asyncio import server

    async def handle(connection: server.ServerConnection) -> None:
        left = 0
        async for message in connection:
            if left:
                left -= 1
                if not left:
                    await connection.send(CONFIRMED)
            elif isinstance(message, bytes):
                left = JOB.unpack(message)[1]

    context = None if tls is None else tls.server()
    listening = await server.serve(handle, ADDRESS, 0, ssl=context, **WEBSOCKETS)
    return next(iter(listening.sockets)).getsockname()[1], listening


@contextlib.asynccontextmanager
async def websockets_send(port: int, tls: Tls | None) -> AsyncIterator[Job]:
    """Send each payload as one message; compression off."""
    from websockets.asyncio import client

    uri = f"ws://{HOST}:{port}" if tls is None else f"wss://{HOST}:{port}"
    context = None if tls is None else tls.device()
    family = socket.AF_INET
    async with client.connect(uri, ssl=context, family=family, **WEBSOCKETS) as connection:

        async def job(size: int, count: int) -> None:
            payloads = itertools.cycle(bytes_pool(size))
            await connection.send(JOB.pack(size, count))
            for _ in range(count):
                await connection.send(next(payloads))
            await connection.recv()

        yield job


GRPC = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


async def grpc_receive(tls: Tls | None) -> tuple[int, object]:
    """Listen for streams of bytes, without serialization."""
    import grpc.aio

    async def count(requests: AsyncIterator[bytes], context: object) -> bytes:
        async for _ in requests:
            pass
        return CONFIRMED

    server = grpc.aio.server(options=GRPC)
    methods = {"Send": grpc.stream_unary_rpc_method_handler(count)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("transport", methods),))
    if tls is None:
        port = server.add_insecure_port(f"{ADDRESS}:0")
    else:
        pair = (tls.read("server.key"), tls.read("server.pem"))
        port = server.add_secure_port(f"{ADDRESS}:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    return port, server


@contextlib.asynccontextmanager
async def grpc_send(port: int, tls: Tls | None) -> AsyncIterator[Job]:
    """Send each payload as one message of a stream, without serialization."""
    import grpc.aio

    if tls is None:
        channel = grpc.aio.insecure_channel(f"{ADDRESS}:{port}", options=GRPC)
    else:
        credentials = grpc.ssl_channel_credentials(tls.read("ca.pem"))
        channel = grpc.aio.secure_channel(f"{HOST}:{port}", credentials, options=GRPC)
    async with channel:
        call = channel.stream_unary("/transport/Send")

        async def job(size: int, count: int) -> None:
            payloads = bytes_pool(size)

            async def requests() -> AsyncIterator[bytes]:
                for number in range(count):
                    yield payloads[number % len(payloads)]

            await call(requests())

        yield job


STACKS = {
    "ceiling": Stack(
        functools.partial(bare_receive, checksum=False), functools.partial(bare_send, checksum=False)
    ),
    "ceiling+crc": Stack(
        functools.partial(bare_receive, checksum=True), functools.partial(bare_send, checksum=True)
    ),
    "mobillm": Stack(mobillm_receive, mobillm_send),
    "websockets": Stack(websockets_receive, websockets_send),
    "grpcio": Stack(grpc_receive, grpc_send),
}


async def run(args: argparse.Namespace) -> None:
    """Be one end until the standard input ends."""
    stack, tls = STACKS[args.stack], None if args.tls is None else Tls(args.tls)
    if args.role == "receive":
        port, kept = await stack.receive(tls)
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        del kept
        return
    async with stack.send(args.port, tls) as job:
        print(flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            size, count = json.loads(line)
            start, cpu = time.perf_counter(), time.process_time()
            sent = await job(size, count)
            seconds, used = time.perf_counter() - start, time.process_time() - cpu
            print(json.dumps({"seconds": seconds, "cpu": used, "sent": sent}), flush=True)


def main() -> None:
    """Read the command line and be that end, on one core."""
    parser = argparse.ArgumentParser(prog="benchmarks.stacks", description=__doc__)
    parser.add_argument("role", choices=("receive", "send"))
    parser.add_argument("stack", choices=STACKS)
    parser.add_argument("--loop", choices=LOOPS, default="uvloop")
    parser.add_argument("--tls", type=pathlib.Path, metavar="DIR", help="certificates; default: plain TCP")
    parser.add_argument("--port", type=int, help="where the receiver listens")
    parser.add_argument("--core", type=int, help="the only core to run on; default: any")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    with asyncio.Runner(loop_factory=LOOPS[args.loop]) as runner:
        runner.run(run(args))


if __name__ == "__main__":
    main()
