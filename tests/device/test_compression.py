"""Compressed taps from the device to the server's log: the same result as without, from fewer bytes."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from mobillm.codec import PackedTensor
from mobillm.device import Client, Session
from mobillm.device.packing import pack_batch
from mobillm.device.pipeline import Pipeline, TokenBatch
from mobillm.device.taps import TapPacker
from mobillm.device.trace import Trace
from mobillm.device.uplink import KeptBatch, Uplink
from mobillm.device.width import WidthController
from mobillm.errors import ConfigError
from mobillm.nn.backbone import Backbone
from mobillm.protocol import TARGETS
from mobillm.server import app
from mobillm.server.log import ActivationLog
from mobillm.spec import CodecSpec, SessionSpec
from tests.conftest import Run
from tests.nn.tiny import tiny_model, tiny_tokenizer
from tests.sessions import device, serving, sparse, spec

PLAIN = spec(epochs=2, batches=3)


def compressing(what: SessionSpec = PLAIN) -> SessionSpec:
    """Return a spec that lets taps be compressed."""
    return dataclasses.replace(what, codec=dataclasses.replace(what.codec, compression="zstd"))


async def submit(session: Session, first: int = 1) -> None:
    """Send three batches and a held-out one."""
    for seq in range(first, 5):
        data = sparse(seq)
        await session.submit(data.taps, data.lengths, data.targets, heldout=seq == 4)


async def result(session: Session) -> tuple[bytes, dict[str, float]]:
    """Finish a session; return its weights and what its evaluation gives."""
    await session.finish()
    await session.wait_finished()
    return await session.pull(), dict((await session.evaluate()).values)


def test_the_weights_are_the_same(run: Run, tmp_path: pathlib.Path) -> None:
    """[Z-1] [Z-11] Two epochs, equalized, and an evaluation: bit-equal, from fewer bytes; so is the log."""

    async def main() -> None:
        results, sent, records = [], [], []
        for what in (PLAIN, compressing()):
            folder = tmp_path / what.codec.compression
            async with serving(folder, keep=True) as server, device(server) as client:
                session = await client.open(what)
                await submit(session)
                await session.wait_durable()
                sent.append(client.connection.bytes_sent)
                results.append(await result(session))
            log = ActivationLog(folder / "sessions" / session.id.hex() / "activations.log")
            batches = [log.read(entry) for entry in log.entries]
            records.append([{n: bytes(data) for n, data in batch.payloads.items()} for batch in batches])
            log.close()
        assert results[0] == results[1]
        assert records[0] == records[1]
        assert len(records[0]) == 4
        assert 0.5 * sent[0] < sent[1] < 0.8 * sent[0]

    run(main())


def test_a_batch_is_kept_as_it_is_sent() -> None:
    """[Z-5] Taps are compressed, lengths and targets are not; what waits counts as many bytes as are sent."""
    what, data = compressing(), sparse(1)
    tensors = pack_batch(what, data.taps, data.lengths, data.targets, TapPacker(what, {}, compress=True))
    assert {number for number, packed in tensors.items() if packed.compressed} == {0, 1}
    kept = KeptBatch(1, len(data.lengths), False, list(tensors.items()))
    assert kept.size == sum(len(packed.payload) for packed in tensors.values())
    assert kept.size < sum(packed.header.size for packed in tensors.values())
    plain = pack_batch(what, data.taps, data.lengths, data.targets, TapPacker(what, {}))
    assert not any(packed.compressed for packed in plain.values())
    for number, packed in tensors.items():
        assert packed.plain().payload == plain[number].payload
        assert packed.plain().header == packed.header
    unchanged = TapPacker(PLAIN, {}, compress=True).pack(0, data.taps[0])
    assert not unchanged.compressed


def test_what_does_not_get_smaller_goes_as_it_is() -> None:
    """[Z-5] Even noise is sent without a frame."""
    what = compressing(spec(codec=CodecSpec(format="asym8")))
    noise = np.random.default_rng(0).uniform(-1, 1, (50, 16)).astype(np.float32)
    packed = TapPacker(what, {}, compress=True).pack(0, noise)
    assert (packed.compressed, packed.payload.nbytes) == (False, packed.header.size)


def test_a_server_without_it(run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[V-13] [Z-2] A session that asks for it is not begun; all others go on as ever."""
    monkeypatch.setattr(app, "CAPABILITY", "another")

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            assert client.connection.endpoint.caps == ()
            with pytest.raises(ConfigError, match=r"codec.compression is 'zstd'; expected none"):
                await client.open(compressing())
            await submit(await client.open(PLAIN))

    run_once(main())


def test_the_pipeline_counts_what_is_sent(
    run: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue and the choice of widths see compressed taps; the server gets every batch."""
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1, 2, 3])
    codec = CodecSpec(format="asym4", bits=(4, 8), block=32)
    what = compressing(spec(model=backbone.model_spec(), codec=codec))
    samples = np.random.default_rng(0).integers(3, 40, (40, 9)).tolist()
    batch = TokenBatch(samples, [0, 1] * 20)
    queued: list[int] = []
    sent: list[int] = []
    compressed: set[tuple[bool, bool]] = set()

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:

            async def dial() -> Client:
                return client

            uplink = Uplink(dial, what, keep=1 << 20, patience=0)
            await uplink.start()
            pipeline = Pipeline(backbone, uplink, queue=1 << 20, trace=Trace())
            put, send = pipeline._handover.put, uplink.send

            def note(item: Any, size: int) -> None:
                queued.append(size)
                put(item, size)

            async def note_sent(kept: KeptBatch, number: int, packed: PackedTensor) -> None:
                compressed.add((number < TARGETS, packed.compressed))
                sent.append(packed.payload.nbytes)
                await send(kept, number, packed)

            monkeypatch.setattr(pipeline._handover, "put", note)
            monkeypatch.setattr(uplink, "send", note_sent)
            await pipeline.run([batch] * 3)
            await uplink.session.wait_applied(3)
            assert pipeline.width is not None
            assert pipeline.width._share < 1.0

    run(main())
    assert [size for size in queued if size] == sent
    assert compressed == {(True, True), (False, False)}


def test_widths_reckon_with_what_is_left_of_taps() -> None:
    """A link that carries 8 bits only if they are compressed gets 8 bits once that is known."""
    controller = WidthController(spec(codec=CodecSpec(format="asym4", block=32, bits=(4, 8))))
    controller.computed(1.0, 1, 1)
    # One token of one tap a second: 12 bytes with 4 bits, 20 with 8.
    controller._full, controller.rate = False, 15.0
    assert controller.choose(0).bits == 4
    for _ in range(20):
        controller.packed(100, 60)
    assert controller.choose(0).bits == 8
