"""Training: schedules, averages, steps that are skipped, and checkpoints that continue bit for bit."""

from __future__ import annotations

import dataclasses
import gc
import math
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch

from mobillm.device.packing import pack_batch
from mobillm.errors import ConfigError, StorageError
from mobillm.nn import compute, upper
from mobillm.nn.backbone import Backbone
from mobillm.nn.side import SideNetwork
from mobillm.server.batch import Batch
from mobillm.server.trainer import Trainer, check_size, learning_rate, warm_up
from mobillm.spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec
from tests.nn.tiny import collect, tail_session, tiny_model, tiny_tokenizer
from tests.sessions import as_batch, packed, spec


def rates(schedule: str, warmup: float, total: int) -> list[float]:
    """Return the learning rates of a whole session."""
    what = OptimizerSpec(lr=0.01, schedule=schedule, warmup=warmup)
    return [learning_rate(what, step, total) for step in range(total)]


@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5])
def test_onecycle_is_that_of_torch(warmup: float) -> None:
    """The rates equal those of torch's OneCycleLR."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=40, pct_start=warmup, cycle_momentum=False
    )
    expected = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants optimizer.step() in between
        for _ in range(40):
            expected.append(cycle.get_last_lr()[0])
            if len(expected) < 40:
                cycle.step()
    assert rates("onecycle", warmup, 40) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("schedule", ["onecycle", "linear", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rates_stay_in_range(schedule: str, warmup: float, total: int) -> None:
    """Every rate is above 0 and at most the peak, also after the last step that was announced."""
    for rate in rates(schedule, warmup, total):
        assert 0.0 < rate <= 0.01 + 1e-12
    what = OptimizerSpec(lr=0.01, schedule=schedule, warmup=warmup)
    assert 0.0 <= learning_rate(what, total + 5, total) <= 0.01


def test_linear_and_constant() -> None:
    """Linear goes up and down; constant goes up and stays."""
    linear, constant = rates("linear", 0.2, 10), rates("constant", 0.2, 10)
    assert linear[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert linear[-1] == pytest.approx(0.01 / 8)
    assert constant == pytest.approx([0.005] + [0.01] * 9)
    assert learning_rate(OptimizerSpec(lr=0.01, schedule="constant"), 0, None) == 0.01


def test_a_restored_trainer_continues_bit_for_bit() -> None:
    """Steps before and after a restart give the weights of steps without one."""
    what = spec(batches=6, optimizer=OptimizerSpec(schedule="onecycle", lr=0.01))
    whole = Trainer(what, {})
    for seq in range(1, 7):
        whole.step(packed(what, seq))
    first = Trainer(what, {})
    for seq in range(1, 4):
        first.step(packed(what, seq))
    second = Trainer(what, {})
    assert second.load(first.save({"applied": 3})) == {"applied": 3}
    for seq in range(4, 7):
        second.step(packed(what, seq))
    assert second.steps == 6
    assert second.weights() == whole.weights()
    assert second.save({}) == whole.save({})


def test_loss_falls_and_evaluation_changes_nothing() -> None:
    """Training works; evaluating in between leaves no trace."""
    what = spec()
    one, two = Trainer(what, {}), Trainer(what, {})
    batches = [packed(what, seq, samples=16) for seq in range(1, 40)]
    losses = [one.step(batch) or math.nan for batch in batches]
    for batch in batches:
        two.step(batch)
        two.evaluate([batches[0]])
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert one.save({}) == two.save({})
    values = one.evaluate(batches[:4])
    assert values["count"] == 64
    assert values["accuracy"] > 0.8
    assert one.evaluate([]) == {"count": 0.0}


def test_averaged_weights() -> None:
    """The average moves towards the weights; without averaging the weights themselves are pulled."""
    plain = spec(optimizer=OptimizerSpec(schedule="constant", ema=0.0, lr=5e-3))
    averaged = spec(optimizer=OptimizerSpec(schedule="constant", ema=0.98, lr=5e-3))
    one, two = Trainer(plain, {}), Trainer(averaged, {})
    start = two.weights()
    assert one.weights() == start
    for seq in range(1, 4):
        one.step(packed(plain, seq))
        two.step(packed(averaged, seq))
    assert two.weights() not in (start, one.weights())
    restored = Trainer(averaged, {})
    restored.load(two.save({}))
    assert restored.weights() == two.weights()


def _spoilt(batch: Batch) -> Batch:
    tap = np.frombuffer(batch.payloads[0], np.float32).copy()
    tap[0] = np.inf
    return dataclasses.replace(batch, payloads={**batch.payloads, 0: memoryview(tap.tobytes())})


def test_a_loss_that_is_not_finite_is_skipped() -> None:
    """Nothing changes but the count of steps; a good batch ends the row."""
    what = spec(codec=CodecSpec(format="f32"))
    trainer = Trainer(what, {})
    trainer.step(packed(what, 1))
    before = trainer.weights()
    assert trainer.step(_spoilt(packed(what, 2))) is None
    assert trainer.weights() == before
    assert (trainer.steps, trainer.skipped) == (2, 1)
    assert trainer.step(packed(what, 3)) is not None
    assert trainer.skipped == 0


def test_checkpoints_of_other_sessions_are_refused() -> None:
    """A checkpoint that does not fit is a storage error, and so are other bytes."""
    trainer = Trainer(spec(), {})
    other = Trainer(spec(side=dataclasses.replace(spec().side, width=16)), {})
    for data in (other.save({}), trainer.weights(), b"", b"junk" * 10):
        with pytest.raises(StorageError, match="does not fit"):
            trainer.load(data)


def test_size_is_checked() -> None:
    """A network with one parameter more than allowed is refused; the text says by how much and what to do."""
    what = spec()
    count = SideNetwork.count(what)
    check_size(what, count)
    with pytest.raises(ConfigError, match=rf"{count}; expected at most {count - 1} .* smaller side\.width"):
        check_size(what, count - 1)


def test_warm_up_leaves_what_is_loaded_to_itself() -> None:
    """What there is when a server begins is not looked at by garbage collections any more."""
    kept: list[object] = [[]]
    gc.unfreeze()
    assert any(one is kept for one in gc.get_objects())
    warm_up()
    assert not any(one is kept for one in gc.get_objects())


def _tail(tap: int = 1) -> tuple[SessionSpec, dict[str, bytes], list[Batch]]:
    backbone = Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[tap])
    what, blobs = tail_session(backbone, batches=6, side=SideSpec(kind="tail", rank=4, dropout=0.1))
    batches = []
    for seq in range(1, 7):
        samples = [[3 + (seq * number) % 30, 4 + number, 5 + seq] for number in range(8)]
        tensors = pack_batch(what, [t.numpy() for t in collect(backbone, samples)], [3] * 8, [0, 1] * 4)
        batches.append(as_batch(tensors, seq, 8))
    return what, blobs, batches


def test_a_tail_is_restored_bit_for_bit() -> None:
    """LoRA goes on as if nothing had happened; a checkpoint holds nothing that is frozen."""
    what, blobs, batches = _tail()
    whole, first, second = (Trainer(what, blobs) for _ in range(3))
    losses = [whole.step(batch) for batch in batches]
    assert losses[-1] != losses[0]
    for batch in batches[:3]:
        first.step(batch)
    state = first.save({})
    second.load(state)
    for batch in batches[3:]:
        second.step(batch)
    assert second.weights() == whole.weights()
    assert second.save({}) == whole.save({})
    names = set(safetensors.torch.load(whole.weights()))
    assert all(".lora_A." in name or ".lora_B." in name or ".score." in name for name in names)
    assert len(names) == 2 * 2 * 7 + 1
    held = safetensors.torch.load(state)
    assert {name.partition(".")[2] for name in held} == names
    assert second.evaluate(batches) == whole.evaluate(batches)


def test_frozen_layers_are_held_as_they_are_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without instructions for bf16 they are held in fp32, large ones in bf16; the steps are the same."""
    what, blobs, batches = _tail()
    monkeypatch.setattr(compute, "has_native_bf16", lambda: False)
    found = []
    for most, expected in ((upper.WIDE, torch.float32), (1, torch.bfloat16)):
        monkeypatch.setattr(upper, "WIDE", most)
        trainer = Trainer(what, blobs)
        assert trainer.network.upper is not None
        held = {p.dtype for p in trainer.network.upper.layers.parameters() if not p.requires_grad}
        assert held == {expected}
        found.append([trainer.step(batch) for batch in batches])
    assert found[0] == found[1]


def test_frozen_layers_count_a_tenth() -> None:
    """The layers above the tap are bounded, too, before their blobs are asked for."""
    what, _, _ = _tail(0)
    count = SideNetwork.count(what)
    check_size(what, count)
    with pytest.raises(ConfigError, match="choose a higher tap"):
        check_size(what, count - 1)
    assert what.tail is not None
    model = ModelSpec(name="huge", hidden_size=65536, layers=48, taps=(0,))
    huge = dataclasses.replace(what.tail, intermediate_size=1 << 18, layers=("0" * 64,) * 48)
    with pytest.raises(ConfigError, match="a higher tap"):
        check_size(dataclasses.replace(what, model=model, tail=huge), 1 << 30)
