"""Tests of the comparison of methods: what is run once, what is trained, what follows from the figures."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console

from benchmarks import baselines, convergence, convergence_plots
from mobillm.device.pipeline import TokenBatch
from mobillm.nn.cross_entropy import IGNORED


def points(*scores: list[float], **more: Any) -> list[dict[str, Any]]:
    """Return one run for each seed, with a place after every 100 samples."""
    return [
        {"curve": [[100.0 * place, 0.0, score] for place, score in enumerate(run, 1)], **more}
        for run in scores
    ]


def test_time_until_the_mean_is_half_a_point_below_the_best_of_lora() -> None:
    """LoRA's best mean decides, in whichever budget it is; our device computes each sample once."""
    budgets = {
        "lora": {1: points([70.0, 80.0], [72.0, 84.0]), 2: points([60.0, 81.0], [60.0, 84.0])},
        "mobillm": {4: points([82.4], [82.0], bytes=5000)},
    }
    times = {"lora": {"device": 0.5}, "mobillm": {"device": 0.1, "wall.e4": 25.0}}
    figures = convergence.summary(budgets, times, 100)
    assert figures["accuracy.lora"] == 82.5
    assert figures["accuracy.lora.e1"] == 82.0
    assert figures["accuracy.lora.e1.seeds"] == [80.0, 84.0]
    assert figures["device_seconds_to.lora"] == 100.0
    assert figures["device_seconds_to.mobillm"] == 2.5
    assert figures["device_speedup_vs_lora.mobillm"] == 40.0
    assert figures["speedup_vs_lora.mobillm"] == 4.0
    assert figures["device_seconds.lora"] == 100.0
    assert figures["device_seconds.mobillm"] == 10.0
    assert figures["bytes_per_sample.mobillm"] == 50


def test_a_method_that_never_gets_there_has_no_time() -> None:
    """Not reaching LoRA's accuracy is not a time of any kind."""
    budgets = {"lora": {1: points([80.0])}, "mobillm": {4: points([79.4], bytes=1)}}
    times = {"lora": {"device": 0.5}, "mobillm": {"device": 0.1, "wall.e4": 25.0}}
    figures = convergence.summary(budgets, times, 100)
    assert figures["seconds_to.lora"] == 50.0
    assert figures["seconds_to.mobillm"] is None
    assert figures["speedup_vs_lora.mobillm"] is None
    assert "fastest" not in figures


def test_the_method_that_is_there_first() -> None:
    """It gives the speedups without a name, apart for those whose device computes in 8 bits."""
    budgets = {"lora": {1: points([80.0])}} | {
        method: {1: points([80.0], bytes=1)} for method in convergence.OURS if method != "mobillm"
    }
    walls = {"mobillm_int8": 20.0, "mobillm_tail": 30.0, "mobillm_tail_int8": 25.0, "mobillm_tail_half": 10.0}
    times = {"lora": {"device": 0.5}} | {
        method: {"device": number / 10, "wall.e1": wall}
        for number, (method, wall) in enumerate(walls.items(), 1)
    }
    figures = convergence.summary(budgets, times, 100)
    assert figures["fastest"] == "mobillm_tail_half"
    assert figures["speedup_vs_lora"] == 5.0
    assert figures["device_speedup_vs_lora"] == 1.25
    assert figures["fastest_int8"] == "mobillm_int8"
    assert figures["speedup_vs_lora_int8"] == 2.5
    assert figures["device_speedup_vs_lora_int8"] == 5.0


