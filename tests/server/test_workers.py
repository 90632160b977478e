"""The server's threads: what has begun is never left half done."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from mobillm.server.workers import Workers
from tests.conftest import Run


def test_results_and_errors_come_back(run: Run) -> None:
    """Work runs in its own thread; its result or its exception is the caller's."""

    async def main() -> None:
        workers = Workers()
        assert await workers.train("a", lambda: pow(2, 10)) == 1024
        names = [
            await workers.train("a", threading.current_thread),
            await workers.write(threading.current_thread),
        ]
        assert [thread.name for thread in names] == ["mobillm-train", "mobillm-write_0"]
        with pytest.raises(ZeroDivisionError):
            await workers.write(lambda: 1 // 0)
        workers.close()

    run(main())


def test_cancellation_waits_for_work_that_has_begun(run: Run) -> None:
    """Even several cancellations do not return before the thread is done; waiting work never begins."""
    done: list[str] = []
    begun = threading.Event()

    def slow() -> None:
        begun.set()
        time.sleep(0.3)
        done.append("slow")
        raise RuntimeError("nobody will see this")

    async def main() -> None:
        workers = Workers()
        loop = asyncio.get_running_loop()
        running = loop.create_task(workers.train("a", slow))
        waiting = loop.create_task(workers.train("a", lambda: done.append("waiting")))
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        running.cancel()
        await asyncio.sleep(0.05)
        assert waiting.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert done == ["slow"]
        workers.close()
        assert done == ["slow"]

    run(main())
