"""The observer that tells nobody."""

from __future__ import annotations

from mobillm.errors import ErrorCode
from mobillm.protocol import Finished, Metrics
from mobillm.server.observer import Observer


def test_nobody_is_told() -> None:
    """A session without a device tells its news to the base class, to no effect."""
    observer = Observer()
    observer.acknowledge()
    observer.report(Metrics(stream=1, step=1, epoch=1))
    observer.finish(Finished(steps=1))
    observer.fail(ErrorCode.INTERNAL, "gone")
    assert vars(observer) == {}
