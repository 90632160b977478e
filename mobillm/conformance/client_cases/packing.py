"""How a client packs: equalizers come once, before anything relies on them, and formats are the spec's."""

from __future__ import annotations

from typing import Any

from ...codec import Equalizer
from ...errors import ConfigError
from ...protocol import EQUALIZERS, TARGETS, Commit, Data, TensorHeader, tensor_name
from ...spec import SessionSpec
from ..case import Deviation, Draft
from ..host import Host
from ..visit import Visit
from .moments import Cases

__all__ = ["drafts"]


def drafts() -> Cases:
    """Return the cases."""
    return [Draft("B-36 B-37 B-38 B-40", "taps are equalized and packed as the spec says", _visited)]


async def _visited(visit: Visit) -> None:
    host = await Host.meet(visit)
    await host.shake()
    opened = await host.opening()
    await host.attach()
    taps = _Taps(SessionSpec.from_map(opened.spec))
    host.on[Data] = taps.data

    async def commit(message: Commit) -> None:
        taps.commit()
        await host.commit(message)

    host.on[Commit] = commit
    await host.grant()
    await host.serve()
    await visit.succeeds()


class _Taps:
    """What a session's taps and equalizers must be, batch by batch."""

    def __init__(self, spec: SessionSpec) -> None:
        self._codec = spec.codec
        self._known: dict[int, Equalizer] = {}
        self._headers: dict[int, TensorHeader] = {}
        self._payloads: dict[int, bytes] = {}

    async def data(self, message: Any) -> None:
        """Collect one part."""
        if message.shape is not None:
            self._headers[message.tensor] = message.header()
        self._payloads[message.tensor] = self._payloads.get(message.tensor, b"") + bytes(message.payload)

    def commit(self) -> None:
        """Check one batch."""
        for tensor, header in sorted(self._headers.items(), reverse=True):  # equalizers first
            if tensor >= EQUALIZERS:
                self._bring(tensor - EQUALIZERS, header)
            elif tensor < TARGETS:
                self._tap(tensor, header)
        self._headers, self._payloads = {}, {}

    def _bring(self, tap: int, header: TensorHeader) -> None:
        name = tensor_name(EQUALIZERS + tap)
        if not self._codec.equalize or tap in self._known:
            raise Deviation(f"{name} was sent although the session has one, or none by its spec [B-38]")
        try:
            self._known[tap] = Equalizer.unpack(header, self._payloads[EQUALIZERS + tap])
        except ConfigError as exc:
            raise Deviation(f"{name}: {exc} [B-37]") from exc

    def _tap(self, tap: int, header: TensorHeader) -> None:
        if header.format not in self._codec.formats:
            raise Deviation(f"{tensor_name(tap)} is {header.format.name.lower()}, not of the spec [B-40]")
        known = self._known.get(tap)
        if header.equalizer is not None and (known is None or known.checksum != header.equalizer):
            raise Deviation(f"{tensor_name(tap)} names an equalizer that was not sent [B-37]")
