"""The whole server: a gateway with its sessions behind a listening socket."""

from __future__ import annotations

import contextlib
import pathlib
import ssl
from collections.abc import AsyncIterator, Mapping

from .. import transport
from ..options import Limits, Timeouts
from ..protocol import CAPABILITY
from ..transport import Address, Server
from .control import Control
from .engine import Engine
from .gateway import Gateway
from .meter import Meter

__all__ = ["serve"]


@contextlib.asynccontextmanager
async def serve(
    address: str | Address,
    *,
    keys: Mapping[str, bytes],
    directory: pathlib.Path,
    device: str = "cpu",
    engine: Engine | None = None,
    group: int = 1,
    keep: bool = False,
    tls: ssl.SSLContext | None = None,
    timeouts: Timeouts | None = None,
    limits: Limits | None = None,
    meter: Meter | None = None,
) -> AsyncIterator[Server]:
    """Run a server for the time of an ``async with`` block.

    On entry it loads the sessions of ``directory`` and goes on training those that need no device. On
    exit it stops in order: no new connections, a goodbye to each device, the step under way is
    finished, a checkpoint of each session.

    Args:
        address: where to listen; port 0 lets the system choose, see :attr:`Server.address`.
        keys: key of each tenant, from :func:`mobillm.protocol.derive_key`.
        directory: where sessions, activation logs and blobs are kept.
        device: torch device to train on; not used with an engine.
        engine: trains the sessions; None does so in this process. It is started, and closed at the end.
        group: most sessions whose steps are taken together; 1 takes each alone. Not used with an engine.
        keep: whether the activation log of a finished session stays when the device has the result.
        tls: TLS context; None speaks plain TCP.
        timeouts: bounds of every wait.
        limits: bounds of everything held.
        meter: counts and draws what happens, see :mod:`mobillm.server.metrics`; None does neither.

    Raises:
        ConfigError: the address is malformed, or asks for TLS without a context.
        EngineError: the engine cannot be used.
        OSError: the address cannot be listened on, or the directory cannot be used.

    """
    limits, timeouts = limits or Limits(), timeouts or Timeouts()
    meter = meter or Meter()
    gateway = Gateway(
        directory,
        limits=limits,
        keys=keys,
        keep=keep,
        device=device,
        engine=engine,
        group=group,
        meter=meter,
        away=timeouts.away,
    )
    control = Control(gateway, directory)
    try:
        meter.start(gateway)
        await gateway.engine.start()
        await gateway.restore()
        await control.start()
        server = await transport.serve(
            gateway.handle,
            address,
            keys=keys,
            tls=tls,
            caps=(CAPABILITY,),
            timeouts=timeouts,
            limits=limits,
        )
        meter.listen(server)
        try:
            yield server
        finally:
            meter.drain()
            await server.close()
    finally:
        await control.close()
        await gateway.close()
        await meter.close()
