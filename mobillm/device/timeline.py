"""What a trace says about a run: which stage was critical, how busy it was, and what it waited for.

A batch passes four stages: the device's forward pass, the link, the server's disk and training. Steady state
is the time in which all of them have something to do: from the first training step to the end of the last
forward pass. The pipeline's efficiency is the part of it in which its busiest stage was busy; a gap of that
stage is a bubble, and it is put down to the stage that the next batch was in meanwhile.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..errors import DataError

__all__ = ["STAGES", "Bubble", "Interval", "Span", "Summary", "Timeline", "load_trace", "merge", "summarize"]

STAGES = ("device", "link", "disk", "server")
SHORTEST = 1e-4  # seconds; a shorter gap is the time that notes take
ALIKE = 0.01  # parts that differ by less are taken for the same
LARGEST_FILE = 1 << 30  # bytes

Interval = tuple[float, float]


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


@dataclasses.dataclass(frozen=True, slots=True)
class Bubble:
    """A gap of the critical stage.

    Attributes:
        start, duration: seconds.
        batch: the batch that came after it; 0 when none did.
        causes: seconds of it by what was waited for: a stage, ``credit`` (the server has no room) or
            ``own`` (the stage itself had no reason to wait).

    """

    start: float
    duration: float
    batch: int
    causes: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What a trace says.

    Attributes:
        start, end: of the steady state, in seconds of the trace.
        total: seconds of the whole trace.
        batches: that were trained on in the steady state.
        busy: part of the steady state in which each stage was busy, 0 to 1.
        critical: the busiest stage; of several the last one.
        efficiency: its part.
        causes: seconds of the critical stage's gaps by what was waited for.
        bubbles: its gaps, the longest first.
        clock_error: see :class:`Timeline`.

    """

    start: float
    end: float
    total: float
    batches: int
    busy: dict[str, float]
    critical: str
    efficiency: float
    causes: dict[str, float]
    bubbles: tuple[Bubble, ...]
    clock_error: float | None


def load_trace(path: pathlib.Path) -> Timeline:
    """Read a trace that :meth:`mobillm.device.trace.Trace.write` wrote.

    Raises:
        DataError: the file cannot be read, or is no such trace.

    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise DataError(f"the trace {path} is above {LARGEST_FILE >> 20} MiB; trace a shorter run")
        trace = json.loads(path.read_text())
        return Timeline(tuple(_spans(trace["traceEvents"])), trace.get("otherData", {}).get("clock_error"))
    except OSError as exc:
        raise DataError(f"the trace {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(
            f"{path} is no trace of a run ({type(exc).__name__}: {exc}); "
            "give a file that 'mobillm finetune --trace' wrote"
        ) from exc


def _spans(events: Sequence[dict[str, Any]]) -> list[Span]:
    sides = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    spans = [
        Span(
            sides[e["pid"]],
            lanes[e["pid"], e["tid"]],
            e["name"],
            e["ts"] / 1e6,
            e["dur"] / 1e6,
            int(e["args"]["batch"]),
        )
        for e in events
        if e["ph"] == "X"
    ]
    return sorted(spans, key=lambda span: span.start)


def merge(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals, in order and apart."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > start:
            found.append((start, end))
    return found


def _without(intervals: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """Return what is in ``intervals`` and in none of ``holes``; both merged."""
    found = []
    for start, end in intervals:
        at = start
        for hole_start, hole_end in holes:
            if hole_end > at and hole_start < end:
                found.append((at, hole_start))
                at = hole_end
        found.append((at, end))
    return [(start, end) for start, end in found if end > start]


def _inside(intervals: Iterable[Interval], start: float, end: float) -> list[Interval]:
    cut = ((max(first, start), min(last, end)) for first, last in intervals)
    return [(first, last) for first, last in cut if last > first]


def _seconds(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def summarize(timeline: Timeline) -> Summary:
    """Find the critical stage of a run and what it waited for.

    Raises:
        DataError: the trace has no forward pass or no training step.

    """
    forwards, steps = timeline.of("forward"), timeline.of("train")
    if not forwards or not steps:
        raise DataError("the trace has no forward pass or no training step; trace a whole run")
    start, end = steps[0].start, forwards[-1].end
    if end <= start:  # the device had ended before training began
        start, end = forwards[0].start, max(span.end for span in steps)
    stages = _busy(timeline)
    wall = end - start
    busy = {name: _seconds(_inside(stages[name], start, end)) / wall for name in STAGES}
    # Queues let a stage run ahead of a slower one behind it, as busy as that one: the last such stage counts.
    critical = [name for name in STAGES if busy[name] >= max(busy.values()) - ALIKE][-1]
    gaps = _without([(start, end)], stages[critical])
    explain = _explainer(timeline, critical, stages)
    bubbles = [explain(gap) for gap in gaps if gap[1] - gap[0] >= SHORTEST]
    causes: dict[str, float] = {}
    for bubble in bubbles:
        for cause, seconds in bubble.causes.items():
            causes[cause] = causes.get(cause, 0.0) + seconds
    return Summary(
        start=start,
        end=end,
        total=max(span.end for span in timeline.spans),
        batches=sum(start <= span.start < end for span in steps),
        busy=busy,
        critical=critical,
        efficiency=busy[critical],
        causes=causes,
        bubbles=tuple(sorted(bubbles, key=lambda bubble: -bubble.duration)),
        clock_error=timeline.clock_error,
    )


def _busy(timeline: Timeline) -> dict[str, list[Interval]]:
    def named(name: str) -> list[Interval]:
        return merge((span.start, span.end) for span in timeline.of(name))

    return {
        "device": _without(named("forward"), named("wait")),
        # A tensor that waits for credit does not use the link.
        "link": _without(named("send"), named("credit")),
        "disk": named("log"),
        "server": named("train"),
    }


class _Ends:
    """When each batch had left a stage.

    A span may stand for several batches: those since the last one (a group of one forward pass, a group
    that was written to the disk together).
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        ends = sorted((span.batch, span.end) for span in spans)
        self._batches = [batch for batch, _ in ends]
        self._ends = [end for _, end in ends]

    def of(self, batch: int, default: float) -> float:
        """Return when a batch had left; ``default`` when the trace does not tell."""
        at = bisect.bisect_left(self._batches, batch)
        return self._ends[at] if at < len(self._ends) else default


