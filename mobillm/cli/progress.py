"""The display of a run: a bar and figures on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import datetime
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..device.progress import Progress as Figures
from .console import say

__all__ = ["ProgressDisplay", "describe"]

_STAGES = {
    "connect": "tokenizing and connecting",
    "upload": "sending frozen weights",
    "forward": "forward",
    "train": "training",
    "pull": "pulling",
    "done": "done",
}
_LINE_INTERVAL = 10.0  # seconds between lines where there is no terminal
_SPEED_PERIOD = 300.0  # seconds whose speed tells how long the rest takes: a step may take a minute


def describe(figures: Figures) -> str:
    """Return the figures of a run as text for a person."""
    if figures.stage == "upload":
        return f"blob {figures.step}/{figures.total_steps}, unless the server has it"
    loss = "-" if figures.loss is None else f"{figures.loss:.4f}"
    return (
        f"loss {loss}  step {figures.step}/{figures.total_steps}  epoch {figures.epoch}/{figures.epochs}  "
        f"{figures.samples_per_second:.0f} samples/s  "
        f"{figures.bytes_sent / 1e6:.1f} MB sent, {figures.link_rate / 1e6:.2f} MB/s  "
        f"waiting {figures.queue_bytes / 1e6:.1f} MB here, {figures.queue_batches} batches there  "
        f"both busy {figures.both_busy:.0%}"
    )


class ProgressDisplay:
    """Shows how a run goes on standard error; use it as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
            TimeRemainingColumn(),
            console=self._console,
            speed_estimate_period=_SPEED_PERIOD,
        )
        self._task = self._bar.add_task("", total=1, unit="samples")
        self._live: Live | None = None
        self._stage = ""
        self._shown = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def left(self) -> float | None:
        """Seconds until the end of this stage, by its speed; None before there is one."""
        return self._bar.tasks[0].time_remaining

    def update(self, figures: Figures) -> None:
        """Show new figures."""
        changed, self._stage = figures.stage != self._stage, figures.stage
        if figures.stage == "connect":
            say(f"{_STAGES['connect']} ...")
            return
        self._count(figures, anew=changed)
        if self._console.is_terminal:
            self._draw(figures)
        elif changed or time.monotonic() - self._shown >= _LINE_INTERVAL:
            self._shown = time.monotonic()
            # What is only fetched was sent by an earlier run.
            sent = f"{figures.samples}/{figures.total_samples} samples  " if figures.total_samples else ""
            left = f"  about {datetime.timedelta(seconds=int(self.left))} left" if self.left else ""
            print(
                f"{_STAGES[figures.stage]}: {sent}{describe(figures)}{left}",
                file=sys.stderr,
                flush=True,
            )

    def _count(self, figures: Figures, *, anew: bool) -> None:
        """Count what this stage has done; ``anew`` forgets the speed of the stage before."""
        if figures.stage == "forward":
            done, total, unit = figures.samples, figures.total_samples, "samples"
        else:
            unit = "blobs" if figures.stage == "upload" else "steps"
            done, total = figures.step, figures.total_steps
        total = max(1, total)
        if anew:
            self._bar.reset(
                self._task,
                total=total,
                completed=done,
                description=_STAGES[figures.stage],
                unit=unit,
            )
        else:
            self._bar.update(self._task, completed=done, total=total)

    def _draw(self, figures: Figures) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=5)
            self._live.start()
        self._live.update(Group(self._bar, Text(describe(figures))))
