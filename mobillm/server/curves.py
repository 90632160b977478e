"""Training curves of each session for TensorBoard, one directory a session."""

from __future__ import annotations

import pathlib

from torch.utils.tensorboard import SummaryWriter

from ..protocol import Metrics

__all__ = ["Curves"]

MAX_QUEUE = 100  # events that wait for the disk
FLUSH_INTERVAL = 10  # seconds


class Curves:
    """Writes scalars; the step is that of the optimizer, so a restart goes on where the curve was.

    For one thread at a time, which may wait for the disk.

    Args:
        directory: where a directory for each session is made.

    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._writers: dict[str, SummaryWriter] = {}

    def add(self, name: str, metrics: Metrics) -> None:
        """Add the figures of a session's last steps.

        Args:
            name: of the session.
            metrics: what the device is told, too.

        """
        writer = self._writer(name, metrics.step)
        values = {"train/loss": metrics.loss, "train/lr": metrics.lr, "time/busy_seconds": metrics.busy}
        for tag, value in values.items():
            if value is not None:
                writer.add_scalar(tag, value, metrics.step)

    def add_heldout(self, name: str, step: int, values: dict[str, float]) -> None:
        """Add the figures of a session's held-out batches."""
        for key, value in values.items():
            if key != "count":
                self._writer(name, step).add_scalar(f"heldout/{key}", value, step)

    def close(self, name: str | None = None) -> None:
        """Write what waits of one session, which may have no curves; None: of all."""
        for one in list(self._writers) if name is None else [name]:
            if one in self._writers:
                self._writers.pop(one).close()

    def _writer(self, name: str, step: int) -> SummaryWriter:
        if name not in self._writers:
            # What a crash made us repeat is drawn once: steps from here on in older files do not count.
            self._writers[name] = SummaryWriter(
                str(self._directory / name), max_queue=MAX_QUEUE, flush_secs=FLUSH_INTERVAL, purge_step=step
            )
        return self._writers[name]
