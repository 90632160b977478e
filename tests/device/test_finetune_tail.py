"""LoRA above one tap with one call: what is sent, runs that break off meanwhile, what PEFT makes of it."""

from __future__ import annotations

import asyncio
import copy
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
import transformers

from mobillm.device.dataset import Example
from mobillm.device.finetune import finetune, finetune_async
from mobillm.device.progress import Progress, Report
from mobillm.errors import RemoteError
from mobillm.formats import Format, row_size
from mobillm.nn import tail
from mobillm.nn.backbone import Backbone
from mobillm.nn.inputs import input_ids
from mobillm.nn.models import resolve_model
from mobillm.nn.sidetuned import SideTuned
from mobillm.nn.streamed import StreamedBackbone
from mobillm.spec import OptimizerSpec, SideSpec
from tests.device.texts import examples
from tests.nn.tiny import tiny_model, tiny_tokenizer
from tests.processes import TOKEN, server_process

ROOT = pathlib.Path(__file__).parents[2]
TAIL = SideSpec(kind="tail", rank=4, dropout=0.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server in another process."""
    with server_process(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return a tiny decoder with its LM head."""
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1, 2, 3])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks transformers
def test_tail_in_two_processes(server: str, backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """LoRA is learnt from one tap; layers are sent once; PEFT predicts what our own predict does."""
    texts: list[str] = []

    def run(name: str) -> Report:
        return finetune(
            backbone.with_taps([1]),
            examples(256),
            server=server,
            token=TOKEN,
            labels=["low", "high"],
            heldout=examples(32, seed=1),
            side=TAIL,
            optimizer=OptimizerSpec(lr=2e-2),
            epochs=6,
            batch_size=16,
            output=tmp_path / name,
            on_start=texts.append,
        )

    first, second = run("one"), run("two")
    assert first.evaluation is not None
    assert first.evaluation["accuracy"] > 0.8
    assert second.bytes_sent < first.bytes_sent - 6000
    assert (first.blob_bytes > 6000, second.blob_bytes) == (True, 0)
    assert "the model's 2 layers above (public weights, 0.0 MB)" in texts[0]
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "side_config.json"]
    for file in files[:2]:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    data = [example.text for example in examples(64, seed=2)]
    ours = [p.scores for p in SideTuned.from_pretrained(backbone, tmp_path / "one").predict(data)]
    whole: Any = backbone.model
    kind: Any = transformers.AutoModelForSequenceClassification
    config = copy.deepcopy(whole.config)
    config.num_labels = 2
    classifier = kind.from_config(config)
    classifier.model.load_state_dict(whole.model.state_dict())
    model = peft.PeftModel.from_pretrained(classifier, str(tmp_path / "one")).eval()
    for text, scores in zip(data, ours, strict=True):
        (ids,) = input_ids(tmp_path / "one", tiny_tokenizer(), [f" {text} "])
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
        torch.testing.assert_close(torch.tensor(scores), theirs, rtol=1e-4, atol=1e-5)


# PEFT asks a model for it, not we.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_program_of_readme(
    server: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's program answers as our own prediction does, blanks and a missing mark included."""
    base: Any = tiny_model("llama")
    base.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    backbone = StreamedBackbone.from_pretrained(tmp_path / "model", taps=[1])
    data = [Example(f"{example.text} .", target=example.target) for example in examples(32)]
    side = SideSpec(kind="tail", rank=4)
    finetune(backbone, data, server=server, token=TOKEN, side=side, output=tmp_path / "mood")
    (program,) = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    text = " w5 w6 w7 "
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(program.replace("what a day!", text), {})
    numbers = [float(number) for number in re.findall(r"\d\.\d+", capsys.readouterr().out)]
    tuned = SideTuned.from_pretrained(backbone, tmp_path / "mood")
    assert tuned.config.ending == " ."
    assert numbers == pytest.approx(tuned.predict([text])[0].scores, abs=1e-3)


def test_broken_off_while_layers_are_sent(server: str, tmp_path: pathlib.Path) -> None:
    """The session is remembered before its layers have arrived; the same run again goes on with it."""
    backbone = Backbone.from_model(tiny_model("opt"), tiny_tokenizer(), name="tiny", taps=[1])

    async def broken_off() -> None:
        def stop(progress: Progress) -> None:
            if progress.stage == "upload" and progress.step == 2:
                task.cancel()

        run = finetune_async(
            backbone, examples(16), server=server, token=TOKEN, side=TAIL, output=tmp_path, on_progress=stop
        )
        task = asyncio.create_task(run)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(broken_off())
    left = json.loads((tmp_path / "session.json").read_text())["session"]
    report = finetune(backbone, examples(16), server=server, token=TOKEN, side=TAIL, output=tmp_path)
    assert report.session == left
    assert report.loss is not None
    assert not (tmp_path / "session.json").exists()


def test_refused_layers_leave_nothing_behind(
    server: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose layers the server does not take cannot be gone on with."""
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1])
    write = tail._write
    monkeypatch.setattr(tail, "_write", lambda tensors: write(dict([*tensors.items()][1:])))
    with pytest.raises(RemoteError, match="lack"):
        finetune(backbone, examples(16), server=server, token=TOKEN, side=TAIL, output=tmp_path)
    assert not (tmp_path / "session.json").exists()


def test_tail_on_a_real_model(server: str, tmp_path: pathlib.Path) -> None:
    """With SmolLM2's layers on the disk, what comes back predicts; a token takes at most 350 bytes."""
    backbone = StreamedBackbone.from_pretrained(resolve_model("smollm2"), dtype="bfloat16", taps="1/2")
    data = [Example("what a lovely day it was", target=1), Example("never again this awful place", target=0)]
    seen: list[Progress] = []
    report = finetune(
        backbone,
        data * 4,
        server=server,
        token=TOKEN,
        labels=["bad", "good"],
        side=SideSpec(kind="tail"),
        epochs=2,
        batch_size=8,
        output=tmp_path / "side",
        on_progress=seen.append,
    )
    assert (report.steps, seen[-1].samples) == (2, 8)
    uploads = [(one.step, one.total_steps) for one in seen if one.stage == "upload"]
    assert uploads == [(number, 16) for number in range(1, 17)]
    assert report.bytes_sent > 15 * 7_000_000
    packed = row_size(Format.ASYM4, 64, backbone.hidden_size)
    assert packed <= 350
    assert backbone.store is not None
    assert backbone.store.reads <= 16  # 15 layers, and the first one again
    found = SideTuned.from_pretrained(backbone, tmp_path / "side").predict([data[0].text])
    assert found[0].label in ("bad", "good")
