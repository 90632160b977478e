"""The whole server with numpy devices: several sessions, restarts, and bit-equal results."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import pathlib
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import safetensors.torch
import torch

from mobillm.device import Client, connect
from mobillm.errors import ConfigError, ConnectionClosed, ErrorCode, LocalProtocolError, RemoteError
from mobillm.options import Timeouts
from mobillm.server.batch import Batch
from mobillm.server.engine import Step
from mobillm.server.learner import Learner, Piece
from mobillm.server.trainer import Trainer
from mobillm.spec import OptimizerSpec, SessionSpec, SideSpec
from mobillm.transport import Server
from tests.conftest import Run
from tests.processes import server_process
from tests.sessions import TOKEN, arrays, device, packed, serving, spec, submit, train

EPOCHS = 3
BATCHES = 8
SPEC = spec(epochs=EPOCHS, batches=BATCHES, optimizer=OptimizerSpec(lr=5e-3, schedule="onecycle", warmup=0.2))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the weights of a run that nothing disturbed."""

    async def main() -> bytes:
        async with serving(tmp_path_factory.mktemp("undisturbed")) as server, device(server) as client:
            return (await train(client, SPEC, BATCHES))[1]

    return asyncio.run(main())


def test_one_session_from_open_to_pull(run: Run, tmp_path: pathlib.Path, undisturbed: bytes) -> None:
    """Loss falls, all is acknowledged, and two runs give the same bits."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session, weights = await train(client, SPEC, BATCHES)
            assert (session.received, session.durable, session.applied) == (BATCHES,) * 3
            assert session.finished is not None
            assert session.finished.steps == EPOCHS * BATCHES
            assert session.finished.loss is not None
            assert session.finished.loss < 0.67
            assert weights == undisturbed
            assert set(safetensors.torch.load(weights)) == set(
                dict(Trainer(SPEC, {}).network.named_parameters())
            )

    run(main())


def test_two_sessions_at_once_on_one_and_two_connections(
    run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes
) -> None:
    """Sessions do not disturb each other, whoever shares the connection."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as one, device(server) as two:
            results = await asyncio.gather(
                train(one, SPEC, BATCHES), train(one, SPEC, BATCHES), train(two, SPEC, BATCHES)
            )
            assert {weights for _, weights in results} == {undisturbed}
            assert len({session.id for session, _ in results}) == 3

    run_once(main())


@pytest.mark.parametrize("sent", [1, 5, BATCHES])
def test_restart_in_the_first_epoch(
    run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes, sent: int
) -> None:
    """The device comes back to a restarted server and sends the rest; the result has the same bits."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(SPEC)
            name = session.id
            await submit(session, 1, sent)
            await session.wait_durable(1)
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.attach(name, SPEC)
            assert session.received >= 1
            await submit(session, session.received + 1, BATCHES)
            await session.finish()
            await session.wait_finished()
            assert await session.pull() == undisturbed

    run_once(main())


@pytest.mark.parametrize("steps", [BATCHES + 1, 2 * BATCHES, 3 * BATCHES - 1])
def test_restart_in_later_epochs(
    run_once: Run,
    tmp_path: pathlib.Path,
    undisturbed: bytes,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Epochs that need no device go on by themselves after a restart; the result has the same bits."""
    step = Trainer.step
    reached = threading.Event()

    def slow(self: Trainer, batch: Batch) -> float | None:
        if self.steps == steps and not reached.is_set():
            reached.set()
            time.sleep(0.2)  # the server is told to stop in the middle of this step
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", slow)

    async def main() -> None:
        async with serving(tmp_path) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
                await submit(session, 1, BATCHES)
                await session.finish()
                await session.wait_durable()
            await asyncio.to_thread(reached.wait, 10.0)
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.attach(session.id, SPEC)
            finished = await session.wait_finished()
            assert finished.steps == EPOCHS * BATCHES
            assert await session.pull() == undisturbed

    run_once(main())


@pytest.mark.parametrize("sent", [3, BATCHES])
def test_killed_in_another_process(
    run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes, sent: int
) -> None:
    """A server that is killed loses nothing that it acknowledged as durable."""

    async def begin(address: str) -> bytes:
        async with connect(address, token=TOKEN) as client:
            session = await client.open(SPEC)
            await submit(session, 1, sent)
            if sent == BATCHES:
                await session.finish()
            await session.wait_durable(sent)
            return session.id

    async def end(address: str, name: bytes) -> None:
        async with connect(address, token=TOKEN) as client:
            session = await client.attach(name, SPEC)
            assert session.received >= sent
            if session.received < BATCHES:
                await submit(session, session.received + 1, BATCHES)
            await session.finish()
            await session.wait_finished()
            assert await session.pull() == undisturbed

    with server_process(tmp_path, kill=True) as address:
        name = run_once(begin(address))
    with server_process(tmp_path) as address:
        run_once(end(address, name))


