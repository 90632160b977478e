"""Fine-tuning with one call, device and server in two processes; and what is on the wire meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from mobillm.device.dataset import Example
from mobillm.device.finetune import _prepare, finetune, finetune_async
from mobillm.device.progress import Progress
from mobillm.errors import ConfigError, ConnectionClosed, DataError
from mobillm.formats import Format
from mobillm.nn.backbone import Backbone
from mobillm.nn.sidetuned import SideTuned
from mobillm.protocol import FrameType, Message, decode_message
from mobillm.protocol.frames import FrameBuffer
from mobillm.spec import OptimizerSpec, SideSpec
from mobillm.transport import Address
from tests.device.texts import examples
from tests.nn.tiny import tiny_model, tiny_tokenizer
from tests.processes import TOKEN, server_process

SIDE = SideSpec(width=16, heads=2, dropout=0.0)
TAIL = SideSpec(kind="tail", rank=4, dropout=0.0)
OPTIMIZER = OptimizerSpec(lr=1e-2)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return a tiny decoder with its LM head."""
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1, 2, 3])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server in another process."""
    with server_process(tmp_path_factory.mktemp("server")) as address:
        yield address


def test_classification_in_two_processes(server: str, backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """Loss falls, held-out accuracy is good, and the saved side network predicts on the device."""
    seen: list[Progress] = []
    texts: list[str] = []
    report = finetune(
        backbone,
        examples(256),
        server=server,
        token=TOKEN,
        labels=["low", "high"],
        heldout=examples(32, seed=1),
        side=SIDE,
        optimizer=OPTIMIZER,
        epochs=6,
        batch_size=16,
        output=tmp_path / "side",
        on_start=texts.append,
        on_progress=seen.append,
        trace=tmp_path / "trace.json",
    )
    assert (report.steps, report.samples) == (96, 288)
    assert report.loss is not None
    assert report.loss < 0.3
    assert report.evaluation is not None
    assert report.evaluation["samples"] == 32
    assert report.evaluation["accuracy"] > 0.8
    assert report.bytes_sent > 0
    assert report.server_busy > 0.0
    assert "class number" in texts[0]
    assert [seen[0].stage, seen[-1].stage] == ["connect", "done"]
    assert seen[-1].samples == 288
    names = {e["name"] for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]}
    assert {"forward", "quantize", "send", "train", "receive", "log"} <= names
    tuned = SideTuned.from_pretrained(backbone, tmp_path / "side")
    data = examples(32, seed=1)
    predictions = tuned.predict([example.text for example in data])
    right = [p.label == ("low", "high")[int(e.target or 0)] for p, e in zip(predictions, data, strict=True)]
    assert np.mean(right) == pytest.approx(report.evaluation["accuracy"], abs=0.1)


def test_runs_are_bit_equal(server: str, backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """The same call twice gives the same weights."""
    for name in ("one", "two"):
        finetune(
            backbone,
            examples(40),
            server=server,
            token=TOKEN,
            side=dataclasses.replace(SIDE, dropout=0.2),
            optimizer=OPTIMIZER,
            epochs=2,
            batch_size=8,
            output=tmp_path / name,
        )
    files = [(tmp_path / name / "side_model.safetensors").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("side", "architecture", "taps"), [(SIDE, "llama", "all"), (TAIL, "qwen2", [1])], ids=["ladder", "tail"]
)
def test_language_model(
    server: str, tmp_path: pathlib.Path, side: SideSpec, architecture: str, taps: str | list[int]
) -> None:
    """The frozen weights go up once; what is trained lowers the loss and generates."""
    backbone = Backbone.from_model(tiny_model(architecture), tiny_tokenizer(), name="tiny", taps=taps)
    sent = []
    for epochs in (1, 12):
        report = finetune(
            backbone,
            [Example("w5 w6 w7 w8 w9")] * 16,
            server=server,
            token=TOKEN,
            task="causal-lm",
            side=side,
            optimizer=OPTIMIZER,
            epochs=epochs,
            batch_size=4,
            output=tmp_path / "side",
        )
        sent.append((report.bytes_sent, report.loss or 99.0))
    assert sent[1][0] < sent[0][0]  # the second session found the head there
    assert sent[1][1] < 0.7 * sent[0][1]
    tuned = SideTuned.from_pretrained(backbone, tmp_path / "side")
    assert tuned.generate("w5 w6", 2).split() == ["w7", "w8"]


def test_texts_are_closed_as_most_are(server: str, backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """Where texts end in a mark now and then, the others get it, held-out ones too; the result says so."""
    data = [Example("w5 w6 .", target=0), Example("w7 w8", target=1)]
    heldout = [Example("w9", target=0)]
    report = finetune(backbone, data, server=server, token=TOKEN, heldout=heldout, side=SIDE, output=tmp_path)
    closed = backbone.tokenize(["w5 w6 .", "w7 w8 .", "w9 ."], 128)
    assert report.tokens == sum(map(len, closed))
    assert SideTuned.from_pretrained(backbone, tmp_path).config.ending == " ."
    pooled = dataclasses.replace(SIDE, pool="mean")  # reads every position, so texts stay as they are
    report = finetune(backbone, data, server=server, token=TOKEN, side=pooled, output=tmp_path / "mean")
    assert report.tokens == sum(map(len, closed[:2])) - 1
    assert SideTuned.from_pretrained(backbone, tmp_path / "mean").config.ending == ""


def test_regression(server: str, backbone: Backbone) -> None:
    """Values are trained on as well; nothing needs to be saved."""
    data = [Example(e.text, target=float(e.target or 0) + 0.5) for e in examples(32)]
    report = finetune(
        backbone,
        data,
        server=server,
        token=TOKEN,
        task="regression",
        side=SIDE,
        optimizer=OPTIMIZER,
        epochs=8,
        batch_size=8,
    )
    assert report.loss is not None
    assert report.loss < 0.3
    assert report.output is None


def test_a_run_that_goes_on_computes_the_same(tmp_path: pathlib.Path) -> None:
    """Weights that are held or used in another type make another run of the same data."""
    model: Any = tiny_model("llama")
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    digests = set()
    for types in (
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
        ("int8", "float32"),
        ("int4", "float32"),
    ):
        backbone = Backbone.from_pretrained(tmp_path, dtype=types[0], compute_dtype=types[1])
        digests.add(_prepare(backbone, [Example("w5 w6", target=0)], {}).digest())
    assert len(digests) == 4


def test_bad_options(backbone: Backbone) -> None:
    """They are refused before anything is connected."""
    nowhere = "127.0.0.1:1"
    with pytest.raises(ConfigError, match="batch_size is 0"):
        finetune(backbone, examples(4), server=nowhere, token=TOKEN, batch_size=0)
    with pytest.raises(ConfigError, match="dataset"):
        finetune(backbone, [], server=nowhere, token=TOKEN)
    with pytest.raises(ConnectionClosed, match="cannot reach"):
        finetune(backbone, examples(4), server=nowhere, token=TOKEN)


@contextlib.asynccontextmanager
async def recording(address: str, seen: bytearray) -> AsyncIterator[str]:
    """Stand between device and server, and keep what the device sends."""
    target = Address.parse(address)
    handlers: list[asyncio.Task[None] | None] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool) -> None:
        while data := await reader.read(1 << 16):
            if keep:
                seen.extend(data)
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection(target.host, target.port)
        await asyncio.gather(
            copy(reader, far_writer, True), copy(far_reader, writer, False), return_exceptions=True
        )
        for each in (writer, far_writer):
            each.close()
            with contextlib.suppress(OSError):
                await each.wait_closed()

    proxy = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    finally:
        proxy.close()
        await asyncio.gather(*(task for task in handlers if task is not None))
        await proxy.wait_closed()


# What each frame of a device may hold; nothing else leaves it.
FIELDS = {
    FrameType.HELLO: {"min_version", "max_version", "tenant", "nonce", "caps", "agent"},
    FrameType.AUTH: {"mac"},
    FrameType.OPEN: {"spec", "session"},
    FrameType.DATA: {"tensor", "offset", "format", "block", "shape", "equalizer", "zstd", "payload"},
    FrameType.COMMIT: {"tensors", "size", "checksum", "samples", "heldout"},
    FrameType.FINISH: set(),
    FrameType.EVAL: set(),
    FrameType.PULL: set(),
    FrameType.PING: {"data"},
    FrameType.PONG: {"data", "time"},
    FrameType.DETACH: set(),
    FrameType.BYE: set(),
}
SPEC_FIELDS = {
    "task": None,
    "outputs": None,
    "model": {"name", "hidden_size", "layers", "taps"},
    "side": {"kind", "width", "heads", "rank", "dropout", "causal", "pool"},
    "optimizer": {"lr", "weight_decay", "schedule", "warmup", "clip", "ema"},
    "codec": {"format", "block", "equalize", "bits", "compression"},
    "epochs": None,
    "early_stopping": None,
    "batches": None,
    "seed": None,
    "head": None,
    "trace": None,
    "tokens": None,
    "tail": None,
}


def test_closed_list_of_what_leaves_the_device(server: str, backbone: Backbone) -> None:
    """A classification session sends taps, their equalizers, targets, lengths: no text, label or token id."""
    data, labels = examples(24), ["quite-secret-label", "other-secret-label"]
    seen = bytearray()

    async def main() -> None:
        async with recording(server, seen) as address:
            await finetune_async(
                backbone,
                data,
                server=address,
                token=TOKEN,
                labels=labels,
                heldout=examples(8, seed=2),
                side=SIDE,
                batch_size=8,
            )

    asyncio.run(main())
    messages = [decode_message(frame) for frame in FrameBuffer(1 << 20).receive_data(bytes(seen))]
    assert {message.type for message in messages} <= set(FIELDS)
    assert {FrameType.OPEN, FrameType.DATA, FrameType.COMMIT, FrameType.BYE} <= {m.type for m in messages}
    for message in messages:
        names = {field.name for field in dataclasses.fields(message)} - {"stream", "seq"}
        assert names == FIELDS[message.type]
        _check_content(message)
    everything = bytes(seen)
    for text in [*labels, *(example.text for example in data), TOKEN, "secret", "mask"]:
        assert text.encode() not in everything
    for ids in backbone.tokenize([example.text for example in data], 128):
        for kind in (np.int16, np.int32, np.int64):
            assert np.array(ids[1:], kind).tobytes() not in everything


def _check_content(message: Message) -> None:
    if message.type is FrameType.DATA:
        tensor, fmt = getattr(message, "tensor"), getattr(message, "format")  # noqa: B009
        assert tensor in (0, 1, 2, 1000, 1001, 2000, 2001, 2002)
        allowed = (Format.ASYM4,) if tensor < 1000 else (Format.I32,) if tensor < 2000 else (Format.F16,)
        assert fmt in (None, *allowed)
    if message.type is FrameType.OPEN:
        spec = getattr(message, "spec")  # noqa: B009
        assert set(spec) == set(SPEC_FIELDS)
        for key, fields in SPEC_FIELDS.items():
            if fields is not None:
                assert set(spec[key]) == fields


def test_cancelling_says_goodbye(server: str, backbone: Backbone) -> None:
    """A cancelled run ends the compute thread and the connection, soon."""

    async def main() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def begin_later() -> None:
            loop.call_later(0.3, begun.set)

        work = finetune_async(
            backbone,
            examples(400),
            server=server,
            token=TOKEN,
            side=SIDE,
            batch_size=2,
            on_start=lambda _: begin_later(),
        )
        task = loop.create_task(work)
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left

    async def bounded() -> None:
        async with asyncio.timeout(20.0):
            await main()

    asyncio.run(bounded())


def test_killed_device_goes_on(server: str, backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """A run that was broken off goes on after what the server has; the weights are those of a whole run."""

    def run(output: pathlib.Path, stop_after: int | None) -> None:
        def on_progress(progress: Progress) -> None:
            if stop_after is not None and progress.samples >= stop_after:
                raise KeyboardInterrupt

        finetune(
            backbone,
            examples(96),
            server=server,
            token=TOKEN,
            labels=["low", "high"],
            side=SIDE,
            optimizer=OPTIMIZER,
            epochs=2,
            batch_size=8,
            output=output,
            on_progress=on_progress,
        )

    run(tmp_path / "whole", None)
    slow = backbone._parts.layers[0].register_forward_hook(lambda *_: time.sleep(0.05))
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", 16)
    finally:
        slow.remove()
    left = json.loads((tmp_path / "broken" / "session.json").read_text())
    assert len(left["session"]) == 32
    assert not (tmp_path / "broken" / "side_model.safetensors").exists()
    with pytest.raises(DataError, match="of an unfinished session with other"):
        finetune(backbone, examples(96), server=server, token=TOKEN, output=tmp_path / "broken")
    run(tmp_path / "broken", None)
    assert not (tmp_path / "broken" / "session.json").exists()
    name = "side_model.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
