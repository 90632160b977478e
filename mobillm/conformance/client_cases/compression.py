"""How a client compresses: only where it was agreed on, and into frames that any server can read."""

from __future__ import annotations

import functools
from typing import Any

from ...errors import RemoteProtocolError
from ...protocol import CAPABILITY, Commit, Data, decompress, tensor_name
from ...spec import SessionSpec
from ..case import Deviation, Draft, NotApplicable
from ..host import Host
from ..visit import Visit
from .moments import Cases

__all__ = ["drafts"]


def drafts() -> Cases:
    """Return the cases."""
    agreed = functools.partial(_visited, (CAPABILITY,))
    return [
        Draft("Z-1 Z-4 Z-6 Z-7 Z-8 Z-9 Z-12", "what a client compresses is read again", agreed),
        Draft("Z-2 V-13", "nothing is compressed unless CHALLENGE says so", functools.partial(_visited, ())),
    ]


async def _visited(caps: tuple[str, ...], visit: Visit) -> None:
    host = await Host.meet(visit)
    if host.hello is None or CAPABILITY not in host.hello.caps:
        raise NotApplicable(f"a client that offers the capability {CAPABILITY}")
    await host.shake(caps)
    opened = await host.opening()
    await host.attach()
    frames = _Frames(SessionSpec.from_map(opened.spec))
    host.on[Data] = frames.data

    async def commit(message: Commit) -> None:
        frames.commit()
        await host.commit(message)

    host.on[Commit] = commit
    await host.grant()
    await host.serve()
    await visit.succeeds()


class _Frames:
    """The compressed taps of one batch after another; the host's protocol core has checked their sizes."""

    def __init__(self, spec: SessionSpec) -> None:
        self._allowed = spec.codec.compression != "none"
        self._sizes: dict[int, int] = {}
        self._payloads: dict[int, bytes] = {}

    async def data(self, message: Any) -> None:
        """Collect one part."""
        if message.zstd is not None:
            if not self._allowed:
                raise Deviation(f"{tensor_name(message.tensor)} is compressed, not so the spec [Z-12]")
            self._sizes[message.tensor] = message.header().size
        if message.tensor in self._sizes:
            collected = self._payloads.get(message.tensor, b"")
            self._payloads[message.tensor] = collected + bytes(message.payload)

    def commit(self) -> None:
        """Check one batch."""
        for tensor, size in self._sizes.items():
            try:
                decompress(self._payloads[tensor], size)
            except RemoteProtocolError as exc:
                raise Deviation(f"{tensor_name(tensor)}: {exc.text} [Z-10]") from exc
        self._sizes, self._payloads = {}, {}
