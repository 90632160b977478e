"""Rows 1 to 17 of the fault table: what happens to a connection before it is anybody's."""

from __future__ import annotations

import asyncio
import datetime
import os
import pathlib
import ssl
import statistics
import time
from typing import Any

import msgpack
import pytest

from mobillm.conformance.samples import tiny_batch, valid
from mobillm.conformance.wire import device_proof, frame, raw_frame, resigned
from mobillm.errors import ConnectionClosedError, ErrorCode
from mobillm.options import Timeouts
from mobillm.protocol import Challenge, Endpoint, Error, FrameType, Reject, Welcome
from mobillm.transport import Address, device_context, server_context
from tests.conftest import Run
from tests.faults.certificates import Certificates
from tests.faults.scene import KEYS, TENANTS, Scene, dial, eventually, scene, send, uplink_to

HASTY = Timeouts(connect=5.0, handshake=0.4, request=10.0, keepalive=None, drain=0.3)

# What is allowed before it is known who connects; from the limits that the specification proposes.
HALF_OPEN_PER_ADDRESS = 8


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Return certificates for the whole file."""
    return Certificates(tmp_path_factory.mktemp("tls"))


async def ends_within(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """Return what comes until the end of the stream, which must come in time."""
    async with asyncio.timeout(seconds):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def plain(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect without any protocol."""
    return await asyncio.open_connection(address.host, address.port)


@pytest.mark.parametrize("secure", [False, True])
def test_row_01_silent_connection(
    run_once: Run, tmp_path: pathlib.Path, certificates: Certificates, secure: bool
) -> None:
    """Nothing is sent: closed at the deadline of the handshake, TLS included."""

    async def main() -> None:
        tls = certificates.contexts() if secure else None
        async with scene(tmp_path, timeouts=HASTY, tls=tls) as stage:
            start = time.monotonic()
            reader, writer = await plain(stage.address)
            await ends_within(reader, 2.0)
            assert 0.3 <= time.monotonic() - start <= 1.5
            writer.close()
            await eventually(lambda: stage.server.connections == 1)

    run_once(main())


