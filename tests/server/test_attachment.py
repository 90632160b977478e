"""What a device may send on a stream, frame by frame, and what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import pathlib
import types
from collections.abc import AsyncIterator
from typing import Any, TypeVar, cast

import pytest

from mobillm.errors import ErrorCode
from mobillm.nn.backbone import Backbone
from mobillm.options import Limits
from mobillm.protocol import (
    Abort,
    Ack,
    Blob,
    Commit,
    Credit,
    Data,
    Detach,
    Error,
    Eval,
    Evaluated,
    Finish,
    Gap,
    Message,
    Metrics,
    Open,
    Opened,
    Pull,
    Stored,
    Weights,
)
from mobillm.server.attachment import Attachment
from mobillm.server.batch import Batch
from mobillm.server.blobs import BlobStore
from mobillm.server.engine_local import LocalEngine
from mobillm.server.memory import Memory
from mobillm.server.quota import Quota
from mobillm.server.registry import Registry
from mobillm.server.session import Session
from mobillm.server.trainer import Trainer
from mobillm.server.training import Training
from mobillm.server.workers import Workers
from mobillm.spec import SessionSpec
from mobillm.transport import Connection, Server
from mobillm.transport import connect as connect_transport
from tests.conftest import Run
from tests.nn.tiny import tail_session, tiny_model, tiny_tokenizer
from tests.sessions import QUICK, TOKEN, arrays, device, new_store, packed, serving, spec

M = TypeVar("M", bound=Message)


class Wire:
    """A device that sends single frames on stream 1."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.seen: list[Message] = []

    async def expect(self, kind: type[M]) -> M:
        """Return the next message of a type; others are kept in ``seen``."""
        async with asyncio.timeout(10.0):
            while True:
                message = await self.connection.recv()
                self.seen.append(message)
                if isinstance(message, kind):
                    return message

    async def open(self, what: SessionSpec) -> Opened:
        """Start a session."""
        self.connection.post(Open(stream=1, spec=what.to_map()))
        opened = await self.expect(Opened)
        await self.expect(Credit)
        return opened

    async def data(self, batch: Batch) -> None:
        """Send the tensors of a batch, each in one part."""
        for number, header in batch.headers.items():
            await self.connection.send(
                Data(
                    stream=1,
                    seq=batch.seq,
                    tensor=number,
                    offset=0,
                    format=int(header.format),
                    block=header.block,
                    shape=header.shape,
                    payload=memoryview(batch.payloads[number]),
                )
            )

    async def batch(self, batch: Batch) -> None:
        """Send a whole batch."""
        await self.data(batch)
        tensors, size, checksum = self.connection.endpoint.batch_summary(1)
        await self.connection.send(
            Commit(
                stream=1,
                seq=batch.seq,
                tensors=tensors,
                size=size,
                checksum=checksum,
                samples=batch.samples,
                heldout=batch.heldout,
            )
        )

    async def applied(self, seq: int) -> Ack:
        """Wait until a batch was trained on."""
        while (ack := await self.expect(Ack)).applied < seq:
            pass
        return ack


@contextlib.asynccontextmanager
async def wire(tmp_path: pathlib.Path, limits: Limits | None = None) -> AsyncIterator[Wire]:
    """Yield a device on a server of its own."""
    async with (
        serving(tmp_path, limits=limits) as server,
        connect_transport(server.address, token=TOKEN, timeouts=QUICK) as connection,
    ):
        yield Wire(connection)


def test_duplicates_are_acknowledged_and_not_applied(run: Run, tmp_path: pathlib.Path) -> None:
    """A batch that comes again changes nothing; other bytes under its number end the stream."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            await near.batch(packed(spec(), 1))
            await near.batch(packed(spec(), 1))
            await near.batch(packed(spec(), 2))
            ack = await near.applied(2)
            assert (ack.received, ack.durable) == (2, 2)
            near.connection.post(Eval(stream=1))
            assert (await near.expect(Evaluated)).steps == 2
            await near.batch(_renumbered(packed(spec(), 9), 2))
            error = await near.expect(Error)
            assert (error.stream, error.code) == (1, ErrorCode.SEQ_REUSE)

    run(main())


def _renumbered(batch: Batch, seq: int) -> Batch:
    return Batch(seq, batch.samples, batch.heldout, batch.headers, batch.payloads)


def test_nothing_of_an_ended_attachment_counts(
    run_once: Run, tmp_path: pathlib.Path, registry: Registry
) -> None:
    """Messages that were under way when the attachment ended change nothing."""

    async def main() -> None:
        workers = Workers()
        session = Session(new_store(tmp_path, spec()), workers, LocalEngine(workers))
        connection = types.SimpleNamespace(is_open=False)
        blobs, quota = BlobStore(tmp_path / "blobs", registry), Quota(Limits(), ())
        attachment = Attachment(session, cast(Any, connection), 1, blobs, Limits(), quota, Memory(1 << 30, 1))
        attachment.fail(ErrorCode.SESSION_TAKEN_OVER, "elsewhere")
        batch = packed(spec(), 1)
        for number, header in batch.headers.items():
            payload = batch.payloads[number]
            first = {"format": int(header.format), "block": header.block, "shape": header.shape}
            data: Any = Data(stream=1, seq=1, tensor=number, offset=0, payload=payload, **cast(Any, first))
            await attachment.receive(data)
        await attachment.receive(
            Commit(stream=1, seq=1, tensors=4, size=batch.size, checksum=0, samples=batch.samples)
        )
        assert (session.received, session.waiting) == (0, 0)
        await session.close()
        workers.close()

    run_once(main())


def test_a_gap_is_named(run: Run, tmp_path: pathlib.Path) -> None:
    """Nothing after a missing batch is taken until it comes."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            await near.batch(packed(spec(), 2))
            gap = await near.expect(Gap)
            assert (gap.seq, gap.expected) == (2, 1)
            await near.batch(packed(spec(), 1))
            await near.batch(packed(spec(), 2))
            assert (await near.applied(2)).received == 2

    run(main())


