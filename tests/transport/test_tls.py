"""TLS: version 1.3, our ALPN name, certificates on both sides, and mixed-up ends."""

from __future__ import annotations

import asyncio
import pathlib
import ssl

import pytest
import trustme

from mobillm.errors import ConfigError, ConnectionClosedError
from mobillm.options import Limits, Timeouts
from mobillm.protocol import Ping
from mobillm.transport import Connection, device_context, server_context
from tests.conftest import Run
from tests.transport.wire import attach, device, eventually, given_up_once_nothing_moves, idle, pair, server

SHORT = Timeouts(connect=2.0, handshake=1.0, keepalive=None, drain=1.0)


class Files:
    """Certificates on the disk, made by two authorities."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        authority, other = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = folder / "ca.pem", folder / "other.pem"
        authority.cert_pem.write_to_path(self.ca)
        other.cert_pem.write_to_path(self.other_ca)
        self.server = self._issue(authority, "server", "127.0.0.1")
        self.device = self._issue(authority, "device", "phone.example")

    def _issue(self, authority: trustme.CA, name: str, identity: str) -> tuple[pathlib.Path, pathlib.Path]:
        issued = authority.issue_cert(identity)
        certificate, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        issued.cert_chain_pems[0].write_to_path(certificate)
        issued.private_key_pem.write_to_path(key)
        return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return certificates for the whole file."""
    return Files(tmp_path_factory.mktemp("tls"))


def test_tls_13_with_our_alpn_name(run: Run, files: Files, no_fd_leak: None) -> None:
    """[T-2] [T-7] [T-8] Both ends agree on TLS 1.3, and the connection works."""

    async def main() -> None:
        async with await server(tls=server_context(*files.server), address="mobillms://127.0.0.1:0") as far:
            assert str(far.address).startswith("mobillms://")
            async with device(far, tls=device_context(files.ca)) as connection:
                assert connection._transport is not None
                tls = connection._transport.get_extra_info("ssl_object")
                assert tls.version() == "TLSv1.3"
                connection.ping()
                await eventually(lambda: connection.keepalive.round_trip is not None)
            await eventually(lambda: far.connections == 0)

    run(main())


def test_keepalive_on_a_slow_link(run: Run, files: Files) -> None:
    """[K-30] What waits below TLS, where we cannot see it, is ahead of the PING, too."""
    timeouts = Timeouts(keepalive=0.15, keepalive_reply=0.3, drain=0.5)
    contexts = server_context(*files.server), device_context(files.ca)

    async def main() -> None:
        async with pair(timeouts=timeouts, tls=contexts) as (near, far):
            await attach(near, far)
            await given_up_once_nothing_moves(near, far)

    run(main())


def test_wrong_authority(run: Run, files: Files) -> None:
    """[T-9] A server whose certificate is not trusted is not talked to."""

    async def main() -> None:
        async with await server(tls=server_context(*files.server), timeouts=SHORT) as far:
            with pytest.raises(ConnectionClosedError, match=r"TLS with .* failed: CERTIFICATE_VERIFY_FAILED"):
                await device(far, tls=device_context(files.other_ca), timeouts=SHORT)
            assert far.connections == 0

    run(main())


def test_mutual_tls(run: Run, files: Files) -> None:
    """[T-10] A server that asks for a certificate refuses a device without one."""

    async def main() -> None:
        context = server_context(*files.server, device_ca=files.ca)
        async with await server(tls=context, timeouts=SHORT) as far:
            certificate, key = files.device
            good = device_context(files.ca, certificate=certificate, key=key)
            async with device(far, tls=good) as connection:
                assert connection.is_open
            with pytest.raises(ConnectionClosedError, match="certificate"):
                await device(far, tls=device_context(files.ca), timeouts=SHORT)
            await eventually(lambda: far.connections == 0)

    run(main())


def test_plain_device_at_a_tls_port(run: Run, files: Files, no_fd_leak: None) -> None:
    """[T-2] The device is told what may be wrong; the server keeps no trace of it."""

    async def main() -> None:
        async with await server(tls=server_context(*files.server), timeouts=SHORT) as far:
            with pytest.raises(ConnectionClosedError, match="mobillms://"):
                await device(f"127.0.0.1:{far.address.port}", timeouts=SHORT)
            assert far.connections == 0

    run(main())