def test_row_02_one_byte_after_another(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A HELLO that trickles in does not move the deadline."""

    async def main() -> None:
        async with scene(tmp_path, timeouts=HASTY) as stage:
            start = time.monotonic()
            reader, writer = await plain(stage.address)
            ending = asyncio.create_task(ends_within(reader, 3.0))
            for byte in raw_frame(FrameType.HELLO, stage.lab.hello()):
                if ending.done():
                    break
                writer.write(bytes([byte]))
                await asyncio.sleep(0.03)
            await ending
            assert 0.3 <= time.monotonic() - start <= 1.5
            writer.close()

    run_once(main())


def test_row_03_flood_of_half_open_logins(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Connections that do not log in are capped for each address; those that are in are left alone."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            pairs = [await plain(stage.address) for _ in range(100)]
            endings = [asyncio.create_task(ends_within(reader, 20.0)) for reader, _ in pairs]
            await asyncio.wait(endings, timeout=1.0)
            left = sum(not ending.done() for ending in endings)
            for _, writer in pairs:
                writer.transport.abort()
            await asyncio.gather(*endings, return_exceptions=True)
            assert left <= HALF_OPEN_PER_ADDRESS, f"{left} half-open connections of one address were kept"
            await eventually(lambda: stage.server.connections == 1)
            (await stage.lab.open()).abort()  # there is room again

    run_once(main())


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", bytes(64), b"\x16\x03\x01\x02\x00" * 9]
)
def test_row_04_other_protocols(run_once: Run, tmp_path: pathlib.Path, data: bytes) -> None:
    """HTTP, zeros and TLS at a plain port: refused by the magic, never taken for a length."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.connect()
            await peer.send(data)
            await peer.refused(ErrorCode.PROTOCOL)

    run_once(main())


def test_row_04_plain_at_a_tls_port(
    run_once: Run, tmp_path: pathlib.Path, certificates: Certificates
) -> None:
    """A HELLO at a TLS port is no TLS: closed without an answer of our protocol."""

    async def main() -> None:
        async with scene(tmp_path, tls=certificates.contexts()) as stage:
            reader, writer = await plain(stage.address)
            writer.write(raw_frame(FrameType.HELLO, stage.lab.hello()))
            assert b"ML" not in await ends_within(reader, 2.0)
            writer.close()

    run_once(main())


def test_row_05_old_tls(run_once: Run, tmp_path: pathlib.Path, certificates: Certificates) -> None:
    """TLS 1.2 is refused in the TLS handshake."""

    async def main() -> None:
        async with scene(tmp_path, tls=certificates.contexts()) as stage:
            old = ssl.create_default_context(cafile=certificates.ca)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(stage.address.host, stage.address.port, ssl=old)

    run_once(main())


@pytest.mark.parametrize("kind", ["none", "stranger", "expired"])
def test_row_06_device_certificate(
    run_once: Run, tmp_path: pathlib.Path, certificates: Certificates, kind: str
) -> None:
    """No certificate, one of another authority, an expired one: refused, and the device says why."""
    options: dict[str, pathlib.Path] = {}
    if kind == "stranger":
        pair = certificates.issue(certificates.stranger, kind, "phone.example")
        options = {"certificate": pair[0], "key": pair[1]}
    elif kind == "expired":
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        pair = certificates.issue(certificates.authority, kind, "phone.example", not_after=past)
        options = {"certificate": pair[0], "key": pair[1]}

    async def main() -> None:
        async with scene(tmp_path, tls=certificates.contexts(mutual=True)) as stage:
            context = device_context(certificates.ca, **options)
            with pytest.raises(ConnectionClosedError, match=r"certificate|TLS"):
                await dial(stage.address, tls=context)
            await eventually(lambda: stage.server.connections == 1)

    run_once(main())


def test_row_06_no_hot_retry(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server that hangs up before WELCOME, as one that refuses certificates does, is not stormed."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            calls = 0

            async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                nonlocal calls
                calls += 1
                writer.close()

            refusing = await asyncio.start_server(hang_up, "127.0.0.1", 0)
            port = refusing.sockets[0].getsockname()[1]
            where = [stage.address]
            uplink = uplink_to(lambda: where[0], patience=2.0)
            await uplink.start()
            where[0] = Address("127.0.0.1", port)
            uplink.session.connection.abort()
            with pytest.raises(ConnectionClosedError):
                await send(uplink, 1, 1)
            refusing.close()
            await refusing.wait_closed()
            await uplink.close()
            assert 1 <= calls <= 16  # pauses that double from 0.2 s: about five in two seconds

    run_once(main())


@pytest.mark.parametrize("kind", ["unknown authority", "another name"])
def test_row_07_wrong_server(
    run_once: Run, tmp_path: pathlib.Path, certificates: Certificates, kind: str
) -> None:
    """A server that is not the right one learns nothing: no byte of HELLO is sent."""
    if kind == "another name":
        pair = certificates.issue(certificates.authority, "elsewhere", "example.org")
        ca = certificates.ca
    else:
        pair, ca = certificates.server, certificates.other_ca

    async def main() -> None:
        seen: list[bytes] = []

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.read())
            writer.close()

        far = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=server_context(*pair))
        address = Address("127.0.0.1", far.sockets[0].getsockname()[1], True)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the listener's TLS failed
        with pytest.raises(ConnectionClosedError, match="CERTIFICATE_VERIFY_FAILED"):
            await dial(address, tls=device_context(ca))
        far.close()
        await far.wait_closed()
        assert b"".join(seen) == b""

    run_once(main())


@pytest.mark.parametrize("names", [[], ["h2"]])
def test_row_08_other_alpn(
    run_once: Run, tmp_path: pathlib.Path, certificates: Certificates, names: list[str]
) -> None:
    """A TLS peer that names another protocol or none is refused before it can log in."""

    async def main() -> None:
        async with scene(tmp_path, tls=certificates.contexts()) as stage:
            context = ssl.create_default_context(cafile=certificates.ca)
            if names:
                context.set_alpn_protocols(names)
            reader, writer = await asyncio.open_connection(
                stage.address.host, stage.address.port, ssl=context
            )
            answer = await ends_within(reader, 2.0)
            assert answer[:2] == b"ML"
            assert answer[3] == FrameType.REJECT
            writer.close()

    run_once(main())


