"""What the specification demands of a connection, on real sockets, byte by byte."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

import msgpack
import pytest

from mobillm.errors import ConnectionClosedError, ErrorCode
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Eval, FrameBuffer, FrameType, Ping, Pong, derive_key
from mobillm.protocol.auth import Transcript
from mobillm.transport import Connection
from mobillm.transport.tls import device_context
from tests.conftest import Run
from tests.helpers import TENANT, make_batch, make_data, raw_frame
from tests.transport.wire import TOKEN, attach, device, pair, server


async def dial(where: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a bare socket to a server."""
    return await asyncio.open_connection(where.address.host, where.address.port)


async def frame_from(reader: asyncio.StreamReader) -> bytes:
    """Read the bytes of one frame."""
    header = await reader.readexactly(32)
    return header + await reader.readexactly(int.from_bytes(header[8:12], "big"))


async def log_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[bytes]:
    """Run the handshake by hand; return the four frames."""
    fields = {"min_version": 1, "max_version": 1, "tenant": TENANT, "nonce": bytes(16), "grease": [1]}
    hello = raw_frame(0x01, msgpack.packb(fields))
    # Unknown optional frames go between all others, and each byte may come alone.
    for octet in raw_frame(0x8A, b"grease") + hello + raw_frame(0xBF, b"\xc1", stream=7, flags=0xFF00):
        writer.write(bytes([octet]))
    challenge = await frame_from(reader)
    transcript = Transcript()
    transcript.add(1, hello[32:])
    transcript.add(2, challenge[32:])
    auth = raw_frame(0x03, {"mac": transcript.device_proof(derive_key(TOKEN))})
    writer.write(auth)
    return [hello, challenge, auth, await frame_from(reader)]


def test_a_device_by_hand(run: Run) -> None:
    """[T-1] [T-3] [T-5] [H-1] [V-3] [V-14] The server is silent, then reads single bytes with grease."""

    async def main() -> None:
        async with await server() as listening:
            reader, writer = await dial(listening)
            try:
                async with asyncio.timeout(0.05):
                    assert await reader.read(1) == b"?"
            except TimeoutError:
                pass  # as it should be
            frames = await log_in(reader, writer)
            assert [data[3] for data in frames] == [1, 2, 3, 4]
            writer.write(raw_frame(0x30, {"data": b"12345678", "unknown": None}))
            pong = await frame_from(reader)
            assert pong[3] == FrameType.PONG
            assert msgpack.unpackb(pong[32:])["data"] == b"12345678"
            writer.close()

    run(main())


def test_fresh_nonces_and_no_token_on_the_wire(run: Run) -> None:
    """[H-3] [H-12] [Y-2] [Y-4] Two connections share no nonce, and neither token nor key is sent."""

    async def main() -> None:
        async with await server() as listening:
            nonces: list[bytes] = []
            for _ in range(2):
                reader, writer = await dial(listening)
                frames = await log_in(reader, writer)
                nonces.append(msgpack.unpackb(frames[1][32:])["nonce"])
                assert not any(TOKEN.encode() in data or derive_key(TOKEN) in data for data in frames)
                writer.close()
            assert len(set(nonces)) == 2
            assert {len(nonce) for nonce in nonces} == {16}
        hellos: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hellos.append(await frame_from(reader))
            writer.close()

        fake = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = fake.sockets[0].getsockname()[1]
        for _ in range(2):
            try:
                await device(f"127.0.0.1:{port}")
            except ConnectionClosedError:
                pass
        fake.close()
        await fake.wait_closed()
        assert len({msgpack.unpackb(data[32:])["nonce"] for data in hellos}) == 2
        assert not any(TOKEN.encode() in data for data in hellos)

    run(main())


def test_tls_contexts_do_not_compress(run_once: Run) -> None:
    """[T-7] [Y-2] [Y-3] TLS 1.3, without compression; Python has no early data to switch on."""
    context = device_context()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.options & ssl.OP_NO_COMPRESSION
    assert not hasattr(context, "max_early_data")


