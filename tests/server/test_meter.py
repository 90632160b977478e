"""The meter that counts nothing."""

from __future__ import annotations

import inspect
from typing import Any

from mobillm.server.meter import Meter
from mobillm.server.metrics import PrometheusMeter
from mobillm.transport import Address


def test_every_call_is_counted_by_prometheus() -> None:
    """The base class takes every call to no effect; the one for Prometheus leaves none out."""
    calls = [name for name, _ in inspect.getmembers(Meter, inspect.isfunction)]
    assert {name for name in calls if getattr(PrometheusMeter, name) is getattr(Meter, name)} == set()
    meter: Any = Meter()
    for name in set(calls) - {"close", "start", "listen"}:
        arguments = {"int": 1, "float": 0.5, "str": "x"}
        parameters = inspect.signature(getattr(meter, name)).parameters.values()
        assert getattr(meter, name)(*(arguments[str(each.annotation)] for each in parameters)) is None
    assert vars(meter) == {}
    assert PrometheusMeter(Address("127.0.0.1", 0)).monitor is None
