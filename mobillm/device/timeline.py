"""What a trace says about a run: which stage was critical, how busy it was, and what it waited for.

A batch passes four stages: the device's forward pass, the link, the server's disk and training. Steady state
is the time in which there is a queue for the slowest of them: from the first training step to the end of the
last forward pass, or, when the link or the server was behind then, to the last batch's arrival or step. The
pipeline's efficiency is the part of it in which its busiest stage was busy; a gap of that stage is a bubble,
and it is put down to the stage that the next batch was in meanwhile.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Sequence

from ..errors import DataError
from .recording import Span, Timeline

__all__ = ["STAGES", "Bubble", "Interval", "Summary", "busy_times", "merge", "summarize"]

STAGES = ("device", "link", "disk", "server")
SHORTEST = 1e-4  # seconds; a shorter gap is the time that notes take
ALIKE = 0.01  # parts that differ by less are taken for the same

Interval = tuple[float, float]


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
    first = 0
    for start, end in intervals:
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        at, number = start, first
        while number < len(holes) and holes[number][0] < end:
            found.append((at, holes[number][0]))
            at = holes[number][1]
            number += 1
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
    missing = ["no forward pass (device)"] * (not forwards) + ["no training step (server)"] * (not steps)
    if missing:
        raise DataError(
            f"the trace has {' and '.join(missing)}; trace a whole run: a trace covers one process, "
            "and one that goes on after an interruption sees its own part only"
        )
    start, end = _steady(timeline, forwards, steps)
    stages = busy_times(timeline)
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


def _steady(timeline: Timeline, forwards: Sequence[Span], steps: Sequence[Span]) -> Interval:
    """Return the time in which there is a queue for the slowest stage."""
    start, end = steps[0].start, forwards[-1].end
    # Behind is who has not even done with what came before the last piece of the stage ahead of it.
    before = forwards[-2].batch if len(forwards) > 1 else 0
    arrivals = timeline.of("receive")
    if any(span.end > end for span in arrivals if span.batch <= before):
        last = max(arrivals, key=lambda span: span.end)
        end, before = last.end, last.batch - 1
    # Later epochs' steps have the number of the last batch: only the first step of each counts.
    firsts = {span.batch: span for span in reversed(steps)}
    if any(span.start > end for batch, span in firsts.items() if batch <= before):
        end = max(span.end for span in firsts.values())
    if end <= start:  # there was no queue: all was made, or had arrived, before training began
        start, end = forwards[0].start, max(span.end for span in steps)
    return start, end


def busy_times(timeline: Timeline) -> dict[str, list[Interval]]:
    """Return when each stage was busy, in order and apart."""

    def named(name: str) -> list[Interval]:
        return merge((span.start, span.end) for span in timeline.of(name))

    device = _without(named("forward"), named("wait"))
    return {
        "device": device,
        "link": _link(timeline, device),
        "disk": named("log"),
        "server": named("train"),
    }


def _link(timeline: Timeline, device: Sequence[Interval]) -> list[Interval]:
    """Return when tensors were on their way.

    The socket's buffer can take whole batches at once, so that the device has handed over long before a
    narrow link has carried them. The server knows when parts come in, but those of a batch come as its layers
    are computed: until its forward pass has ended, its arrival counts only while nothing is computed.
    """
    computed = _Ends(timeline.of("forward"))
    credit: dict[int, list[Interval]] = {}
    for span in timeline.of("credit"):
        credit.setdefault(span.batch, []).append((span.start, span.end))
    streamed, carried = [], []
    for span in timeline.of("receive"):
        ready = min(span.end, max(span.start, computed.of(span.batch, span.start)))
        streamed.append((span.start, ready))
        carried += _without([(ready, span.end)], merge(credit.get(span.batch, ())))
    # A tensor that waits for credit does not use the link.
    waits = merge(interval for intervals in credit.values() for interval in intervals)
    sent = [(span.start, span.end) for span in timeline.of("send")]
    alone = _without(merge(streamed), merge([*device, *waits]))
    return merge([*_without(merge(sent), waits), *alone, *carried])


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
    disk = _without(merge((span.start, span.end) for span in timeline.of("keep")), credit)
    if critical in ("device", "link"):
        waits = merge((span.start, span.end) for span in timeline.of("wait"))
        # The device waits for room only while the link or the server is behind.
        reasons = [("credit", credit), ("disk", disk)]
        if critical == "device":
            reasons += [("link", waits), ("link", stages["link"])]
        spans = timeline.of("forward" if critical == "device" else "send")

        def by_waits(gap: Interval) -> Bubble:
            batch = _next(gap, spans)
            # After its last batch a stage waits for nothing but the end, to which the ones behind it work.
            ending = [] if batch else [("disk", stages["disk"]), ("server", stages["server"])]
            causes: dict[str, float] = {}
            left = [gap]
            for cause, times in [*reasons, *ending]:
                rest = _without(left, times)
                causes[cause] = causes.get(cause, 0.0) + _seconds(left) - _seconds(rest)
                left = rest
            causes["own" if critical == "device" else "device"] = _seconds(left)
            return _bubble(gap, batch, causes)

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
        return _bubble(gap, batch, causes)

    return by_batch


def _next(gap: Interval, spans: Sequence[Span]) -> int:
    at = bisect.bisect_left(spans, gap[1] - 1e-9, key=lambda span: span.start)
    return spans[at].batch if at < len(spans) else 0


def _bubble(gap: Interval, batch: int, causes: dict[str, float]) -> Bubble:
    kept = {cause: seconds for cause, seconds in causes.items() if seconds > 1e-9}
    return Bubble(gap[0], gap[1] - gap[0], batch, kept)
