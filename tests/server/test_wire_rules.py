"""What the specification demands of a server, frame by frame, of a device that sends what it likes."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
from typing import Any, TypeVar

import numpy as np
import pytest
from safetensors.numpy import load

from mobillm.codec import pack, pack_integers
from mobillm.errors import ErrorCode, HandshakeError
from mobillm.formats import Format
from mobillm.options import Limits
from mobillm.protocol import (
    LENGTHS,
    TARGETS,
    Ack,
    Blob,
    Credit,
    Detach,
    Error,
    Eval,
    Evaluated,
    Finish,
    Finished,
    Gap,
    Message,
    Metrics,
    Open,
    Opened,
    Pull,
    Stored,
    Weights,
)
from mobillm.server.batch import Batch
from mobillm.server.session import Session
from tests.conftest import Run
from tests.helpers import wire_bytes
from tests.server.raw import messages_of, raw
from tests.sessions import as_batch, packed, serving, spec

M = TypeVar("M", bound=Message)


def test_opening(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-2] [O-3] [O-4] [X-3] [C-5] [L-8] [L-9] Names are random, figures are 0, credit comes at once."""

    async def main() -> None:
        limits = Limits(queue=1 << 20, batches=5)
        async with serving(tmp_path, limits=limits) as server, raw(server) as peer:
            first = await peer.opened(spec())
            second = await peer.opened(spec(), stream=2)
            assert first.session != second.session
            assert len(set(first.session)) > 4
            assert (first.epoch, first.received, first.durable, first.applied) == (1, 0, 0, 0)
            assert first.missing == ()
            grant = peer.of(Credit)[0]
            assert (grant.offset, grant.last) == (max(limits.queue, limits.frame + 32), limits.batches)

    run_once(main())


def test_a_bad_spec_is_refused_on_its_stream(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-16] [O-15] [V-9] [E-1] Malformed, out of range or critical; what is only unknown passes."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            good = spec().to_map()
            for change in ({"outputs": 0}, {"task": "poetry"}, {"!x": 1}, {"model": 5}, {"epochs": 10**6}):
                peer.connection.post(Open(stream=1, spec={**good, **change}))
                assert (await peer.get(Error)).code == ErrorCode.SCHEMA_MISMATCH
            peer.connection.post(Open(stream=1, spec={**good, "grease": [1]}))
            await peer.get(Opened)

    run_once(main())


def test_sessions_of_others_are_unknown(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-17] [O-18] [Y-6] [A-13] Another tenant's session and none at all get the same bytes."""

    async def main() -> None:
        async with (
            serving(tmp_path) as server,
            raw(server) as owner,
            raw(server, tenant="other", token="other token") as other,
        ):
            mine = (await owner.opened(spec())).session
            theirs, none = await other.open(mine), await other.open(bytes(16))
            assert isinstance(theirs, Error)
            assert theirs.code == ErrorCode.SESSION_UNKNOWN
            assert wire_bytes(theirs) == wire_bytes(none)
            await other.opened(spec(), stream=2)
            assert isinstance(await other.open(mine, stream=3), Error)
            await owner.batch(packed(spec(), 1))
            await owner.applied(1)

    run_once(main())