def test_a_bad_batch_is_an_error_of_that_batch(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The stream goes on: a right batch with the same number is taken."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            bad = packed(spec(outputs=9), 1)
            payload = bytearray(bad.payloads[1000])
            payload[0] = 7  # a class that the session does not have
            await near.batch(Batch(1, 4, False, bad.headers, {**bad.payloads, 1000: memoryview(payload)}))
            error = await near.expect(Error)
            assert (error.seq, error.code) == (1, ErrorCode.SCHEMA_MISMATCH)
            assert "targets is 7" in error.text
            await near.batch(packed(spec(), 1))
            await near.applied(1)

    run_once(main())


def test_abort_of_the_open_batch_and_of_another(run_once: Run, tmp_path: pathlib.Path) -> None:
    """Only the open batch is dropped."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            await near.data(packed(spec(), 1))
            near.connection.post(Abort(stream=1, seq=1))
            batch = packed(spec(), 1)
            await near.data(batch)
            near.connection.post(Abort(stream=1, seq=5))
            tensors, size, checksum = near.connection.endpoint.batch_summary(1)
            await near.connection.send(
                Commit(stream=1, seq=1, tensors=tensors, size=size, checksum=checksum, samples=4)
            )
            await near.applied(1)

    run_once(main())


def test_heldout_batches_are_evaluated_and_not_trained_on(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The weights are those of training without them."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            await near.batch(packed(spec(), 1))
            await near.batch(packed(spec(), 2, heldout=True))
            await near.batch(packed(spec(), 3))
            await near.applied(3)
            near.connection.post(Eval(stream=1))
            near.connection.post(Pull(stream=1))
            evaluated = await near.expect(Evaluated)
            assert (evaluated.steps, evaluated.samples) == (2, 4)
            assert set(evaluated.values) == {"loss", "accuracy"}
            weights = await near.expect(Weights)
            trainer = Trainer(spec(), {})
            for seq in (1, 3):
                trainer.step(packed(spec(), seq))
            assert weights.payload == trainer.weights()
            assert weights.digest == hashlib.sha256(trainer.weights()).digest()

    run_once(main())


def test_credit_bounds_what_the_server_holds(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is trained, the device gets no further than the window, even if it comes again."""
    limits = Limits(queue=16 * 1024, frame=16 * 1024, chunk=8 * 1024, batches=1000)
    big = packed(spec(), 1, samples=100)
    gate = asyncio.Event()

    async def blocked(self: Training, batch: Batch, queue: int) -> None:
        await gate.wait()
        await original(self, batch, queue)

    original = Training.first_epoch
    monkeypatch.setattr(Training, "first_epoch", blocked)

    async def fill(near: Wire, first: int) -> int:
        sent = first - 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    await near.batch(_renumbered(big, sent + 1))
                    sent += 1
        return sent

    async def main() -> None:
        async with serving(tmp_path, limits=limits) as server:
            first = await _connected(server)
            opened = await first.open(spec())
            sent = await fill(first, 1)
            assert sent > 0
            assert sent * big.size <= limits.queue + limits.frame  # one frame may always be sent
            again = await _connected(server)
            again.connection.post(Open(stream=1, session=opened.session))
            received = (await again.expect(Opened)).received
            more = await fill(again, received + 1)
            assert more * big.size <= limits.queue + limits.frame
            gate.set()
            await first.connection.close()
            await again.connection.close()

    run_once(main())


async def _connected(server: Server) -> Wire:
    return Wire(await connect_transport(server.address, token=TOKEN, timeouts=QUICK))


def test_a_batch_larger_than_the_window_passes_alone(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The window is no limit of a batch."""
    limits = Limits(queue=16 * 1024, frame=16 * 1024, chunk=1024)

    async def main() -> None:
        async with serving(tmp_path, limits=limits) as server, device(server) as client:
            session = await client.open(spec())
            for seq in (1, 2, 3):
                data = arrays(seq, 1500)
                assert packed(spec(), seq, samples=1500).size > 3 * limits.queue
                await session.submit(data.taps, data.lengths, data.targets)
            await session.wait_applied(3)

    run_once(main())


def test_requests_are_bounded(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A device that asks faster than it is answered is told to calm down."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            for _ in range(100):
                near.connection.post(Pull(stream=1))
            assert (await near.expect(Error)).code == ErrorCode.CALM

    run_once(main())


def test_finish_and_detach(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A wrong FINISH ends the stream; after DETACH the number is free."""

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            await near.batch(packed(spec(), 1))
            near.connection.post(Finish(stream=1, seq=7))
            error = await near.expect(Error)
            assert "FINISH.seq is 7" in error.text
            near.connection.post(Detach(stream=1))
            await near.expect(Detach)
            again = await near.open(spec())
            near.connection.post(Detach(stream=1))
            near.connection.post(Open(stream=2, session=again.session))
            opened = await near.expect(Opened)
            assert (opened.stream, opened.epoch) == (2, again.epoch + 1)

    run_once(main())


def test_blobs_that_nobody_asked_for(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[W-16] Only the blob of the spec is stored, and only with the right content."""
    data = b"no head at all" * 10
    digest = hashlib.sha256(data).digest()

    async def main() -> None:
        async with wire(tmp_path) as near:
            await near.open(spec())
            await near.connection.send(Blob(stream=1, digest=digest, total=140, offset=0, payload=data))
            assert "BLOB.digest" in (await near.expect(Error)).text
        async with wire(tmp_path) as near:
            opened = await near.open(_language(digest))
            assert opened.missing == (digest,)
            await near.connection.send(Blob(stream=1, digest=digest, total=140, offset=0, payload=data[::-1]))
            assert "SHA-256" in (await near.expect(Error)).text
        async with wire(tmp_path) as near:
            await near.open(_language(digest))
            await near.connection.send(Blob(stream=1, digest=digest, total=140, offset=0, payload=data))
            error = await near.expect(Error)
            assert error.code == ErrorCode.SCHEMA_MISMATCH
            assert "is no safetensors file" in error.text

    run_once(main())


def test_blobs_of_a_tail(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[O-5] [W-19] [W-21] Each layer is asked for once; one that does not fit, or is too long, is refused."""
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1])
    what, blobs = tail_session(backbone)
    wrong = b"no layer at all" * 10
    upper = what.tail
    assert upper is not None
    digests = (hashlib.sha256(wrong).hexdigest(), upper.layers[1])
    spoilt = dataclasses.replace(what, tail=dataclasses.replace(upper, layers=digests))

    async def send(near: Wire, content: bytes) -> None:
        digest = hashlib.sha256(content).digest()
        blob = Blob(stream=1, digest=digest, total=len(content), offset=0, payload=content)
        await near.connection.send(blob)

    async def main() -> None:
        async with wire(tmp_path) as near:
            assert (await near.open(what)).missing == tuple(map(bytes.fromhex, what.blobs))
            for content in blobs.values():
                await send(near, content)
                await near.expect(Stored)
            assert (await near.expect(Ack)).received == 0
        async with wire(tmp_path) as near:
            assert (await near.open(spoilt)).missing == (hashlib.sha256(wrong).digest(),)
            await send(near, wrong)
            error = await near.expect(Error)
            assert error.code == ErrorCode.SCHEMA_MISMATCH
            assert "blob 1 of the tail is no safetensors file" in error.text
        async with wire(tmp_path) as near:
            long = bytes(70_000 + 6 * 16 * 24)
            first = hashlib.sha256(long).hexdigest()
            tail = dataclasses.replace(upper, layers=(first, upper.layers[1]))
            await near.open(dataclasses.replace(what, tail=tail))
            await send(near, long)
            assert "BLOB.total" in (await near.expect(Error)).text

    run_once(main())


def _language(digest: bytes) -> SessionSpec:
    return spec(task="causal-lm", head=digest.hex())


def test_metrics_carry_timings_when_asked(run_once: Run, tmp_path: pathlib.Path) -> None:
    """With ``trace`` the server's spans come along; without it none do."""

    async def main() -> None:
        for trace in (True, False):
            async with wire(tmp_path / str(trace)) as near:
                await near.open(spec(trace=trace))
                await near.batch(packed(spec(), 1))
                near.connection.post(Finish(stream=1, seq=1))
                metrics = await near.expect(Metrics)
                assert metrics.step == 1
                assert metrics.loss is not None
                spans = [span for m in near.seen if isinstance(m, Metrics) for span in m.spans]
                assert bool(spans) is trace

    run_once(main())
