"""The queue between the compute thread and the loop: bounded in bytes, closed from the loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from mobillm.device.handover import Handover, HandoverClosed
from tests.conftest import Run


def test_items_come_in_order_and_the_thread_blocks(run: Run) -> None:
    """No more than the limit waits, whatever the thread wants."""
    most: list[int] = []

    async def main() -> None:
        handover: Handover[int] = Handover(100)

        def produce() -> None:
            for number in range(50):
                handover.put(number, 40)
                most.append(handover.held)

        thread = asyncio.get_running_loop().run_in_executor(None, produce)
        await asyncio.sleep(0.1)
        assert handover.held == 80
        assert len(most) == 2
        assert [await handover.get() for _ in range(50)] == list(range(50))
        await thread
        assert max(most) <= 80
        assert handover.held == 0

    run(main())


def test_a_pause_ends_when_the_reader_goes(run: Run) -> None:
    """A pause takes as long as it is asked to, or until nobody wants more."""

    async def main() -> None:
        handover: Handover[int] = Handover(100)
        loop = asyncio.get_running_loop()
        start = time.monotonic()
        await loop.run_in_executor(None, handover.pause, 0.05)
        assert time.monotonic() - start >= 0.049
        pausing = loop.run_in_executor(None, handover.pause, 60.0)
        handover.close()
        async with asyncio.timeout(5):
            with pytest.raises(HandoverClosed):
                await pausing

    run(main())


def test_the_loop_is_woken_once_for_what_waits(run: Run) -> None:
    """Items that come while others wait do not interrupt the loop again; after an empty queue they do."""

    async def main() -> None:
        handover: Handover[int] = Handover(100)
        loop, woken = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def count(*args: Any, **kwargs: Any) -> asyncio.Handle:
            nonlocal woken
            woken += 1
            return wake(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", count)
            for first in (0, 3):
                waiting = loop.create_task(handover.get())
                await asyncio.sleep(0)  # it waits
                for number in range(first, first + 3):
                    handover.put(number, 1)
                async with asyncio.timeout(5):
                    assert [await waiting, *[await handover.get() for _ in range(2)]] == [
                        first,
                        first + 1,
                        first + 2,
                    ]
        assert woken == 2

    run(main())


def test_a_large_item_passes_alone(run: Run) -> None:
    """An item larger than the limit waits for an empty queue, not for ever."""

    async def main() -> None:
        handover: Handover[str] = Handover(10)
        handover.put("small", 5)
        thread = asyncio.get_running_loop().run_in_executor(None, handover.put, "large", 1000)
        await asyncio.sleep(0.05)
        assert handover.held == 5
        assert await handover.get() == "small"
        assert await handover.get() == "large"
        await thread

    run(main())


def test_close_wakes_the_thread(run: Run) -> None:
    """A blocked put raises, and so does every later one."""

    async def main() -> None:
        handover: Handover[int] = Handover(10)
        handover.put(1, 10)
        raised = threading.Event()

        def produce() -> None:
            try:
                handover.put(2, 10)
            except HandoverClosed:
                raised.set()

        thread = asyncio.get_running_loop().run_in_executor(None, produce)
        await asyncio.sleep(0.05)
        assert not raised.is_set()
        handover.close()
        await thread
        assert raised.is_set()
        assert handover.held == 0
        with pytest.raises(HandoverClosed):
            handover.put(3, 0)

    run(main())


def test_get_can_be_cancelled(run: Run) -> None:
    """A cancelled get takes nothing."""

    async def main() -> None:
        handover: Handover[int] = Handover(10)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await handover.get()
        handover.put(1, 1)
        assert await handover.get() == 1

    run(main())
