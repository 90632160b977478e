"""A trace that was read back; the file may be anybody's, so nothing in it is believed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, NoReturn

from ..errors import DataError

__all__ = ["Span", "Timeline", "load_trace"]

LARGEST_FILE = 1 << 30  # bytes
LARGEST_NUMBER = 1e15  # of microseconds (thirty years), and of batches


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """One piece of work or waiting; see :class:`mobillm.device.trace.Trace`.

    Attributes:
        side: ``device`` or ``server``.
        lane: the row it is drawn in.
        name: what was done.
        start, duration: seconds from the first span of the trace.
        batch: number of the batch; 0 when it belongs to none.

    """

    side: str
    lane: str
    name: str
    start: float
    duration: float
    batch: int

    @property
    def end(self) -> float:
        """When it ended, in seconds."""
        return self.start + self.duration


@dataclasses.dataclass(frozen=True, slots=True)
class Timeline:
    """A trace that was read back.

    Attributes:
        spans: in order of their start.
        clock_error: seconds by which the two sides' clocks may differ; None when it was not measured.

    """

    spans: tuple[Span, ...]
    clock_error: float | None

    def of(self, name: str) -> list[Span]:
        """Return the spans of a name, in order."""
        return [span for span in self.spans if span.name == name]


def load_trace(path: pathlib.Path) -> Timeline:
    """Read a trace that :meth:`mobillm.device.trace.Trace.write` wrote.

    Raises:
        DataError: the file cannot be read, or is no such trace.

    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"the trace {path} is above {LARGEST_FILE >> 20} MiB; trace a shorter run")
        trace = json.loads(path.read_text("utf-8"), parse_constant=_refuse)
        error = trace.get("otherData", {}).get("clock_error")
        return Timeline(
            _spans(trace["traceEvents"]), None if error is None else _number("clock_error", error)
        )
    except OSError as exc:
        raise DataError(f"the trace {path} cannot be read: {exc.strerror}") from exc
    except KeyError as exc:
        reason = f"{str(exc)[:60]} is missing"
    except (TypeError, AttributeError):
        reason = "its parts are not those of a trace"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as exc:
        reason = str(exc)
    raise DataError(
        f"{path} is no trace of a run ({reason}); give a file that 'mobillm finetune --trace' wrote"
    )


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _number(name: str, value: object) -> float:
    """Return a number that can be computed with.

    Raises:
        ValueError: it is none, negative, or too large.

    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST_NUMBER:
        return value
    raise ValueError(f"{name} is {str(value)[:40]}, no number from 0 to {LARGEST_NUMBER:g}")


def _spans(events: list[dict[str, Any]]) -> tuple[Span, ...]:
    sides = {e["pid"]: str(e["args"]["name"]) for e in events if e["name"] == "process_name"}
    lanes = {(e["pid"], e["tid"]): str(e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    spans = [
        Span(
            sides[e["pid"]],
            lanes[e["pid"], e["tid"]],
            str(e["name"]),
            _number("ts", e["ts"]) / 1e6,
            _number("dur", e["dur"]) / 1e6,
            int(_number("batch", e["args"]["batch"])),
        )
        for e in events
        if e["ph"] == "X"
    ]
    return tuple(sorted(spans, key=lambda span: span.start))
