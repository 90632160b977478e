"""Steps a minute."""

from __future__ import annotations

import asyncio

import pytest

from mobillm.server.pace import Pace


def test_steps_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant's steps come at equal distances; another tenant has its own; idle time is not saved up."""
    now = 0.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def main() -> None:
        nonlocal now
        pace = Pace(30, lambda: now)
        for _ in range(3):
            await pace.turn("a")
        await pace.turn("b")
        now = 100.0
        await pace.turn("a")
        await pace.turn("a")
        await Pace(0).turn("a")

    monkeypatch.setattr(asyncio, "sleep", sleep)
    coroutine = main()
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert slept == [2.0, 4.0, 2.0]
