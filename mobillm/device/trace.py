"""A timeline of one run as a Chrome trace, which https://ui.perfetto.dev opens.

Both sides are on the device's monotonic clock; the server's timings are moved there by the offset that
PING and PONG measured. Format: "Trace Event Format", complete ("X") and metadata ("M") events.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ..errors import DataError

__all__ = ["Trace", "overlap"]

LANES = {
    ("device", "compute"): (1, 1),
    ("device", "send"): (1, 2),
    ("server", "receive"): (2, 1),
    ("server", "log"): (2, 2),
    ("server", "train"): (2, 3),
}


class Trace:
    """Spans of time, collected by any thread and written once.

    Attributes:
        spans: side, lane, name, start and duration in seconds of the device's clock, and the batch.
        clock_error: seconds by which the server's spans may be off; None while nothing was measured.

    """

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, str, float, float, int]] = []
        self.clock_error: float | None = None

    def add(self, side: str, lane: str, name: str, start: float, duration: float, batch: int) -> None:
        """Note one span.

        Args:
            side: ``device`` or ``server``.
            lane: the row it is drawn in.
            name: what was done.
            start: seconds of the device's monotonic clock.
            duration: seconds.
            batch: number of the batch; 0 when it belongs to none.

        """
        self.spans.append((side, lane, name, start, duration, batch))

    def events(self) -> list[dict[str, Any]]:
        """Return the trace's events; the first span starts at 0."""
        origin = min((span[3] for span in self.spans), default=0.0)
        events: list[dict[str, Any]] = []
        for side, process in (("device", 1), ("server", 2)):
            events.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": side}})
        for (_, lane), (process, thread) in LANES.items():
            events.append(
                {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": lane}}
            )
        for side, lane, name, start, duration, batch in self.spans:
            process, thread = LANES[side, lane]
            events.append(
                {
                    "ph": "X",
                    "name": name,
                    "cat": side,
                    "pid": process,
                    "tid": thread,
                    "ts": round((start - origin) * 1e6, 1),
                    "dur": round(duration * 1e6, 1),
                    "args": {"batch": batch},
                }
            )
        return events

    def write(self, path: pathlib.Path) -> None:
        """Write the trace as a JSON file.

        Raises:
            DataError: the file cannot be written.

        """
        try:
            other = {"clock_error": self.clock_error}
            trace = {"traceEvents": self.events(), "displayTimeUnit": "ms", "otherData": other}
            path.write_text(json.dumps(trace))
        except OSError as exc:
            raise DataError(f"the trace {path} cannot be written: {exc.strerror}") from exc


def overlap(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> float:
    """Return for how many seconds both of two lists of (start, end) intervals are under way.

    Within each list intervals must be in order and must not overlap.
    """
    total = 0.0
    i = j = 0
    while i < len(first) and j < len(second):
        start = max(first[i][0], second[j][0])
        end = min(first[i][1], second[j][1])
        total += max(0.0, end - start)
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return total