def test_row_09_bytes_before_tls(run_once: Run, tmp_path: pathlib.Path, certificates: Certificates) -> None:
    """What comes before TLS is no part of the connection: TLS fails, nothing is taken over from it."""

    async def main() -> None:
        async with scene(tmp_path, tls=certificates.contexts()) as stage:
            reader, writer = await plain(stage.address)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            context = device_context(certificates.ca)
            hello = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            with pytest.raises(ssl.SSLWantReadError):
                hello.do_handshake()
            writer.write(raw_frame(FrameType.HELLO, stage.lab.hello()) + outgoing.read())
            incoming.write(await ends_within(reader, 2.0))
            incoming.write_eof()
            with pytest.raises(ssl.SSLError):
                hello.do_handshake()
            writer.close()

    run_once(main())


def nested(depth: int) -> bytes:
    """Return a map of maps."""
    return b"\x81\xa1x" * depth + b"\x80"


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        (msgpack.packb({"tenant": "SECRET" * 900}), ErrorCode.FRAME_SIZE),
        (nested(50), ErrorCode.DECODE),
        (nested(1200), ErrorCode.DECODE),
        (msgpack.packb(["SECRET"]), ErrorCode.DECODE),
        (msgpack.packb("SECRET"), ErrorCode.DECODE),
        (b"\xc1SECRET", ErrorCode.DECODE),
    ],
)
def test_row_10_hello_that_is_none(
    run_once: Run, tmp_path: pathlib.Path, meta: bytes, code: ErrorCode
) -> None:
    """A HELLO that is too long, too deep or no map is refused, and nothing of it is sent back."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.connect()
            await peer.send(raw_frame(FrameType.HELLO, meta))
            reject = await peer.refused(code)
            assert "SECRET" not in reject.text

    run_once(main())


def test_row_11_anything_but_hello_first(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Each other type of frame as the first one is refused."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            for kind in FrameType:
                if kind in (FrameType.HELLO, FrameType.ERROR):
                    continue
                peer = await stage.lab.connect()
                stream = 0 if kind in _ON_STREAM_0 else 1
                data = valid(kind, stream=stream)
                await peer.send(data)
                await peer.refused(ErrorCode.PROTOCOL)
                peer.abort()

    run_once(main())


_ON_STREAM_0 = (
    FrameType.CHALLENGE, FrameType.AUTH, FrameType.WELCOME, FrameType.REJECT, FrameType.PING, FrameType.PONG,
    FrameType.GOAWAY, FrameType.BYE,
)  # fmt: skip


def test_row_12_no_common_version(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The server refuses and says which version it speaks."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.connect()
            await peer.send(raw_frame(FrameType.HELLO, stage.lab.hello(min_version=7, max_version=9)))
            reject = await peer.refused(ErrorCode.UNSUPPORTED_VERSION)
            assert "speaks 1" in reject.text

    run_once(main())


@pytest.mark.parametrize("changes", [{"max_version": 2}, {"caps": ["fast"]}])
def test_row_13_downgrade_in_the_middle(
    run_once: Run, tmp_path: pathlib.Path, changes: dict[str, Any]
) -> None:
    """A HELLO that lost a version or a capability on its way does not fit the device's proof."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.connect()
            nonce = os.urandom(16)
            sent = stage.lab.hello(nonce=nonce, **changes)
            arrived = stage.lab.hello(nonce=nonce)
            await stage.lab.challenged(peer, arrived)
            await stage.lab.sign(peer, sent, peer.body, 0)
            await peer.refused(ErrorCode.AUTH_FAILED)

    run_once(main())


async def refusal(stage: Scene, tenant: str, key: bytes) -> tuple[Reject | Error, bytes]:
    """Log in with a key; return the REJECT and its body."""
    peer = await stage.lab.connect()
    hello = stage.lab.hello(tenant=tenant)
    await stage.lab.challenged(peer, hello)
    await peer.send(frame(FrameType.AUTH, {"mac": device_proof(key, hello, peer.body)}))
    reject = await peer.refused(ErrorCode.AUTH_FAILED)
    return reject, peer.body