def test_nothing_is_compressed_below_the_protocol(run_once: Run) -> None:
    """[Y-3] [C-1] [V-12] [F-8] A batch of zeros takes all its bytes; skipped frames are not charged."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            before = near.bytes_sent
            data = make_data(1, 0, bytes(60_000))
            near.post(data)
            assert near.bytes_sent - before == data.frame_size() > 60_000
            used = far.endpoint.credit_used(1)
            assert near._transport is not None
            near._transport.write(raw_frame(0x90, bytes(4000), stream=1))
            near.post(Ping(data=bytes(8)))
            assert (await far.recv()) == data
            assert far.endpoint.credit_used(1) == used + data.frame_size()

    run_once(main())


def test_tcp_nodelay(run: Run) -> None:
    """[T-11] Both ends switch Nagle's algorithm off."""

    async def main() -> None:
        async with pair() as ends:
            for end in ends:
                assert end._transport is not None
                sock = end._transport.get_extra_info("socket")
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_one_ping_at_a_time_and_stray_pongs(run: Run) -> None:
    """[K-1] [K-8] [K-9] [K-10] A second PING waits for the first's answer; a stray PONG is nothing."""

    async def main() -> None:
        async with pair() as (near, far):
            far.post(Pong(data=b"whatever", time=1))
            near.ping()
            before = near.bytes_sent
            near.ping()
            assert near.bytes_sent == before
            for end in (near, far):
                end.ping()
                while end.keepalive.round_trip is None:
                    await asyncio.sleep(0.002)
            assert near.is_open
            assert far.is_open

    run(main())


def test_pings_ahead_of_a_refused_frame_are_answered(run: Run) -> None:
    """[T-3] [K-8] [F-7] PING, PING and a frame that is refused in one segment: two PONG, then ERROR."""

    async def main() -> None:
        async with await server() as listening:
            reader, writer = await dial(listening)
            await log_in(reader, writer)
            pings = [raw_frame(0x30, msgpack.packb({"data": bytes([number] * 8)})) for number in (1, 2)]
            writer.write(b"".join([*pings, raw_frame(0x7F, b""), *pings]))
            answers = [await frame_from(reader) for _ in range(3)]
            assert [answer[3] for answer in answers] == [0x31, 0x31, 0x40]
            assert [msgpack.unpackb(answer[32:])["data"][0] for answer in answers[:2]] == [1, 2]
            assert await reader.read() == b""
            writer.close()

    run(main())


async def _talk(connection: Connection) -> None:
    """Send something now and then until that fails."""
    while True:
        connection.post(Eval(stream=1))
        await asyncio.sleep(0.01)


def test_silence_counts_from_the_last_byte_read(run_once: Run) -> None:
    """[K-2] [K-11] [K-12] A peer that only takes our bytes is dead; one that sends anything is not."""

    async def main() -> None:
        async with pair(timeouts=Timeouts(keepalive=0.08, keepalive_reply=0.08, drain=0.2)) as (near, far):
            await attach(near, far)
            assert far._transport is not None
            for _ in range(8):
                await asyncio.sleep(0.04)
                far._transport.write(raw_frame(0x85, b""))  # bytes, though no message
            assert near.is_open
            far._pause(True)
            with pytest.raises(ConnectionClosedError) as caught:
                await _talk(near)
            assert caught.value.code == ErrorCode.IDLE_TIMEOUT
            far.abort()

    run_once(main())


def test_frames_are_written_whole(run: Run) -> None:
    """[K-24] [T-3] Several senders at once: what arrives are whole frames, each stream's in order."""

    async def main() -> None:
        async with pair() as (near, far):
            await attach(near, far)
            parts = make_batch(1, size=40_000, part=1_000)

            async def chatter() -> None:
                for _ in range(50):
                    near.post(Eval(stream=1))
                    await asyncio.sleep(0)

            async def upload() -> None:
                for message in parts:
                    await near.send(message)

            await asyncio.gather(upload(), chatter())
            seen = [await far.recv() for _ in range(len(parts) + 50)]
            assert [message for message in seen if message.type is not FrameType.EVAL] == parts

    run(main())


def test_a_refusal_reaches_a_peer_that_is_still_sending(run: Run) -> None:
    """[E-8] [E-2] [F-7] The last frame says why, though many bytes were never looked at."""

    async def main() -> None:
        async with await server(limits=Limits()) as listening:
            reader, writer = await dial(listening)
            await log_in(reader, writer)
            writer.write(raw_frame(0x7E, {}) + bytes(300_000))
            data = await frame_from(reader)
            (frame,) = FrameBuffer(4096).receive_data(data)
            assert frame.type is FrameType.ERROR
            assert msgpack.unpackb(frame.meta)["code"] == ErrorCode.UNSUPPORTED
            assert await reader.read() == b""
            writer.close()

    run(main())
