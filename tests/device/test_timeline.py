"""Critical stage, efficiency and causes of bubbles, on timelines whose answer is known."""

from __future__ import annotations

import pytest

from mobillm.device.recording import Span, Timeline
from mobillm.device.timeline import busy_times, merge, summarize
from mobillm.errors import DataError

BATCHES = 10


def pipeline(forward: float, send: float, log: float, train: float) -> list[Span]:
    """Return the spans of an ideal pipeline with queues that never fill up."""
    spans = []
    computed = sent = logged = trained = 0.0
    for batch in range(1, BATCHES + 1):
        spans.append(Span("device", "compute", "forward", computed, forward, batch))
        computed += forward
        sent = max(sent, computed)
        spans.append(Span("device", "send", "send", sent, send, batch))
        sent += send
        spans.append(Span("server", "receive", "receive", sent - send, send, batch))
        logged = max(logged, sent)
        spans.append(Span("server", "log", "log", logged, log, batch))
        logged += log
        trained = max(trained, logged)
        spans.append(Span("server", "train", "train", trained, train, batch))
        trained += train
    return sorted(spans, key=lambda span: span.start)


@pytest.mark.parametrize(
    ("times", "critical"),
    [((1.0, 0.2, 0.1, 0.5), "device"), ((0.5, 0.8, 0.1, 0.5), "link"), ((0.5, 0.2, 0.1, 0.8), "server")],
)
def test_the_slowest_stage_is_critical(times: tuple[float, float, float, float], critical: str) -> None:
    """It has no gaps, so nothing is lost."""
    found = summarize(Timeline(tuple(pipeline(*times)), 0.001))
    assert found.critical == critical
    assert found.efficiency == pytest.approx(1.0)
    assert found.causes == {}
    assert found.clock_error == 0.001
    assert found.batches > 1


def test_the_others_are_busy_in_proportion() -> None:
    """Device-bound: the link and the server have their share of the device's time."""
    found = summarize(Timeline(tuple(pipeline(1.0, 0.2, 0.1, 0.5)), None))
    assert found.busy["server"] == pytest.approx(0.5, abs=0.05)
    assert found.busy["link"] == pytest.approx(0.2, abs=0.05)


def test_gaps_of_the_server_by_the_stage_the_batch_was_in() -> None:
    """A late batch is put down to forward pass, link and disk, each for the time it took."""
    spans = [
        Span("device", "compute", "forward", 0.0, 1.0, 1),
        Span("server", "train", "train", 1.0, 2.0, 1),
        Span("device", "compute", "forward", 1.0, 2.3, 2),
        Span("server", "receive", "receive", 3.0, 0.4, 2),
        Span("server", "log", "log", 3.4, 0.05, 2),
        Span("server", "train", "train", 3.5, 4.0, 2),
        Span("device", "compute", "forward", 3.3, 0.7, 3),
        Span("device", "compute", "wait", 4.0, 3.0, 3),
        Span("device", "compute", "forward", 7.0, 0.5, 4),
    ]
    found = summarize(Timeline(tuple(spans), None))
    assert found.critical == "server"
    (bubble,) = found.bubbles
    assert (bubble.start, bubble.batch) == (3.0, 2)
    assert bubble.duration == pytest.approx(0.5)
    assert bubble.causes == pytest.approx({"device": 0.3, "link": 0.1, "disk": 0.05, "own": 0.05})
    assert found.causes == pytest.approx(bubble.causes)
    assert found.efficiency == pytest.approx(6.0 / 6.5)


def test_gaps_of_the_device() -> None:
    """Waiting for room is put down to credit where the writer had none, else to the link."""
    spans = [
        Span("device", "compute", "forward", 0.0, 2.0, 1),
        Span("server", "train", "train", 2.0, 0.5, 1),
        Span("device", "compute", "forward", 2.0, 4.0, 2),
        Span("device", "compute", "wait", 3.0, 1.0, 2),
        Span("device", "send", "send", 2.5, 1.5, 2),
        Span("device", "send", "credit", 3.0, 0.25, 2),
        Span("device", "compute", "forward", 6.5, 3.0, 3),
    ]
    found = summarize(Timeline(tuple(spans), None))
    assert found.critical == "device"
    assert found.causes == pytest.approx({"credit": 0.25, "link": 0.75, "own": 0.5})
    assert [bubble.batch for bubble in found.bubbles] == [3, 3]
    assert found.busy["link"] == pytest.approx(1.25 / 7.5)  # a tensor that waits for credit does not use it