def test_keepalive_during_a_long_step(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training does not keep the server from answering, for longer than both bounds."""
    step = Trainer.step

    def slow(self: Trainer, batch: Batch) -> float | None:
        time.sleep(0.8)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", slow)
    timeouts = Timeouts(keepalive=0.1, keepalive_reply=0.3, drain=0.3)

    async def main() -> None:
        async with (
            serving(tmp_path, timeouts=timeouts) as server,
            device(server, timeouts=timeouts) as client,
        ):
            session = await client.open(spec())
            await submit(session, 1, 1)
            await session.wait_durable()
            assert session.applied == 0
            await session.wait_applied()
            assert client.connection.keepalive.round_trip is not None
            assert client.connection.keepalive.round_trip < 0.3

    run(main())


def test_killed_without_a_checkpoint(run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes) -> None:
    """With all checkpoints of a crash gone, the log alone gives the same bits."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(SPEC)
            await submit(session, 1, BATCHES)
            await session.finish()
            await session.wait_finished()
        for path in (tmp_path / "sessions" / session.id.hex()).glob("checkpoint-*"):
            path.unlink()
        async with serving(tmp_path) as server, device(server) as client:
            again = await client.attach(session.id, SPEC)
            await again.wait_finished()
            assert await again.pull() == undisturbed

    run_once(main())


def test_device_leaves_after_finish_and_comes_back_for_the_result(
    run: Run, tmp_path: pathlib.Path, undisturbed: bytes
) -> None:
    """Later epochs need no device; whoever comes back, even twice, gets the result."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            async with device(server) as client:
                session = await client.open(SPEC)
                await submit(session, 1, BATCHES)
                await session.finish()
            for _ in range(2):
                async with device(server) as client:
                    session = await client.attach(session.id, SPEC)
                    await session.finish()  # changes nothing
                    await session.wait_finished()
                    assert await session.pull() == undisturbed
                    with pytest.raises(LocalProtocolError, match="takes no more batches"):
                        await submit(session, BATCHES + 1, BATCHES + 1)

    run(main())


def test_finish_that_was_not_durable(run_once: Run, tmp_path: pathlib.Path, undisturbed: bytes) -> None:
    """A crash may keep FINISH and lose the last batch; then the device sends it again."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(SPEC)
            await submit(session, 1, BATCHES)
            await session.finish()
            await session.wait_durable()
        folder = tmp_path / "sessions" / session.id.hex()
        for path in folder.glob("checkpoint-*"):
            path.unlink()
        log = folder / "activations.log"
        log.write_bytes(log.read_bytes()[:-1])
        async with serving(tmp_path) as server, device(server) as client:
            again = await client.attach(session.id, SPEC)
            assert again.received == BATCHES - 1
            await submit(again, BATCHES, BATCHES)
            await again.finish()
            await again.wait_finished()
            assert await again.pull() == undisturbed

    run_once(main())


def test_damaged_sessions_are_left_alone(run_once: Run, tmp_path: pathlib.Path) -> None:
    """One session with damaged files does not keep the server, or others, from working."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            bad, _ = await train(client, SPEC, BATCHES)
            good, weights = await train(client, SPEC, BATCHES)
        with contextlib.closing(sqlite3.connect(tmp_path / "registry.sqlite")) as registry, registry:
            registry.execute("UPDATE sessions SET spec = '{}' WHERE id = ?", (bad.id.hex(),))
        (tmp_path / "sessions" / "no-session").mkdir()
        async with serving(tmp_path) as server, device(server) as client:
            with pytest.raises(RemoteError) as info:
                await client.attach(bad.id, SPEC)
            assert info.value.code == ErrorCode.INTERNAL  # a device that is told so keeps its session
            assert info.value.retry_after is None
            assert await (await client.attach(good.id, SPEC)).pull() == weights

    run_once(main())


def test_all_checkpoints_damaged(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A session without an intact checkpoint is refused, without details of the server's disk."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session, _ = await train(client, SPEC, BATCHES)
        for path in (tmp_path / "sessions" / session.id.hex()).glob("checkpoint-*"):
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        async with serving(tmp_path) as server, device(server) as client:
            again = await client.attach(session.id, SPEC)
            with pytest.raises(RemoteError, match=f"files of session {session.id.hex()} are damaged") as info:
                await again.pull()
            assert (info.value.code, info.value.retry_after) == (ErrorCode.INTERNAL, None)
            assert str(tmp_path) not in str(info.value)

    run_once(main())


def test_stop_in_mid_training_tells_every_waiter(run: Run, tmp_path: pathlib.Path) -> None:
    """All who wait for a server that stops get one clear exception each."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            client = await device(server)
            session = await client.open(SPEC)
            await submit(session, 1, 2)
            waits = [session.wait_finished(), session.wait_applied(5), session.wait_durable(5)]
            tasks = [asyncio.ensure_future(wait) for wait in waits]
            await session.wait_applied(2)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ConnectionClosed)
        with pytest.raises(ConnectionClosed):
            await session.submit(*_positional(3))
        await client.close()

    run(main())