def _explainer(
    timeline: Timeline, critical: str, stages: dict[str, list[Interval]]
) -> Callable[[Interval], Bubble]:
    """Return what puts a gap of the critical stage down to its causes."""
    credit = merge((span.start, span.end) for span in timeline.of("credit"))
    disk = merge((span.start, span.end) for span in timeline.of("keep"))
    if critical in ("device", "link"):
        waits = merge((span.start, span.end) for span in timeline.of("wait"))

        def by_waits(gap: Interval) -> Bubble:
            causes = {
                "credit": _seconds(_inside(credit, *gap)),
                "disk": _seconds(_inside(_without(disk, credit), *gap)),
            }
            rest = gap[1] - gap[0] - sum(causes.values())
            # The device waits for room only while the link or the server is behind.
            full = min(rest, max(0.0, _seconds(_inside(waits, *gap)) - sum(causes.values())))
            if critical == "device":
                causes |= {"link": full, "own": rest - full}
            else:
                causes["device"] = rest
            return _bubble(gap, timeline.of("forward" if critical == "device" else "send"), causes)

        return by_waits
    forward, receive, log = (_Ends(timeline.of(name)) for name in ("forward", "receive", "log"))

    def by_batch(gap: Interval) -> Bubble:
        spans = timeline.of("train" if critical == "server" else "log")
        batch = _next(gap, spans)
        at, causes = gap[0], {}
        for cause, ends in (("device", forward), ("link", receive), ("disk", log)):
            if cause == "disk" and critical == "disk":
                break
            left = min(gap[1], max(at, ends.of(batch, at)))
            causes[cause] = left - at
            at = left
        causes["own"] = gap[1] - at
        return _bubble(gap, spans, causes)

    return by_batch


def _next(gap: Interval, spans: Sequence[Span]) -> int:
    at = bisect.bisect_left(spans, gap[1] - 1e-9, key=lambda span: span.start)
    return spans[at].batch if at < len(spans) else 0


def _bubble(gap: Interval, spans: Sequence[Span], causes: dict[str, float]) -> Bubble:
    kept = {cause: seconds for cause, seconds in causes.items() if seconds > 1e-9}
    return Bubble(gap[0], gap[1] - gap[0], _next(gap, spans), kept)
