"""The equalizers of a session: each comes once, with a batch, and holds for all that follow."""

from __future__ import annotations

from ..codec import Equalizer
from ..errors import ConfigError
from ..protocol import EQUALIZERS, TensorHeader, tensor_name
from .batch import Batch
from .log import ActivationLog

__all__ = ["Equalizers"]


class Equalizers:
    """What taps were divided by before they were packed; filled in the order of the batches."""

    def __init__(self) -> None:
        self._known: dict[int, Equalizer] = {}

    def check(self, batch: Batch) -> None:
        """Check a batch that comes next.

        Raises:
            ConfigError: it brings an equalizer that the session has, or one that is none, or a tap of it is
                equalized by another one than the session's.

        """
        brought = _unpack(batch)
        for tap in sorted(set(brought) & set(self._known)):
            raise ConfigError(tensor_name(EQUALIZERS + tap), "sent again", "one equalizer in each session")
        for tensor, header in batch.headers.items():
            if header.equalizer is None:
                continue
            equalizer = brought.get(tensor) or self._known.get(tensor)
            if equalizer is None or equalizer.checksum != header.equalizer:
                seen = f"equalized by {header.equalizer:08x}"
                wanted = "its equalizer first" if equalizer is None else f"{equalizer.checksum:08x}"
                raise ConfigError(tensor_name(tensor), seen, wanted)

    def add(self, batch: Batch) -> None:
        """Take in what a batch brings."""
        self._known |= _unpack(batch)

    def load(self, log: ActivationLog) -> None:
        """Take in what the batches of a log bring, and forget all else."""
        self._known = {}
        for entry in log.entries:
            if entry.equalizers:
                self.add(log.read(entry))

    def of(self, tap: int, header: TensorHeader) -> Equalizer | None:
        """Return what a checked tensor was divided by; None: nothing."""
        return None if header.equalizer is None else self._known[tap]


def _unpack(batch: Batch) -> dict[int, Equalizer]:
    return {
        tensor - EQUALIZERS: Equalizer.unpack(header, batch.payloads[tensor])
        for tensor, header in batch.headers.items()
        if tensor >= EQUALIZERS
    }