def test_less_perplexity_is_better(tmp_path: Path) -> None:
    """Texts to continue are seen once; the rate and the budget with the lowest perplexity win."""
    budgets = {"lora": {1: points([20.0], [22.0])}, "mobillm_tail": {1: points([21.5], [20.6], bytes=900)}}
    figures = convergence.summary(budgets, {"lora": {"device": 1.0}}, 10, perplexity=True)
    assert figures == {
        "perplexity.lora.e1": 21.0,
        "perplexity.lora.e1.seeds": [20.0, 22.0],
        "perplexity.lora": 21.0,
        "device_seconds.lora": 10.0,
        "perplexity.mobillm_tail.e1": 21.05,
        "perplexity.mobillm_tail.e1.seeds": [21.5, 20.6],
        "perplexity.mobillm_tail": 21.05,
        "ratio.mobillm_tail_over_lora": pytest.approx(1.00238, abs=1e-5),
        "bytes_per_sample.mobillm_tail": 90,
    }
    study = convergence.Study("e2e", tmp_path, tmp_path, Console(file=sys.stderr))
    assert study.budgets("lora") == (1,)
    for rate, score in (("0.0002", 9.0), ("0.0005", 7.0), ("0.001", 8.0)):
        (tmp_path / f"e2e-lora-search-{rate}.json").write_text(json.dumps({"curve": [[1, 1, score]]}))
    assert study.rate("lora") == 5e-4


def test_curves_are_drawn(tmp_path: Path) -> None:
    """Each method becomes a curve or a point, whether or not its time is known."""
    lora, ours = points([70.0, 80.0]), points([79.0], bytes=5e6, tokens=1300)
    curves = {"lora": {1: convergence.curve_of(lora)}, "mobillm": {4: [(400.0, 79.0)]}}
    path = tmp_path / "curves.png"
    figure = convergence_plots.draw(
        curves,
        {"mobillm": ours},
        {"lora": 0.5},
        lambda method, epochs: 1 if method == "mobillm" else epochs,
        path,
    )
    time, work, sent = (
        [np.asarray(line.get_xdata(), float).tolist() for line in axes.lines] for axes in figure.axes
    )
    assert time == [[50.0, 100.0]]
    assert [line[-1] for line in work] == pytest.approx([0.552, 0.276], abs=5e-4)
    assert sent[1] == [5.0]
    assert path.stat().st_size > 0
    assert convergence.PLANS.keys() <= convergence_plots.COLOURS.keys()


def test_time_of_whole_runs(tmp_path: Path) -> None:
    """What a sample costs our device follows from a whole run, in which it computes each one once."""
    study = convergence.Study("sst2", tmp_path, tmp_path, Console(file=sys.stderr))
    assert study.times() == {}
    (tmp_path / "sst2-lora-time.json").write_text('{"seconds_per_sample": 0.5}')
    (tmp_path / "sst2-mobillm_tail-time-e2.json").write_text(
        '{"curve": [[600, 45.0, 88.0]], "seconds": 90.0}'
    )
    assert study.times() == {"lora": {"device": 0.5}, "mobillm_tail": {"device": 0.15, "wall.e2": 90.0}}


def test_time_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only of the methods and numbers of epochs that are asked for, and not from a file that is there."""
    study = convergence.Study("sst2", tmp_path, tmp_path, Console(file=sys.stderr))
    names = ["lora-time", "mobillm_tail-time-e1", "mobillm_tail-time-e2"]
    for name in names:
        (tmp_path / f"sst2-{name}.json").write_text("{}")
    asked = []

    def point(name: str, module: str, arguments: list[str]) -> None:
        asked.append((name, module, arguments[:2]))

    monkeypatch.setattr(study, "point", point)
    study.measure({"lora": (1, 2), "mobillm_tail": (2,)})
    assert asked == [
        ("lora-time", "baselines", ["lora", "sst2"]),
        ("mobillm_tail-time-e2", "tuned", ["mobillm_tail", "sst2"]),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["sst2-mobillm_tail-time-e1.json"]


def test_budgets_that_a_method_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A choice of epochs that leaves nothing of a method is refused before anything runs."""
    with pytest.raises(SystemExit):
        convergence.main(
            ["--task", "sst2", "--data", str(tmp_path), "--methods", "lora", "mobillm", "--epochs", "2"]
        )
    assert "leaves nothing of mobillm, which has (4,)" in capsys.readouterr().err