def _positional(seq: int) -> tuple[list[Any], list[int], Any]:
    data = arrays(seq)
    return list(data.taps), data.lengths, data.targets


def test_digest_of_the_pull(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Weights arrive in several parts, whole."""

    async def main() -> None:
        wide = spec(side=SideSpec(width=64, heads=2), batches=None)
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(wide)
            await submit(session, 1, 1)
            await session.wait_applied()
            first, second = await asyncio.gather(session.pull(), session.pull())
            assert hashlib.sha256(first).digest() == hashlib.sha256(second).digest()
            assert len(first) > 100_000
            trainer = Trainer(wide, {})
            trainer.step(packed(wide, 1))
            assert first == trainer.weights()

    run_once(main())


def test_refused_specs(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A session of a task that the server does not know is refused; the connection lives on."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            good = spec()
            object.__setattr__(good, "task", "poetry")
            with pytest.raises(RemoteError, match="task is something else"):
                await client.open(good)
            with pytest.raises(ConfigError, match="blobs"):
                await client.open(_language())
            assert (await train(client, SPEC, BATCHES))[0].finished is not None

    run_once(main())


def _language() -> SessionSpec:
    return spec(task="causal-lm", head="0" * 64)


def _seeded(seed: int) -> SessionSpec:
    return dataclasses.replace(SPEC, seed=seed)


def test_sessions_trained_together(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are those of each alone but for rounding, through evaluation, leaving and a restart midway."""
    sizes: list[int] = []
    original = Learner.step_together

    def noted(learners: Sequence[Learner], pieces: Sequence[Piece]) -> list[Step | Exception]:
        sizes.append(len(learners))
        return original(learners, pieces)

    monkeypatch.setattr(Learner, "step_together", noted)
    seeds = range(4)

    async def first(server: Server, seed: int) -> bytes:
        async with device(server) as client:
            session = await client.open(_seeded(seed))
            await submit(session, 1, BATCHES // 2)
            if seed == 1:
                await session.evaluate()
            await session.wait_durable(BATCHES // 2)  # and leaves, while the others go on
            return session.id

    async def second(client: Client, seed: int, name: bytes) -> bytes:
        session = await client.attach(name, _seeded(seed))
        assert session.received == BATCHES // 2
        await submit(session, session.received + 1, BATCHES)
        await session.finish()
        await session.wait_finished()
        assert (session.received, session.durable, session.applied) == (BATCHES,) * 3
        assert session.finished is not None
        assert session.finished.steps == EPOCHS * BATCHES
        return await session.pull()

    async def main() -> None:
        async with serving(tmp_path / "alone") as server, device(server) as client:
            alone = await asyncio.gather(*(train(client, _seeded(seed), BATCHES) for seed in seeds))
        assert sizes == []
        async with serving(tmp_path / "together", group=4) as server:
            names = await asyncio.gather(*(first(server, seed) for seed in seeds))
        async with serving(tmp_path / "together", group=4) as server, device(server) as client:
            pairs = zip(seeds, names, strict=True)
            together = await asyncio.gather(*(second(client, seed, name) for seed, name in pairs))
        for own, (_, other) in zip(together, alone, strict=True):
            own_tensors, other_tensors = safetensors.torch.load(own), safetensors.torch.load(other)
            for name, value in other_tensors.items():
                torch.testing.assert_close(own_tensors[name], value, rtol=0, atol=1e-4)

    run_once(main())
    assert set(sizes) <= {2, 3, 4}
    assert 4 in sizes
