"""Run parts of the suite against a server or a client of this package, on either event loop."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import uvloop

from mobillm.cli import conformance_client
from mobillm.conformance import Case, Lab, Result, Target, Visit, failure, run_cases
from mobillm.conformance.statements import load
from mobillm.options import Limits, Timeouts
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.transport import Address

__all__ = ["LOOPS", "TENANTS", "client_results", "passing", "running", "server_results"]

TENANTS = (("alice", "open sesame"), ("bob", "another token"))
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
BOUND = 100.0  # seconds


@contextlib.contextmanager
def running(
    directory: pathlib.Path,
    *,
    loop: str = "uvloop",
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    bound: float = 10.0,
) -> Iterator[Target]:
    """Run a server in a thread of its own; yield what the suite has to know of it.

    Args:
        directory: for its files.
        loop: its event loop.
        tls: contexts of the server and of the suite; None speaks plain TCP.
        bound: seconds that the suite waits for an answer.

    """
    found: list[Address] = []
    ready, over = threading.Event(), threading.Event()

    async def main() -> None:
        keys = {tenant: derive_key(secret) for tenant, secret in TENANTS}
        async with serve(
            "127.0.0.1:0",
            keys=keys,
            directory=directory,
            tls=None if tls is None else tls[0],
            timeouts=Timeouts(drain=0.2),
            # The suite logs in, and fails to, from one address.
            limits=Limits(handshakes_per_host=64, failed_logins=1000, sessions=10_000),
        ) as server:
            found.append(server.address)
            ready.set()
            await asyncio.to_thread(over.wait)

    def run() -> None:
        torch.set_num_threads(1)
        try:
            with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
                runner.run(main())
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        assert found, "the server did not start"
        yield Target(found[0], TENANTS, None if tls is None else tls[1], bound)
    finally:
        over.set()
        thread.join(60)
        assert not thread.is_alive()


def server_results(target: Target, cases: Sequence[Case[Lab]], *, loop: str = "uvloop") -> list[Result]:
    """Run cases against a server."""
    return _run(lambda: run_cases(cases, lambda: Lab(target), jobs=16), loop)


def client_results(cases: Sequence[Case[Visit]], *, loop: str = "uvloop") -> list[Result]:
    """Run cases against this package's client, on the suite's own loop."""

    def visit() -> Visit:
        return Visit(conformance_client.visit, Address("127.0.0.1", 0), "a token", bound=10.0)

    return _run(lambda: run_cases(cases, visit, jobs=24), loop)


def _run(work: Callable[[], Any], loop: str) -> list[Result]:
    async def bounded() -> list[Result]:
        async with asyncio.timeout(BOUND):
            results: list[Result] = await work()
        await asyncio.sleep(0.01)  # aborted transports end in the next turns of the loop
        return results

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(bounded())


def passing(results: Sequence[Result]) -> int:
    """See that every case was run and passed; return how many there were."""
    statements = load()
    failed = [failure(result, statements) for result in results if result.deviation is not None]
    assert not failed, f"{len(failed)} failures, the first of them:\n" + "\n\n".join(failed[:3])
    skipped = [f"{result.case.id}: {result.skipped}" for result in results if result.skipped is not None]
    assert not skipped, skipped
    return len(results)