def test_a_point_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the folder is read; what failed is not in it."""
    program = tmp_path / "benchmarks" / "fake.py"
    program.parent.mkdir()
    (program.parent / "__init__.py").touch()
    program.write_text(
        "import pathlib, sys\n"
        "count = pathlib.Path('count')\n"
        "count.write_text(count.read_text() + 'x' if count.exists() else 'x')\n"
        "if sys.argv[1] == 'bad':\n"
        "    sys.exit(3)\n"
        "print('{\"curve\": [[1, 2, 3]]}')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    study = convergence.Study("sst2", tmp_path, tmp_path / "points", Console(file=sys.stderr))
    first = study.point("good", "fake", ["good"])
    assert study.point("good", "fake", ["good"]) == first
    assert first["curve"] == [[1, 2, 3]]
    assert first["command"] == "python -m benchmarks.fake good"
    assert json.loads((tmp_path / "points" / "sst2-good.json").read_text()) == first
    with pytest.raises(RuntimeError, match="ended with status 3"):
        study.point("bad", "fake", ["bad"])
    with pytest.raises(RuntimeError, match="ended with status 3"):
        study.point("bad", "fake", ["bad"])
    assert Path("count").read_text() == "xxx"


def test_batches_that_stand_for_an_epoch() -> None:
    """Their padded tokens have the mean of all, in whatever order the batches come."""
    lengths = [3, 40, 5, 9, 12, 7, 30, 4, 6, 8, 15, 22]
    batches = [TokenBatch([[1] * length, [1]], [0, 1]) for length in lengths]
    found = [max(map(len, batch.input_ids)) for batch in baselines.representative(batches, 6)]
    assert found == [4, 6, 8, 12, 22, 40]
    assert sum(found) / 6 == pytest.approx(sum(lengths) / 12, rel=0.15)
    every = baselines.representative(batches, len(batches))
    assert sorted(lengths) == [max(map(len, batch.input_ids)) for batch in every]


# PEFT 0.21 knows only the old names of what transformers 5.23 calls activation checkpointing.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("method", "language"),
    [*((method, False) for method in baselines.METHODS), ("full", True), ("lora", True)],
)
def test_what_a_method_trains(
    method: str, language: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method's weights are fp32 and change; the others are bf16 and stay."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=50,
    )
    make: Any = transformers.LlamaForCausalLM
    make(config).to(dtype=torch.bfloat16).save_pretrained(tmp_path)

    class Tokenizer:
        pad_token_id = 0

    monkeypatch.setattr(baselines, "resolve_model", str)
    monkeypatch.setattr(baselines, "dequantized_directory", lambda path: tmp_path)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: Tokenizer())
    trainee = baselines.Trainee(method, 0, language)
    before = {name: value.clone() for name, value in trainee.model.named_parameters()}
    targets: list[float] = [2, 3, IGNORED, 5, IGNORED] if language else [0, 1]
    batch = TokenBatch([[1, 2, 3], [4, 5]], targets)
    if language:
        wanted, logits = [2, 3, 5], trainee.logits(batch).detach()[[0, 1, 3]]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(wanted)).exp()
        assert trainee.score([batch, batch], "perplexity") == pytest.approx(float(expected), rel=1e-2)
    places = list(baselines.train(trainee, [[batch] * 4], 0.1))
    assert [(samples, half) for samples, _, half in places] == [(2, False), (4, True), (6, False), (8, True)]
    changed = {name for name, value in trainee.model.named_parameters() if not value.equal(before[name])}
    assert all(before[name].dtype is torch.float32 for name in changed)
    choices: dict[str, Callable[[str], bool]] = {
        "full": lambda name: True,
        "lora": lambda name: "lora_" in name or "score.modules_to_save" in name,
        "lora_checkpointing": lambda name: "lora_" in name or "score.modules_to_save" in name,
        "bitfit": lambda name: "norm" in name or "score" in name,
        "head": lambda name: "score" in name,
    }
    assert changed == {name for name in before if choices[method](name)}
    if not language:
        assert trainee.score([batch], "accuracy") in (0.0, 50.0, 100.0)
