"""The pipeline: layers on the wire while later ones compute, errors, and stopping."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import threading
import time
from typing import Any

import pytest
import torch

from mobillm.codec import PackedTensor
from mobillm.device import Client
from mobillm.device.pipeline import Pipeline, TokenBatch
from mobillm.device.trace import Trace
from mobillm.device.uplink import KeptBatch, Uplink
from mobillm.device.width import WidthController
from mobillm.errors import ConnectionClosed, ModelError, QuantizationError
from mobillm.formats import Format
from mobillm.nn.backbone import Backbone
from mobillm.options import Limits
from mobillm.protocol import LENGTHS, TARGETS
from mobillm.server.batch import Batch
from mobillm.server.log import ActivationLog
from mobillm.spec import CodecSpec, SessionSpec, SideSpec
from tests.conftest import Run
from tests.nn.tiny import SAMPLES, tiny_model, tiny_tokenizer
from tests.sessions import device, serving, spec

BATCH = TokenBatch(SAMPLES, [0, 1, 0])


@pytest.fixture
def backbone() -> Backbone:
    """Return a tiny decoder with three taps."""
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1, 2, 3])


def spec_of(backbone: Backbone) -> SessionSpec:
    """Return a session on the backbone."""
    return spec(model=backbone.model_spec())


async def begin(client: Client, backbone: Backbone, queue: int = 1 << 20) -> tuple[Uplink, Pipeline]:
    """Open a session with a pipeline; a lost connection is not made again."""

    async def dial() -> Client:
        return client

    uplink = Uplink(dial, spec_of(backbone), keep=1 << 20, patience=0)
    await uplink.start()
    return uplink, Pipeline(backbone, uplink, queue=queue, trace=Trace())


def test_all_batches_arrive(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """Batches are sent, counted and trained on."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            uplink, pipeline = await begin(client, backbone, queue=500)
            session = uplink.session
            await pipeline.run([BATCH] * 5)
            await session.wait_applied(5)
            assert (pipeline.samples, pipeline.tokens, pipeline.held) == (15, 5 * 11, 0)
            assert len(pipeline.busy) >= 5

    run(main())


