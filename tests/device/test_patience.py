"""Whether and when a device comes back: the column *retry* of the specification, pauses, and the bound."""

from __future__ import annotations

import itertools
import random
import time

import pytest

from mobillm.device.patience import Patience, Setback
from mobillm.errors import ConnectionClosedError, ErrorCode, HandshakeError, RemoteError, Retry, retry_of

LOST = ConnectionClosedError(None, "the link broke")
FULL = RemoteError(ErrorCode.STORAGE_FULL, "the disk is full", 30.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the present time, which a test may change."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    return now


def refusals(code: int, retry_after: float | None) -> list[Setback]:
    """Return an error at each place where one can come."""
    return [kind(code, "no", retry_after) for kind in (ConnectionClosedError, HandshakeError, RemoteError)]


@pytest.mark.parametrize("code", [code for code in ErrorCode if retry_of(code) is Retry.NO])
def test_what_a_person_must_mend_is_not_tried_again(clock: list[float], code: ErrorCode) -> None:
    """[E-9] [E-11] Errors whose row says no are raised, whatever they hold; damage is believed once."""
    for error in refusals(code, 1.0):
        patience = Patience(60.0)
        patience.begin(error, (1,))
        if code in (ErrorCode.PROTOCOL, ErrorCode.DECODE) and not isinstance(error, RemoteError):
            assert patience.pause(error) == 0.2
            patience.begin(error, (1,))
        with pytest.raises(type(error)) as caught:
            patience.pause(error)
        assert caught.value is error


def test_damage_is_believed_again_after_progress(clock: list[float]) -> None:
    """[E-11] A session that comes further between two damaged frames goes on."""
    patience = Patience(60.0)
    error = ConnectionClosedError(ErrorCode.PROTOCOL, "wrong magic")
    for reached in range(5):
        patience.begin(error, (reached,))
        patience.pause(error)
    with pytest.raises(ConnectionClosedError):
        patience.pause(error)


@pytest.mark.parametrize("code", [code for code in ErrorCode if retry_of(code) is Retry.YES])
def test_what_passes_is_tried_again(clock: list[float], code: ErrorCode) -> None:
    """[E-9] Errors whose row says yes are tried again soon, or when the server has said."""
    for error, least in zip(refusals(code, None), refusals(code, 5.0), strict=True):
        patience = Patience(60.0)
        patience.begin(error, ())
        assert patience.pause(error) == 0.2
        assert patience.pause(least) == 5.4


@pytest.mark.parametrize("code", [*(code for code in ErrorCode if retry_of(code) is Retry.AFTER), 4711])
def test_what_passes_later_is_tried_later(clock: list[float], code: int) -> None:
    """[E-9] [E-10] [E-4] Errors whose row says after are tried when retry_after is over; never without it."""
    for error in refusals(code, 7.0):
        patience = Patience(60.0)
        patience.begin(error, ())
        assert [patience.pause(error) for _ in range(3)] == [7.2, 7.4, 7.8]
    for error in refusals(code, None):
        patience = Patience(60.0)
        patience.begin(error, ())
        with pytest.raises(type(error)):
            patience.pause(error)


def test_a_wait_beyond_the_bound_is_an_error_now(clock: list[float]) -> None:
    """Nobody waits for a time in which the server cannot have changed its mind."""
    patience = Patience(20.0)
    patience.begin(FULL, ())
    with pytest.raises(RemoteError, match="try again in 30 s"):
        patience.pause(FULL)


@pytest.mark.parametrize("error", [LOST, TimeoutError("no answer")])
def test_pauses_double_until_the_time_is_over(clock: list[float], error: Setback) -> None:
    """Silence is tried again with growing pauses; the last one ends with the time."""
    patience = Patience(100.0)
    patience.begin(error, ())
    pauses = []
    with pytest.raises(type(error)):  # noqa: PT012
        for _ in itertools.count():
            pauses.append(patience.pause(error))
            clock[0] += pauses[-1]
    assert pauses[:9] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0])
    assert sum(pauses) == pytest.approx(100.0)


def test_none_never_gives_up_and_zero_at_once(clock: list[float]) -> None:
    """The two ends of the range."""
    endless, none = Patience(None), Patience(0.0)
    endless.begin(LOST, ())
    for _ in range(100):
        clock[0] += endless.pause(LOST)
    none.begin(LOST, ())
    with pytest.raises(ConnectionClosedError):
        none.pause(LOST)


def test_later_without_progress_has_one_bound(clock: list[float]) -> None:
    """A disk that stays full is given up; one that takes something in between is not."""
    patience = Patience(60.0)
    patience.begin(FULL, (3, 3))
    clock[0] += patience.pause(FULL)
    patience.begin(FULL, (3, 3))
    with pytest.raises(RemoteError):
        patience.pause(FULL)
    patience.begin(FULL, (4, 3))
    clock[0] += patience.pause(FULL)
    patience.begin(LOST, (4, 3))
    clock[0] += patience.pause(LOST)
    clock[0] += 50.0
    patience.begin(LOST, (4, 3))
    assert patience.pause(LOST) == 0.2