def test_tls_device_at_a_plain_port(run: Run, files: Files, no_fd_leak: None) -> None:
    """The device is told that the server does not speak TLS."""

    async def main() -> None:
        async with await server(timeouts=SHORT) as far:
            with pytest.raises(ConnectionClosedError, match="check that the server speaks TLS"):
                await device(
                    f"mobillms://127.0.0.1:{far.address.port}", tls=device_context(files.ca), timeouts=SHORT
                )
            await eventually(lambda: far.connections == 0)

    run(main())


def test_silent_device_at_a_tls_port(run: Run, files: Files, no_fd_leak: None) -> None:
    """A peer that never begins TLS is dropped at the handshake's bound."""

    async def main() -> None:
        timeouts = Timeouts(handshake=0.3, drain=1.0)
        async with await server(tls=server_context(*files.server), timeouts=timeouts) as far:
            reader, writer = await asyncio.open_connection("127.0.0.1", far.address.port)
            async with asyncio.timeout(3.0):
                try:
                    assert await reader.read() == b""
                except ConnectionError:
                    pass  # a reset is an end too
            writer.close()

    run(main())


def test_other_protocols_are_refused(run: Run, files: Files) -> None:
    """[T-8] A TLS peer that does not name our protocol is refused before the handshake."""

    async def main() -> None:
        async with await server(tls=server_context(*files.server), timeouts=SHORT) as far:
            context = ssl.create_default_context(cafile=files.ca)
            reader, writer = await asyncio.open_connection("127.0.0.1", far.address.port, ssl=context)
            answer = await reader.read()
            assert b"mobillm/1" in answer
            writer.close()
            await eventually(lambda: far.connections == 0)

    run(main())


def test_tls_backpressure(run: Run, files: Files) -> None:
    """Many frames go through TLS in both directions."""

    async def flood(connection: Connection) -> None:
        for number in range(300):
            await connection.send(Ping(data=number.to_bytes(8, "big")))
        await idle(connection)

    async def main() -> None:
        async with (
            await server(flood, tls=server_context(*files.server)) as far,
            device(far, tls=device_context(files.ca)) as connection,
        ):
            connection.ping()
            await eventually(lambda: connection.keepalive.round_trip is not None)

    run(main())


def test_files_that_cannot_be_used(files: Files, tmp_path: pathlib.Path) -> None:
    """A missing or malformed file is named."""
    missing, junk = tmp_path / "missing.pem", tmp_path / "junk.pem"
    junk.write_text("no PEM")
    for path in (missing, junk):
        with pytest.raises(ConfigError, match=path.name):
            server_context(path, files.server[1])
        with pytest.raises(ConfigError, match=path.name):
            server_context(*files.server, device_ca=path)
        with pytest.raises(ConfigError, match=path.name):
            device_context(path)
        with pytest.raises(ConfigError, match=path.name):
            device_context(files.ca, certificate=path)


def test_tls_handshakes_under_way_are_bounded(run: Run, files: Files, no_fd_leak: None) -> None:
    """[H-20] Silent peers take the places of the handshake before TLS too; beyond them they are cut off."""

    async def main() -> None:
        limits, timeouts = Limits(handshakes=3), Timeouts(handshake=0.4, keepalive=None, drain=1.0)
        context = server_context(*files.server)
        async with await server(idle, tls=context, limits=limits, timeouts=timeouts) as far:
            inside = await device(far, tls=device_context(files.ca))
            silent = [await asyncio.open_connection("127.0.0.1", far.address.port) for _ in range(12)]
            endings = [asyncio.create_task(reader.read()) for reader, _ in silent]
            await asyncio.wait(endings, timeout=0.2)
            # Three are in the handshake, and three are to be told that there is no room.
            assert sum(ending.done() for ending in endings) == 6
            assert far.connections == 1
            inside.ping()
            await eventually(lambda: inside.keepalive.round_trip is not None)
            await asyncio.gather(*endings, return_exceptions=True)
            await (await device(far, tls=device_context(files.ca))).close()
            for _, writer in silent:
                writer.close()
            await inside.close()
            await eventually(lambda: far.connections == 0)

    run(main())


def test_a_server_that_stops_does_not_wait_for_tls(run: Run, files: Files, no_fd_leak: None) -> None:
    """A peer in the TLS handshake is cut off at the bound of the stop, and leaves nothing open."""

    async def main() -> None:
        timeouts = Timeouts(keepalive=None, drain=0.2)
        far = await server(idle, tls=server_context(*files.server), timeouts=timeouts)
        reader, writer = await asyncio.open_connection("127.0.0.1", far.address.port)
        await asyncio.sleep(0.05)
        await far.close()
        async with asyncio.timeout(1.0):
            assert await reader.read() == b""
        writer.close()

    run(main())