def test_row_14_wrong_token_and_unknown_tenant(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Both are answered by the same bytes."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            wrong, first = await refusal(stage, TENANTS[0][0], bytes(32))
            unknown, second = await refusal(stage, "nobody", bytes(32))
            known, third = await refusal(stage, TENANTS[1][0], KEYS[TENANTS[0][0]])
            assert first == second == third
            assert wrong.retry_after is unknown.retry_after is known.retry_after is None

    run_once(main())


def test_row_14_same_time() -> None:
    """A wrong token and an unknown tenant take the server the same time."""
    names = (TENANTS[0][0], "nobody")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(150):
        for name in names:
            device = Endpoint.device(name, bytes(32), nonce=os.urandom(16))
            server = Endpoint.server(KEYS, nonce=os.urandom(16))
            for buffer in device.data_to_send():
                server.receive_data(buffer)
            for buffer in server.data_to_send():
                device.receive_data(buffer)
            auth = b"".join(bytes(part) for part in device.data_to_send())
            start = time.perf_counter()
            server.receive_data(auth)
            times[name].append(time.perf_counter() - start)
            assert server.is_closed()
    known, unknown = (statistics.median(times[name]) for name in names)
    assert 0.5 < known / unknown < 2.0


def test_row_15_brute_force(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Guessing is slowed down: in three seconds few guesses of one address are looked at."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            guesses = 0

            async def guess() -> None:
                nonlocal guesses
                while True:
                    peer = await stage.lab.connect()
                    hello = stage.lab.hello()
                    await peer.send(raw_frame(FrameType.HELLO, hello))
                    answer = await peer.read()
                    if isinstance(answer, Challenge):
                        await peer.send(frame(FrameType.AUTH, {"mac": os.urandom(32)}))
                        answer = await peer.read()
                        if isinstance(answer, Reject) and answer.code == ErrorCode.AUTH_FAILED:
                            guesses += 1
                    peer.abort()
                    await asyncio.sleep(0.002)

            tasks = [asyncio.create_task(guess()) for _ in range(3)]
            await asyncio.wait(tasks, timeout=3.0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert guesses <= 40, f"{guesses} guesses of one address in three seconds"

    run_once(main())


def test_row_16_recorded_login(run_once: Run, tmp_path: pathlib.Path) -> None:
    """HELLO and AUTH of a login that was good are no good for another one."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            peer = await stage.lab.connect()
            hello = stage.lab.hello()
            challenge = await stage.lab.challenged(peer, hello)
            auth = frame(FrameType.AUTH, {"mac": device_proof(stage.lab.key(), hello, peer.body)})
            await peer.send(auth)
            await peer.expect(Welcome)
            again = await stage.lab.connect()
            assert (await stage.lab.challenged(again, hello)).nonce != challenge.nonce
            await again.send(resigned(auth))
            await again.refused(ErrorCode.AUTH_FAILED)

    run_once(main())


def test_row_17_another_tenants_session(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A session of another tenant is as unknown as one that does not exist; its names cannot be guessed."""

    async def main() -> None:
        async with scene(tmp_path) as stage:
            mine = await stage.lab.attach()
            await mine.submit(tiny_batch(1))
            names = {mine.opened.session}
            for number in (2, 3):
                names.add((await stage.lab.attach(mine.peer, number=number)).opened.session)
            assert len(names) == 3
            assert all(len(name) == 16 for name in names)
            assert len({byte for name in names for byte in name}) > 16  # no counter, no clock
            thief = await stage.lab.open(1)
            bodies = []
            for number, name in ((1, mine.opened.session), (2, bytes(16))):
                await thief.send(frame(FrameType.OPEN, {"session": name}, stream=number))
                await thief.refused_on(number, ErrorCode.SESSION_UNKNOWN)
                bodies.append(thief.body)
            assert bodies[0] == bodies[1]
            await mine.acked(applied=1)  # and the owner goes on

    run_once(main())
