"""Run coroutines of tests on asyncio and on uvloop, bounded, and see that nothing is left over."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import uvloop

# Two torch threads on a busy machine of two cores wait for each other; this also reaches child processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Real models and data are fetched once, whatever directory a test works in.
os.environ.setdefault("MOBILLM_CACHE", str(pathlib.Path(__file__).parent.parent / ".cache" / "mobillm"))
# Before anything imports Ray: it listens on the loopback address only, and tells nobody that it was used.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, Any]], Any]

BOUND = 30.0  # seconds
NOBODY = 65534  # a user without rights

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def pytest_collection_finish() -> None:
    """Let the collections after each test look at what that test made, not at all of torch."""
    gc.collect()
    gc.freeze()


async def _bounded(work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    async with asyncio.timeout(BOUND):
        result = await work
    left: list[asyncio.Task[Any]] = []
    for _ in range(20):  # closed transports end in a few turns of the loop
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if not left:
            break
        await asyncio.sleep(0.01)
    assert not left, f"tasks are left over: {left}"
    gc.collect()
    assert not errors, f"the loop saw errors that nobody handled: {errors}"
    return result


def _run(make_loop: Callable[[], asyncio.AbstractEventLoop], work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(_bounded(work))


@pytest.fixture(params=sorted(LOOPS))
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine, once on each event loop."""
    return lambda work: _run(LOOPS[request.param], work)


@pytest.fixture
def run_once() -> Run:
    """Run a coroutine on asyncio only, where the kind of the loop cannot matter."""
    return lambda work: _run(LOOPS["asyncio"], work)


@pytest.fixture
def no_fd_leak() -> Iterator[None]:
    """See that a test closes every file and socket it opens."""
    uvloop.new_event_loop().close()  # the first one opens a pipe for the whole process
    gc.collect()
    before = _open_files()
    yield
    gc.collect()
    after = _open_files()
    assert len(after) <= len(before), f"left open: {sorted(set(after) - set(before))}"


@pytest.fixture
def bound_by_permissions() -> Iterator[pathlib.Path]:
    """Return a directory of a user whom permissions bind, and be that user; root may read everything."""
    is_root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:
        if is_root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield pathlib.Path(folder)
        finally:
            if is_root:
                os.seteuid(0)
            for path in pathlib.Path(folder).rglob("*"):
                path.chmod(0o700)


def _open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name}: {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:
            continue  # the listing's own
    return found