def test_nothing_before_auth_reaches_the_server(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[Y-5] A device with a wrong token leaves no session behind."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            with pytest.raises(HandshakeError):
                async with raw(server, token="guess"):
                    pass
        assert list((tmp_path / "sessions").iterdir()) == []

    run_once(main())


def test_acknowledgements(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-5] [X-6] [X-8] [X-9] [X-10] [B-15] [O-10] [L-9] In order, first on the disk, one step each."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            name = (await peer.opened(spec())).session.hex()
            log = tmp_path / "sessions" / name / "activations.log"
            batches = [packed(spec(), seq) for seq in range(1, 6)]
            for batch in batches:
                await peer.batch(batch)
            while (ack := await peer.get(Ack)).applied < 5:
                written = sum(batch.size for batch in batches[: ack.durable])
                assert log.stat().st_size >= written
            figures = [(ack.applied, ack.durable, ack.received) for ack in peer.of(Ack)]
            assert figures == sorted(figures)
            used = peer.connection.endpoint.credit_used(1)
            assert all(grant.offset <= used + Limits().queue for grant in peer.of(Credit))
            peer.connection.post(Finish(stream=1, seq=5))
            assert (await peer.get(Finished)).steps == 5
            assert [m.step for m in peer.of(Metrics)] == sorted(m.step for m in peer.of(Metrics))

    run_once(main())


def test_a_batch_again_is_acknowledged_and_not_applied(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-14] [B-13] [B-33] The same batch twice takes one step."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(spec())
            await peer.batch(packed(spec(), 1))
            await peer.applied(1)
            await peer.batch(packed(spec(), 1))
            assert (await peer.get(Ack)).received == 1
            peer.connection.post(Finish(stream=1, seq=1))
            assert (await peer.get(Finished)).steps == 1

    run_once(main())


def test_other_bytes_under_a_durable_number(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-15] SEQ_REUSE ends the stream; the first bytes stay."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            session = (await peer.opened(spec())).session
            await peer.batch(packed(spec(), 1))
            await peer.applied(1)
            other = packed(spec(), 2)
            await peer.batch(Batch(1, other.samples, False, other.headers, other.payloads))
            error = await peer.get(Error)
            assert (error.code, error.seq) == (ErrorCode.SEQ_REUSE, 0)
            assert (await peer.opened(session, stream=2)).received == 1

    run_once(main())


def test_a_gap_is_named_and_nothing_is_taken(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[B-32] [B-13] GAP names the number that comes next, which is then taken."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(spec())
            await peer.batch(packed(spec(), 3))
            gap = await peer.get(Gap)
            assert (gap.seq, gap.expected) == (3, 1)
            assert (await peer.get(Ack)).received == 0
            await peer.batch(packed(spec(), 1))
            await peer.applied(1)

    run_once(main())


def test_the_newest_attachment_wins(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-4] [O-19] [O-20] [X-16] The older one is told, and what it still sends has no effect."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as old, raw(server) as new:
            first = await old.opened(spec())
            await old.batch(packed(spec(), 1))
            await old.applied(1)
            second = await new.opened(first.session)
            assert second.epoch > first.epoch
            assert (await old.get(Error)).code == ErrorCode.SESSION_TAKEN_OVER
            # The old device's own core would not let a stale attachment speak, so its bytes are made here.
            assert old.connection._transport is not None
            stale = packed(spec(), 9)
            for message in messages_of(Batch(2, stale.samples, False, stale.headers, stale.payloads)):
                old.connection._transport.write(wire_bytes(message))
            await asyncio.sleep(0.05)
            new.connection.post(Eval(stream=1))
            await new.get(Evaluated)
            assert {ack.received for ack in new.of(Ack)} == {1}
            await new.batch(packed(spec(), 2))
            await new.applied(2)
            assert not new.of(Error)
            assert old.connection.is_open

    run_once(main())


def test_a_broken_connection_drops_the_open_batch(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[K-26] [X-3] [X-12] [T-4] The session lives on at the last whole batch."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            async with raw(server) as first:
                session = (await first.opened(spec())).session
                await first.batch(packed(spec(), 1))
                await first.applied(1)
                await first.batch(packed(spec(), 2), commit=False)
                assert first.connection._transport is not None
                first.connection._transport.write(b"ML\x01")
                first.connection.abort()
            async with raw(server) as second:
                again = await second.opened(session)
                assert (again.received, again.applied) == (1, 1)
                await second.batch(packed(spec(), 2))
                await second.applied(2)

    run_once(main())


def test_a_restart_keeps_what_was_durable(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-4] [X-9] [X-13] [O-29] After it `received` is at least every durable figure that was stated."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            session = (await peer.opened(spec())).session
            for seq in (1, 2, 3):
                await peer.batch(packed(spec(), seq))
            durable = 0
            while durable < 2:
                durable = (await peer.get(Ack)).durable
        async with serving(tmp_path) as server, raw(server) as peer:
            again = await peer.opened(session)
            assert durable <= again.received <= 3
            for seq in range(again.received + 1, 4):
                await peer.batch(packed(spec(), seq))
            peer.connection.post(Finish(stream=1, seq=3))
            assert (await peer.get(Finished)).steps == 3

    run_once(main())


def test_batches_that_do_not_fit_the_spec(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[B-11] [B-28] [B-29] [B-30] [B-31] [E-6] Each is an error of its batch, and the number is free."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(spec())
            good = packed(spec(), 1, samples=2)
            tokens = good.headers[0].shape[0]

            def changed(number: int, tensor: Any) -> Batch:
                headers, payloads = dict(good.headers), dict(good.payloads)
                headers[number], payloads[number] = tensor.header, tensor.payload
                return Batch(1, 2, False, headers, payloads)

            missing = {n: h for n, h in good.headers.items() if n != 1}
            wrong = [
                Batch(1, 2, False, missing, good.payloads),
                changed(1, pack(np.zeros((tokens + 1, 16), np.float32), Format.ASYM4, 32, "x")),
                changed(1, pack(np.zeros((tokens, 17), np.float32), Format.ASYM4, 32, "x")),
                changed(1, pack(np.zeros((tokens, 16), np.float32), Format.ASYM4, 64, "x")),
                changed(1, pack(np.zeros((tokens, 16), np.float32), Format.ASYM8, 32, "x")),
                changed(LENGTHS, pack_integers([tokens, 1], "x")),
                changed(LENGTHS, pack_integers([tokens, 0], "x")),
                changed(LENGTHS, pack(np.ones(2, np.float32), Format.F32, 64, "x")),
                changed(TARGETS, pack_integers([0], "x")),
                changed(TARGETS, pack_integers([0, 2], "x")),
                changed(TARGETS, pack_integers([0, -1], "x")),
                changed(TARGETS, pack(np.ones(2, np.float32), Format.F32, 64, "x")),
            ]
            for batch in wrong:
                await peer.batch(batch)
                error = await peer.get(Error)
                assert (error.code, error.seq) == (ErrorCode.SCHEMA_MISMATCH, 1)
            await peer.batch(good)
            await peer.applied(1)

    run_once(main())


def test_targets_of_each_task(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[B-29] Regression takes one f32 number for each sample."""

    async def main() -> None:
        what = spec(task="regression", outputs=1)
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(what)
            await peer.batch(packed(what, 1))
            await peer.applied(1)

    run_once(main())


def test_evaluation_and_weights(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[B-12] [O-8] [O-30] [O-31] [W-5] Held-out batches are evaluated; weights are one whole file."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(spec())
            await peer.batch(packed(spec(), 1))
            await peer.batch(packed(spec(), 2, heldout=True, samples=3))
            await peer.applied(2)
            for message in (Eval(stream=1), Pull(stream=1), Eval(stream=1)):
                peer.connection.post(message)
            result = await peer.get(Evaluated)
            assert (result.steps, result.samples) == (1, 3)
            assert {"loss", "accuracy"} <= set(result.values)
            content = b""
            while True:
                part = await peer.get(Weights)
                assert part.offset == len(content)
                content += part.payload
                if len(content) == part.total:
                    break
            assert hashlib.sha256(content).digest() == part.digest
            assert load(content)
            assert await peer.get(Evaluated) == result

    run_once(main())


def test_requests_that_wait_are_bounded(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[O-33] A flood of requests ends the stream with CALM."""

    async def never(self: Session) -> tuple[int, dict[str, float]]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Session, "evaluate", never)

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(spec())
            for _ in range(20):
                peer.connection.post(Eval(stream=1))
            assert (await peer.get(Error)).code == ErrorCode.CALM
            assert peer.connection.is_open

    run_once(main())


def test_finish(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-6] [O-7] [O-9] [O-24] [O-28] [O-29] Training ends without a device, and every attachment is told."""

    async def main() -> None:
        what = spec(epochs=2)
        async with serving(tmp_path) as server:
            async with raw(server) as peer:
                session = (await peer.opened(what)).session
                await peer.batch(packed(what, 1))
                await peer.applied(1)
                peer.connection.post(Finish(stream=1, seq=1))
                peer.connection.post(Detach(stream=1))
                await peer.get(Detach)
            async with raw(server) as peer:
                answer = await peer.open(session)
                assert isinstance(answer, Opened)
                if not answer.finished:
                    peer.connection.post(Finish(stream=1, seq=1))
                assert (await peer.get(Finished)).steps == 2
                peer.connection.post(Detach(stream=1))
                await peer.get(Detach)
                assert (await peer.opened(session)).finished
                assert any(isinstance(m, Finished) for m in peer.seen[-3:]) or await peer.get(Finished)

    run_once(main())


def test_finish_with_a_wrong_number(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-25] FINISH names the last batch that was received."""

    async def main() -> None:
        async with serving(tmp_path) as server, raw(server) as peer:
            await peer.opened(spec())
            peer.connection.post(Finish(stream=1, seq=4))
            assert (await peer.get(Error)).code == ErrorCode.SCHEMA_MISMATCH

    run_once(main())


def test_blobs(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-5] [O-22] [W-4] [W-9] A missing blob is asked for; others and wrong content are refused."""

    async def main() -> None:
        content = bytes(range(200))
        digest = hashlib.sha256(content).digest()
        what = spec(task="causal-lm", head=digest.hex())
        async with serving(tmp_path) as server, raw(server) as peer:
            assert (await peer.opened(what)).missing == (digest,)
            blob: Any = {"digest": digest, "total": 200, "offset": 0}
            await peer.connection.send(Blob(stream=1, **blob, payload=content[::-1]))
            assert (await peer.get(Error)).code == ErrorCode.SCHEMA_MISMATCH
            assert (await peer.opened(what, stream=2)).missing == (digest,)
            await peer.connection.send(Blob(stream=2, **{**blob, "digest": bytes(32)}, payload=content))
            assert (await peer.get(Error, stream=2)).code == ErrorCode.SCHEMA_MISMATCH
            await peer.opened(what, stream=3)
            await peer.connection.send(Blob(stream=3, **blob, payload=content))
            assert (await peer.get(Stored, stream=3)).digest == digest

    run_once(main())


def test_spans_come_only_when_asked_for(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[M-9] Kinds 0 to 2, batch, start and duration."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            for trace in (False, True):
                what = spec(trace=trace)
                async with raw(server) as peer:
                    await peer.opened(what)
                    for seq in (1, 2):
                        await peer.batch(packed(what, seq))
                    await peer.applied(2)
                    peer.connection.post(Finish(stream=1, seq=2))
                    await peer.get(Finished)
                    spans = [span for metrics in peer.of(Metrics) for span in metrics.spans]
                    assert {kind for kind, *_ in spans} == ({0, 1, 2} if trace else set())
                    assert all(batch in (1, 2) for _, batch, *_ in spans)

    run_once(main())


def test_credit_follows_the_memory_that_is_released(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[C-12] While a batch waits for its blob, what it holds is not granted again."""

    async def main() -> None:
        what = spec(task="causal-lm", head="ab" * 32)
        limits = Limits(queue=16384, frame=16384, chunk=8192)
        async with serving(tmp_path, limits=limits) as server, raw(server) as peer:
            await peer.opened(what)
            for seq in (1, 2):
                await peer.batch(packed(what, seq, samples=2))
            await asyncio.sleep(0.05)
            used = peer.connection.endpoint.credit_used(1)
            held = sum(packed(what, seq, samples=2).size for seq in (1, 2))
            room = peer.connection.endpoint.credit(1)
            assert room <= limits.queue + limits.frame - held
            assert used >= held

    run_once(main())


def test_batches_are_packed_the_same_every_time() -> None:
    """[X-2] A device that makes a batch again makes the same bytes."""
    one, other = packed(spec(), 7), packed(spec(), 7)
    assert {n: bytes(p) for n, p in one.payloads.items()} == {n: bytes(p) for n, p in other.payloads.items()}
    assert as_batch({}, 1, 1).size == 0
