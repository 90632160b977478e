"""Bounds of the handshake and pauses after failed logins, by a clock that only the test moves."""

from __future__ import annotations

import pytest

from mobillm.options import Limits
from mobillm.transport.admission import (
    LONGEST_PAUSE,
    TABLE,
    Admission,
    group_of,
)

LIMITS = Limits(handshakes=5, handshakes_per_host=2)


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Return the present time."""
        return self.now


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9%eth0", "2001:db8:1:2::/64"),
        ("", ""),
    ],
)
def test_what_counts_as_one_address(host: str, group: str) -> None:
    """[L-15] An IPv4 address, however it is written, and a /64 network of IPv6."""
    assert group_of(host) == group


def test_places_in_the_handshake() -> None:
    """[H-20] Two of each address and five in all; a place that is given back is free again."""
    admission = Admission(LIMITS)
    assert [admission.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert [admission.enter("2001:db8::1"), admission.enter("2001:db8::2")] == [True, True]
    assert not admission.enter("2001:db8::3")
    assert [admission.enter("192.0.2.2"), admission.enter("192.0.2.3")] == [True, False]
    admission.leave("192.0.2.1")
    assert admission.enter("192.0.2.3")
    for host in ("192.0.2.1", "2001:db8::7", "2001:db8::8", "192.0.2.2", "192.0.2.3"):
        admission.leave(host)
    assert not admission._shaking


def test_pauses_grow_and_are_forgotten() -> None:
    """[A-14] A few failures are free; each further one doubles the pause up to a minute; time heals."""
    clock = Clock()
    admission = Admission(LIMITS, clock)
    for _ in range(Limits().failed_logins):
        admission.fail("192.0.2.1", "acme")
        assert admission.pause("192.0.2.1", "acme") == 0
    pauses = []
    for _ in range(9):
        admission.fail("192.0.2.1", "acme")
        pauses.append(admission.pause("192.0.2.1", "acme"))
        assert admission.pause("192.0.2.1", "another") == pauses[-1]
        assert admission.pause("192.0.2.2", "another") == 0
        clock.now += pauses[-1]
        assert admission.pause("192.0.2.1", "acme") == 0
    assert pauses[:3] == pytest.approx([1.0, 2.0, 4.0], rel=0.2)
    assert pauses == sorted(pauses)
    assert LONGEST_PAUSE / 2 < pauses[-1] <= LONGEST_PAUSE
    clock.now += 3600
    admission.fail("192.0.2.1", "acme")
    assert admission.pause("192.0.2.1", "acme") == 0


def test_a_tenant_from_many_addresses() -> None:
    """[A-14] [A-16] Failures of one tenant add up; whoever has logged in as it before is not kept out."""
    clock = Clock()
    admission = Admission(LIMITS, clock)
    admission.succeed("198.51.100.1", "acme")
    for number in range(2 * Limits().failed_logins + 3):
        admission.fail(f"192.0.2.{number}", "acme")
    assert admission.pause("192.0.2.200", "acme") == pytest.approx(4.0)
    assert admission.pause("192.0.2.200", "other") == 0
    assert admission.pause("198.51.100.1", "acme") == 0


def test_a_login_does_not_wipe_failures() -> None:
    """[A-14] One's own token does not buy more guesses at another's."""
    admission = Admission(LIMITS, Clock())
    for _ in range(Limits().failed_logins + 1):
        admission.fail("192.0.2.1", "acme")
        admission.succeed("192.0.2.1", "mine")
    assert admission.pause("192.0.2.1", "acme") > 0


def test_tables_are_bounded() -> None:
    """A flood of addresses and names does not take more memory than the tables have."""
    admission = Admission(LIMITS, Clock())
    for number in range(TABLE + 100):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        admission.fail(host, f"tenant {number}")
        admission.succeed(host, "known")
    assert len(admission._hosts) == len(admission._tenants) == len(admission._known) == TABLE