def test_groups_of_batches(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """Batches that go through the layers together are the same to the server as one after the other."""
    batches = [TokenBatch(SAMPLES[number % 3 :], [0, 1, 0][number % 3 :]) for number in range(5)]
    layers: list[int] = []

    async def main() -> None:
        weights = []
        for span in (0, 20):
            backbone.span = span
            async with serving(tmp_path / str(span)) as server, device(server) as client:
                uplink, pipeline = await begin(client, backbone)
                await pipeline.run(batches)
                await uplink.session.wait_applied(5)
                assert pipeline.samples == sum(len(batch.input_ids) for batch in batches)
                weights.append(await uplink.session.pull())
        assert weights[0] == weights[1]

    for number, layer in enumerate(backbone._parts.layers):
        layer.register_forward_hook(lambda *_, n=number: layers.append(n))
    run(main())
    assert layers[:15] == [0, 1, 2] * 5
    assert layers[15:] == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 2 + [1] * 2 + [2] * 2  # 11 + 6 + 4 tokens


def test_rest_between_layers(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """With a duty of a third the thread rests twice as long as it computes, and that is not called busy."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            uplink, plain = await begin(client, backbone)
            pipeline = Pipeline(backbone, uplink, queue=1 << 20, trace=Trace(), duty=1 / 3)
            await pipeline.run([BATCH] * 5)
            busy = sum(end - start for start, end in pipeline.busy)
            assert pipeline.rested > 1.5 * busy
            assert len(pipeline.busy) > 5  # not only between batches
            assert plain.rested == 0.0
            assert pipeline.samples == 15

    run(main())


def test_taps_are_sent_while_later_layers_compute(
    run: Run, tmp_path: pathlib.Path, backbone: Backbone
) -> None:
    """The first tap is on the wire before the second layer is done."""
    seen: list[int] = []

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            uplink, pipeline = await begin(client, backbone)
            session = uplink.session
            endpoint = client.connection.endpoint
            arrived = threading.Event()

            def wait_for_first_tap(*_inputs: object) -> None:
                for _ in range(500):
                    count = endpoint.batch_summary(session.stream)[0]
                    if count == 3:  # the lengths, the targets and the first tap
                        arrived.set()
                        break
                    time.sleep(0.01)
                seen.append(endpoint.batch_summary(session.stream)[0])

            handle = backbone._parts.layers[1].register_forward_pre_hook(wait_for_first_tap)
            await pipeline.run([BATCH])
            handle.remove()
            assert arrived.is_set()
            assert seen == [3]

    run(main())


def test_the_width_follows_the_link(
    run_once: Run, tmp_path: pathlib.Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[B-40] A slow link gets narrow taps and a fast one wide ones; the server trains on both, twice."""
    monkeypatch.setattr(WidthController, "measure", lambda *_: None)
    codec = CodecSpec(format="asym4", block=32, bits=(2, 4, 8))

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:

            async def dial() -> Client:
                return client

            what = dataclasses.replace(spec_of(backbone), codec=codec, batches=6, epochs=2)
            uplink = Uplink(dial, what, keep=1 << 20, patience=0)
            await uplink.start()
            pipeline = Pipeline(backbone, uplink, queue=1 << 20, trace=Trace())
            assert pipeline.width is not None
            chosen = []
            for rate in (None, 1.0, 1e12):
                pipeline.width.rate = rate
                await pipeline.run([BATCH, BATCH])
                chosen.append(pipeline.width.format)
            assert chosen == [Format.ASYM4, Format.ASYM2, Format.ASYM8]
            await uplink.finish()
            assert (await uplink.wait_finished()).steps == 12
            formats = [[batch.headers[tap].format for tap in range(3)] for batch in logged(tmp_path)]
            assert formats == [[fmt] * 3 for fmt in chosen for _ in range(2)]

    run_once(main())


def logged(directory: pathlib.Path) -> list[Batch]:
    """Return the batches of the only session."""
    (path,) = directory.glob("sessions/*/activations.log")
    log = ActivationLog(path)
    batches = [log.read(entry) for entry in log.entries]
    log.close()
    return batches


def test_one_token_of_each_sample(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """With ``tokens`` at ``last`` what is sent is the last row of each sample, no more."""
    sent: dict[int, tuple[int, ...]] = {}

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:

            async def dial() -> Client:
                return client

            what = dataclasses.replace(
                spec_of(backbone), side=SideSpec(kind="parallel", width=4, heads=1), tokens="last"
            )
            uplink = Uplink(dial, what, keep=1 << 20, patience=0)
            await uplink.start()
            send = uplink.send

            async def watched(batch: KeptBatch, tensor: int, packed: PackedTensor) -> None:
                sent[tensor] = packed.header.shape
                await send(batch, tensor, packed)

            uplink.send = watched  # type: ignore[method-assign]
            pipeline = Pipeline(backbone, uplink, queue=1 << 20, trace=Trace())
            await pipeline.run([BATCH])
            await uplink.session.wait_applied(1)
            assert (pipeline.samples, pipeline.tokens) == (3, 11)

    run(main())
    width = backbone.hidden_size
    assert sent == {0: (3, width), 1: (3, width), 2: (3, width), LENGTHS: (3,), TARGETS: (3,)}


def test_waits_of_the_writer_are_in_the_trace(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """A batch that the server has no memory for waits for credit, and the trace says so."""
    trace = Trace()

    async def main() -> None:
        limits = Limits(batches=1)
        async with serving(tmp_path, limits=limits) as server, device(server) as client:

            async def dial() -> Client:
                return client

            uplink = Uplink(dial, spec_of(backbone), keep=1 << 20, patience=0)
            await uplink.start()
            await Pipeline(backbone, uplink, queue=1 << 20, trace=trace).run([BATCH] * 6)

    run(main())
    found = {name: seconds for _, lane, name, _, seconds, _ in trace.spans if lane == "send"}
    assert found["credit"] > 0.0
    assert found["send"] >= 0.0


def test_an_error_of_the_compute_thread(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """It is raised as it is, the open batch is given up, and the session goes on."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            uplink, pipeline = await begin(client, backbone)
            session = uplink.session
            with pytest.raises(ModelError, match="sample 1 has no tokens"):
                await pipeline.run([BATCH, TokenBatch([[3], []], [0, 1])])
            await session.wait_applied()  # what still waited for the network was given up too
            layer: Any = backbone._parts.layers[1]
            weight = layer.mlp.down_proj.weight
            with torch.no_grad():
                kept = weight.clone()
                weight[:] = torch.nan
            with pytest.raises(QuantizationError, match=r"tap 1 \(layer 2\) value nan at \[0, 0\]"):
                await Pipeline(backbone, uplink, queue=1 << 20, trace=Trace()).run([BATCH])
            with torch.no_grad():
                weight[:] = kept
            await Pipeline(backbone, uplink, queue=1 << 20, trace=Trace()).run([BATCH])
            sent = session.sent
            await session.wait_applied(sent)
            assert sent in (1, 2)

    run(main())


def test_cancelling_stops_at_the_next_tap(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """The thread ends, the open batch is given up, and the connection is good for another run."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            uplink, pipeline = await begin(client, backbone, queue=200)
            session = uplink.session
            task = asyncio.get_running_loop().create_task(pipeline.run([BATCH] * 100_000))
            while session.sent < 3:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not [t for t in threading.enumerate() if t.name.startswith("mobillm-compute")]
            sent = session.sent
            await Pipeline(backbone, uplink, queue=200, trace=Trace()).run([BATCH])
            await session.wait_applied(sent + 1)

    run(main())


def test_server_gone_in_mid_run(run: Run, tmp_path: pathlib.Path, backbone: Backbone) -> None:
    """The run ends with one clear exception, and the thread with it."""

    async def main() -> None:
        async with serving(tmp_path) as server:
            client = await device(server)
            uplink, pipeline = await begin(client, backbone, queue=200)
            session = uplink.session
            task = asyncio.get_running_loop().create_task(pipeline.run([BATCH] * 100_000))
            await session.wait_applied(1)
        with pytest.raises(ConnectionClosed):
            await task
        assert not [t for t in threading.enumerate() if t.name.startswith("mobillm-compute")]
        await client.close()

    run(main())
