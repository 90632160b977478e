"""Sessions on a real Ray cluster of two nodes, on this machine's loopback address."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from mobillm.device import connect
from mobillm.errors import EngineError, RemoteError
from mobillm.options import Limits
from mobillm.server import worker_ray
from mobillm.server.engine_ray import RayEngine
from mobillm.transport import Server
from tests.cli.commands import start
from tests.conftest import Run
from tests.sessions import device, serving, spec, submit, train

# Ray's own sockets and processes outlive the objects that they belong to.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.timeout(300),
]

WHAT = spec(epochs=3, batches=4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Run a cluster of two nodes with one processor each; return the address of its head."""
    node = {
        "num_cpus": 1,
        "object_store_memory": 80 << 20,
        "include_dashboard": False,
        "node_ip_address": "127.0.0.1",
    }
    nodes: Any = Cluster(initialize_head=True, head_node_args=node, shutdown_at_exit=False)
    try:
        nodes.add_node(wait=True, **node)
        yield nodes.address
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each actor loads torch, which may take a minute on a machine that does other work, too.
    monkeypatch.setattr("tests.conftest.BOUND", 250.0)
    monkeypatch.setattr(worker_ray, "PLACE", 200.0)


@contextlib.asynccontextmanager
async def on_ray(
    cluster: str, folder: pathlib.Path, cpus: float = 0.25
) -> AsyncIterator[tuple[Server, RayEngine]]:
    """Run a server whose sessions are trained on the cluster."""
    engine = RayEngine(cluster, cpus=cpus, threads=1)
    async with serving(folder, engine=engine) as server:
        yield server, engine
    assert engine.workers == {}
    assert not ray.is_initialized()


async def local(folder: pathlib.Path, seed: int = 3) -> bytes:
    """Return the weights of the session without Ray."""
    async with serving(folder) as server, device(server) as client:
        session = await client.open(spec(epochs=3, batches=4, seed=seed))
        await submit(session, 1, 3)
        await submit(session, 4, 4, heldout=True)
        await session.finish()
        await session.wait_finished()
        return await session.pull()


def test_a_killed_actor_goes_on_elsewhere(run_once: Run, cluster: str, tmp_path: pathlib.Path) -> None:
    """Weights equal those of the local engine bit for bit, also when an actor's process is killed."""

    async def main() -> None:
        expected = await local(tmp_path / "local")
        async with on_ray(cluster, tmp_path / "ray") as (server, engine), device(server) as client:
            session = await client.open(WHAT)
            await submit(session, 1, 2)
            await session.wait_applied(2)
            (worker,) = engine.workers.values()
            first = (worker.node, worker.pid)
            os.kill(worker.pid, signal.SIGKILL)
            await submit(session, 3, 3)
            await submit(session, 4, 4, heldout=True)
            await session.wait_applied(4)
            assert worker.node != first[0]
            assert worker.pid != first[1]
            await session.finish()
            await session.wait_finished()
            assert await session.pull() == expected
            figures = await session.evaluate()
            assert figures.samples == 4

    run_once(main())


@pytest.mark.slow
def test_eight_sessions_share_two_nodes(run_once: Run, cluster: str, tmp_path: pathlib.Path) -> None:
    """Actors run on both nodes, and each session's weights are those of training alone; a restart goes on."""

    async def main() -> None:
        async with on_ray(cluster, tmp_path / "ray") as (server, engine), device(server) as client:
            sessions = await asyncio.gather(
                *(client.open(spec(epochs=3, batches=4, seed=seed)) for seed in range(8))
            )
            for session in sessions:
                await submit(session, 1, 3)
                await submit(session, 4, 4, heldout=True)
            await asyncio.gather(*(session.wait_applied(4) for session in sessions))
            assert len({worker.node for worker in engine.workers.values()}) == 2
            assert len({worker.pid for worker in engine.workers.values()}) == 8
        # Stopped with all of them under way, it has saved them all, and goes on with them in one process.
        assert len(list(tmp_path.glob("ray/sessions/*/checkpoint-000000000003-*"))) == 8
        async with serving(tmp_path / "ray") as server, device(server) as client:
            for seed in (0, 7):
                again = await client.attach(sessions[seed].id, sessions[seed].spec)
                await again.finish()
                await again.wait_finished()
                assert await again.pull() == await local(tmp_path / f"local-{seed}", seed)

    run_once(main())


def test_a_cluster_without_room(
    run_once: Run, cluster: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device is told to come later; a session that needs no device is started when there is room."""
    monkeypatch.setattr(worker_ray, "PLACE", 1.0)
    monkeypatch.setattr("mobillm.server.gateway.RETRY", 0.2)

    async def main() -> None:
        expected = await local(tmp_path / "local")
        slow = Limits(steps=240)  # a minute: it is stopped before the last epoch
        async with serving(tmp_path / "ray", limits=slow) as server, device(server) as client:
            session = await client.open(WHAT)
            await submit(session, 1, 3)
            await submit(session, 4, 4, heldout=True)
            await session.wait_applied(4)
            await session.finish()
            await session.detach()
        async with on_ray(cluster, tmp_path / "ray", cpus=2.0) as (server, engine):
            async with device(server) as client:
                again = await client.attach(session.id, session.spec)
                with pytest.raises(RemoteError, match="nowhere to train this session now"):
                    await again.wait_finished()
            monkeypatch.setattr(worker_ray, "PLACE", 200.0)
            engine._cpus = 0.25
            while not list(tmp_path.glob("ray/sessions/*/checkpoint-000000000009-*")):
                await asyncio.sleep(0.05)
            async with device(server) as client:
                again = await client.attach(session.id, session.spec)
                await again.wait_finished()
                assert await again.pull() == expected

    run_once(main())


def test_nobody_there(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A server whose cluster does not answer does not start, and says so at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

        async def main() -> None:
            for wrong in (address, "nonsense"):
                with pytest.raises(EngineError, match=f"no Ray cluster answers at {wrong}"):
                    async with serving(tmp_path, engine=RayEngine(wrong)):
                        pass

        run_once(main())


@pytest.mark.slow
def test_a_ray_of_its_own(tmp_path: pathlib.Path) -> None:
    """Without an address the command starts Ray for itself, on the loopback address, and ends all of it."""
    arguments = ["--data-dir", str(tmp_path), "--listen", "127.0.0.1:0", "--json", "--device", "cpu"]
    with start("serve", *arguments, "--engine", "ray", "--ray-cpus", "0.5", "--threads", "1") as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        ours = psutil.Process(process.pid).children(recursive=True)

        async def main() -> bytes:
            token = (tmp_path / "token").read_text().strip()
            async with connect(address, token=token) as client:
                return (await train(client, spec(batches=2, epochs=2), 2))[1]

        assert asyncio.run(main())
        places = []
        for one in ours:
            with contextlib.suppress(psutil.NoSuchProcess):  # the actor's process may have ended by now
                places += [c.laddr.ip for c in one.net_connections("tcp") if c.status == "LISTEN"]
        assert set(places) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert places
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), err
    gone, left = psutil.wait_procs(ours, 10)
    assert (bool(gone), left) == (True, [])
