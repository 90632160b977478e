"""Training curves of each session for TensorBoard, one directory a session."""

from __future__ import annotations

import logging
import pathlib
import tempfile
from collections.abc import Callable

from torch.utils.tensorboard import SummaryWriter

from ..protocol import Metrics

__all__ = ["Curves"]

logger = logging.getLogger("mobillm.server")

MAX_QUEUE = 100  # events that wait for the disk
FLUSH_INTERVAL = 10  # seconds


class Curves:
    """Writes scalars; the step is that of the optimizer, so a restart goes on where the curve was.

    For one thread at a time, which may wait for the disk. A session whose curves cannot be written is trained
    all the same: the log says so once, and draws it no more.

    Args:
        directory: where a directory for each session is made; made itself if there is none.

    Raises:
        OSError: nothing can be written there.

    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._writers: dict[str, SummaryWriter] = {}
        self._given_up: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()  # only trying tells whether files can be made

    def add(self, name: str, metrics: Metrics) -> None:
        """Add the figures of a session's last steps.

        Args:
            name: of the session.
            metrics: what the device is told, too.

        """
        values = {"train/loss": metrics.loss, "train/lr": metrics.lr, "time/busy_seconds": metrics.busy}
        self._draw(name, metrics.step, {tag: value for tag, value in values.items() if value is not None})

    def add_heldout(self, name: str, step: int, values: dict[str, float]) -> None:
        """Add the figures of a session's held-out batches."""
        self._draw(name, step, {f"heldout/{key}": value for key, value in values.items() if key != "count"})

    def close(self, name: str | None = None) -> None:
        """Write what waits of one session, which may have no curves; None: of all."""
        for one in list(self._writers) if name is None else [name]:
            if one in self._writers:
                self._tried(one, self._writers.pop(one).close)
            self._given_up.discard(one)

    def _draw(self, name: str, step: int, values: dict[str, float]) -> None:
        def work() -> None:
            writer = self._writer(name, step)
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        if values and name not in self._given_up:
            self._tried(name, work)

    def _tried(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as exc:  # whatever the package raises is no reason to stop training
            self._given_up.add(name)
            self._writers.pop(name, None)
            logger.warning("! session %s: its curves are drawn no more: %s", name, exc)

    def _writer(self, name: str, step: int) -> SummaryWriter:
        if name not in self._writers:
            # What a crash made us repeat is drawn once: steps from here on in older files do not count.
            self._writers[name] = SummaryWriter(
                str(self._directory / name), max_queue=MAX_QUEUE, flush_secs=FLUSH_INTERVAL, purge_step=step
            )
        return self._writers[name]