def deep_socket(upload: float, forward: float = 1.0) -> list[Span]:
    """Return the spans of a run whose socket takes each tensor at once, whatever the link carries.

    Two layers a batch: the first one leaves in the middle of the forward pass.
    """
    spans = []
    free = 0.0  # when the link is
    for batch in range(1, BATCHES + 1):
        begun = (batch - 1) * forward
        spans.append(Span("device", "compute", "forward", begun, forward, batch))
        first = max(free, begun + forward / 2) + upload / 2
        free = max(first, begun + forward) + upload / 2
        spans.append(Span("device", "send", "send", begun + forward / 2, 0.001, batch))
        spans.append(Span("device", "send", "send", begun + forward, 0.001, batch))
        spans.append(
            Span("server", "receive", "receive", first - upload / 2, free - first + upload / 2, batch)
        )
        spans.append(Span("server", "train", "train", free + 0.01, 0.1, batch))
    return sorted(spans, key=lambda span: span.start)


def test_a_link_behind_a_deep_socket_is_critical() -> None:
    """The server's arrivals show what the device cannot see, and the steady state ends with them."""
    spans = deep_socket(upload=3.0)
    found = summarize(Timeline(tuple(spans), None))
    assert found.critical == "link"
    assert found.efficiency == pytest.approx(1.0)
    assert found.causes == {}
    assert found.end == max(span.end for span in spans if span.name == "receive")
    assert found.busy["device"] < 0.4


def test_layers_that_leave_early_do_not_make_the_link_busy() -> None:
    """A batch that arrives while its later layers are computed is the device's time, not the link's."""
    found = summarize(Timeline(tuple(deep_socket(upload=0.2)), None))
    assert found.critical == "device"
    assert found.busy["link"] == pytest.approx(0.1, abs=0.02)
    assert found.efficiency == pytest.approx(1.0)


def test_one_forward_pass_over_a_narrow_link() -> None:
    """All was computed before training began: the device waits for the link and the server at the end."""
    spans = [
        Span("device", "compute", "forward", 0.0, 2.0, 1),
        Span("device", "send", "send", 2.0, 0.001, 1),
        Span("server", "receive", "receive", 2.0, 0.6, 1),
        Span("server", "train", "train", 2.7, 0.3, 1),
    ]
    found = summarize(Timeline(tuple(spans), None))
    assert (found.critical, found.start, found.end) == ("device", 0.0, 3.0)
    assert found.causes == pytest.approx({"link": 0.6, "server": 0.3, "own": 0.1})


def test_a_server_that_is_behind_ends_the_steady_state() -> None:
    """Steps of earlier batches that have not begun when the device ends belong to it; later epochs do not."""
    spans = pipeline(0.5, 0.2, 0.1, 0.8)
    last = max(span.end for span in spans)
    replayed = Span("server", "train", "train", last + 1.0, 0.8, BATCHES)
    found = summarize(Timeline((*spans, replayed), None))
    assert found.critical == "server"
    assert found.end == last
    assert found.efficiency == pytest.approx(1.0)


def test_credit_is_not_the_link() -> None:
    """While a batch's own tensors wait for credit its arrival counts for nothing."""
    spans = [
        Span("device", "compute", "forward", 0.0, 1.0, 1),
        Span("server", "receive", "receive", 0.5, 1.5, 1),
        Span("device", "send", "credit", 1.0, 0.5, 1),
        Span("device", "send", "credit", 1.75, 1.0, 2),
        Span("server", "train", "train", 2.0, 2.0, 1),
        Span("device", "compute", "forward", 3.0, 1.0, 2),
    ]
    assert busy_times(Timeline(tuple(spans), None))["link"] == [(1.5, 2.0)]


def test_half_a_trace() -> None:
    """A run of which one side's work is missing has nothing to summarize; it is said which."""
    with pytest.raises(DataError, match=r"no forward pass \(device\) and no training step \(server\)"):
        summarize(Timeline((), None))
    with pytest.raises(DataError, match=r"has no training step \(server\); "):
        summarize(Timeline((Span("device", "compute", "forward", 0.0, 1.0, 1),), None))


def test_merge() -> None:
    """Intervals that touch become one; empty ones vanish."""
    assert merge([(3.0, 4.0), (0.0, 1.0), (1.0, 2.0), (0.5, 0.7), (5.0, 5.0)]) == [(0.0, 2.0), (3.0, 4.0)]
