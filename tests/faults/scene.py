"""What a row of the fault table is played on: a server, raw peers, devices, and a healthy neighbour."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pathlib
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from mobillm.conformance import Lab, Target
from mobillm.device import Client, connect
from mobillm.device.packing import pack_batch
from mobillm.device.uplink import Uplink
from mobillm.options import Limits, Timeouts
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.server.log import ActivationLog
from mobillm.spec import SessionSpec
from mobillm.transport import Address, Server
from tests.faults.neighbour import NEIGHBOUR, Neighbour
from tests.sessions import arrays, spec

__all__ = [
    "BATCHES",
    "KEYS",
    "QUICK",
    "SPEC",
    "TENANTS",
    "Scene",
    "dial",
    "eventually",
    "rest",
    "scene",
    "send",
    "undisturbed",
    "uplink_to",
]

TENANTS = (("alice", "open sesame"), ("bob", "another token"), NEIGHBOUR)
KEYS = {tenant: derive_key(secret) for tenant, secret in TENANTS}
QUICK = Timeouts(connect=5.0, handshake=5.0, request=10.0, keepalive=None, drain=0.3)

BATCHES = 8
SPEC = spec(batches=BATCHES, epochs=2)

_UNDISTURBED: dict[str, bytes] = {}


@dataclasses.dataclass(slots=True)
class Scene:
    """A running server with a neighbour on it.

    Attributes:
        server: the server.
        lab: for raw peers.
        directory: of the server's files.
        neighbour: the healthy tenant.

    """

    server: Server
    lab: Lab
    directory: pathlib.Path
    neighbour: Neighbour

    @property
    def address(self) -> Address:
        """Where the server listens."""
        return self.server.address

    def log_of(self, session: bytes) -> list[int]:
        """Return the batch numbers that the server's log of a session holds."""
        log = ActivationLog(self.directory / "sessions" / session.hex() / "activations.log")
        try:
            return [entry.seq for entry in log.entries]
        finally:
            log.close()


@contextlib.asynccontextmanager
async def scene(
    directory: pathlib.Path,
    *,
    limits: Limits | None = None,
    timeouts: Timeouts = QUICK,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    latency: float = 2.0,
) -> AsyncIterator[Scene]:
    """Run a server and a neighbour; at the end the neighbour must not have noticed anything.

    Args:
        directory: for the server's files.
        limits: of the server.
        timeouts: of the server.
        tls: contexts of the server and of devices; None speaks plain TCP.
        latency: seconds that the neighbour's acknowledgements may take at most.

    """
    address = "127.0.0.1:0" if tls is None else "mobillms://127.0.0.1:0"
    own = None if tls is None else tls[0]
    async with serve(
        address, keys=KEYS, directory=directory, limits=limits, timeouts=timeouts, tls=own
    ) as server:
        theirs = None if tls is None else tls[1]
        lab = Lab(Target(server.address, TENANTS[:2], theirs, bound=5.0))
        async with Neighbour(server.address, tls=theirs, latency=latency) as neighbour:
            try:
                yield Scene(server, lab, directory, neighbour)
            finally:
                await lab.close()
        await eventually(lambda: server.connections == 0)


async def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def dial(address: Address | str, *, tenant: int = 0, **options: Any) -> connect:
    """Return a device's connect."""
    name, secret = TENANTS[tenant]
    settings: dict[str, Any] = {"token": secret, "tenant": name, "timeouts": QUICK}
    return connect(address, **(settings | options))


def uplink_to(
    address: Address | Callable[[], Address],
    what: SessionSpec = SPEC,
    *,
    patience: float | None = 20.0,
    session: bytes | None = None,
    keep: int = 1 << 20,
    **options: Any,
) -> Uplink:
    """Return an uplink to an address, or to what a function says the address is now."""

    async def connecting() -> Client:
        return await dial(address if isinstance(address, Address) else address(), **options)

    return Uplink(connecting, what, session=session, keep=keep, patience=patience)


async def send(uplink: Uplink, begin: int, end: int, *, pause: float = 0.0) -> None:
    """Send the batches with these numbers, tensor by tensor."""
    for seq in range(begin, end + 1):
        data = arrays(seq)
        batch = await uplink.begin(len(data.lengths))
        assert batch.seq == seq
        for number, tensor in pack_batch(uplink.spec, data.taps, data.lengths, data.targets).items():
            await uplink.send(batch, number, tensor)
            if pause:
                await asyncio.sleep(pause)
        await uplink.commit(batch)


async def rest(uplink: Uplink) -> bytes:
    """End the batches, wait for all epochs, pull the weights and say goodbye."""
    await uplink.finish()
    finished = await uplink.wait_finished()
    assert uplink.spec.batches is not None
    assert finished.steps == uplink.spec.batches * uplink.spec.epochs
    weights = await uplink.pull()
    await uplink.close()
    return weights


async def undisturbed(what: SessionSpec = SPEC) -> bytes:
    """Return the weights of a run without any fault and without a neighbour; made once for each spec."""
    key = repr(what)
    if key not in _UNDISTURBED:
        assert what.batches is not None
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder)
            async with serve("127.0.0.1:0", keys=KEYS, directory=place, timeouts=QUICK) as server:
                uplink = uplink_to(server.address, what, patience=0)
                await uplink.start()
                await send(uplink, 1, what.batches)
                _UNDISTURBED[key] = await rest(uplink)
    return _UNDISTURBED[key]
