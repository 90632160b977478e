"""Tests of the account of computing and rest."""

from __future__ import annotations

import pytest

from mobillm.device.duty import Duty
from mobillm.errors import ConfigError


def test_rest_follows_computing() -> None:
    """A quarter of the time means three seconds of rest for one of computing; any idle time counts."""
    duty = Duty(0.25)
    assert duty.owed(2.0) == 6.0
    duty.idle(2.0, 4.0)
    assert duty.owed(0.0) == 2.0
    assert duty.owed(1.0) == 5.0
    duty.idle(1.0, 50.0)  # a slow link, say
    assert duty.owed(0.0) == 0.0
    assert duty.owed(1.0) == 3.0


def test_all_of_the_time() -> None:
    """Without a limit nothing is ever due."""
    duty = Duty(1.0)
    duty.idle(100.0, 0.0)
    assert duty.owed(100.0) == 0.0


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_bad_shares(share: float) -> None:
    """A share of the time is above 0, and 1 at most."""
    with pytest.raises(ConfigError, match="duty"):
        Duty(share)
