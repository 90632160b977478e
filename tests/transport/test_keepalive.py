"""When a peer is asked, and when it is taken for dead; without a clock and a socket."""

from __future__ import annotations

import pytest

from mobillm.options import Timeouts
from mobillm.protocol import Pong
from mobillm.transport.keepalive import Keepalive

TIMEOUTS = Timeouts(keepalive=20.0, keepalive_reply=10.0)


def test_silence() -> None:
    """[K-2] [K-11] Asked after the first bound, dead after the second; what is read starts both anew."""
    peer = Keepalive(TIMEOUTS, 100.0)
    assert not peer.is_due(119.9)
    assert peer.wait(105.0) == 15.0
    assert peer.is_due(120.0)
    assert peer.wait(120.0) == 10.0
    assert not peer.gives_up(129.9, 0)
    assert peer.gives_up(130.0, 0)
    peer.last_read = 125.0
    assert peer.idle(130.0) == 5.0
    assert not peer.gives_up(130.0, 0)
    assert peer.wait(130.0) == 15.0


def test_one_ping_at_a_time() -> None:
    """[K-9] [K-10] The next PING comes after the answer to the last; other answers tell nothing."""
    peer = Keepalive(TIMEOUTS, 0.0)
    ping = peer.ping(0, 0)
    assert ping is not None
    assert peer.ping(0, 0) is None
    peer.measure(Pong(data=b"whatever", time=1))
    assert peer.ping(0, 0) is None
    peer.measure(Pong(data=ping.data, time=None))
    assert peer.round_trip is not None
    assert peer.clock_offset is None
    assert peer.ping(0, 0) is not None


@pytest.mark.parametrize(
    ("left", "dead"),
    [
        ((100,), (True,)),  # nothing has moved
        ((400, 400), (False, True)),  # some has, and then nothing
        ((400, 700, 1000, 1030), (False, False, False, True)),  # all has, and then the time to answer is over
        ((1030, 1030), (False, True)),
    ],
)
def test_a_ping_behind_other_bytes(left: tuple[int, ...], dead: tuple[bool, ...]) -> None:
    """[K-30] As long as what is ahead of the PING goes on leaving, the peer gets its time again."""
    peer = Keepalive(TIMEOUTS, 0.0)
    peer.ping(sent=1000, left=100)
    for number, (count, expected) in enumerate(zip(left, dead, strict=True)):
        now = 30.0 + 10.0 * number
        assert peer.gives_up(now, count) == expected
        assert expected or peer.wait(now) == 10.0


def test_without_bounds() -> None:
    """[L-13] None asks never; without a second bound a peer is asked and never given up."""
    silent = Keepalive(Timeouts(keepalive=None), 0.0)
    assert silent.wait(1e9) is None
    assert not silent.is_due(1e9)
    assert not silent.gives_up(1e9, 0)
    patient = Keepalive(Timeouts(keepalive=20.0, keepalive_reply=None), 0.0)
    assert not patient.gives_up(1e9, 0)
    assert patient.wait(1e9) == 20.0
