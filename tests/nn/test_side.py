"""Tests of the side networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillm.errors import ConfigError, ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.side import SideCache, SideNetwork
from mobillm.spec import ModelSpec, OptimizerSpec, SessionSpec, SideSpec
from tests.nn.tiny import (
    DECODERS,
    ENCODERS,
    SAMPLES,
    collect,
    language_session,
    session,
    sink_taps,
    tiny_model,
)

LENGTHS = torch.tensor([5, 2, 4])


def _next_tokens() -> Tensor:
    return torch.tensor([token for sample in SAMPLES for token in (*sample[1:], -100)])


def _disturb(network: SideNetwork) -> None:
    """Move every weight away from its start, so that zero-initialised paths are open."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)


def _train(network: SideNetwork, taps: list[Tensor], targets: Tensor, steps: int = 40) -> tuple[float, float]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    first = last = 0.0
    for step in range(steps):
        network.begin_step(step)
        loss = network.loss(taps, LENGTHS, targets)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    return first, last


@pytest.mark.parametrize("architecture", [*DECODERS, *ENCODERS])
def test_training_on_taps_alone(architecture: str) -> None:
    """A few steps lower the loss, and the backbone gets no gradient."""
    model = tiny_model(architecture)
    backbone = Backbone.from_model(model, name="tiny", taps="all")
    spec = session(causal=backbone.causal, pool="last" if backbone.causal else "first")
    first, last = _train(SideNetwork.from_spec(spec), collect(backbone, SAMPLES), torch.tensor([0, 1, 0]))
    assert last < 0.5 * first
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["ladder", "parallel"])
@pytest.mark.parametrize("architecture", ["llama", "opt-350m", "gemma2"])
def test_language_model_starts_frozen_and_learns(architecture: str, kind: str) -> None:
    """At step 0 the logits are exactly the frozen model's; then the loss falls."""
    model = tiny_model(architecture)
    spec, head = language_session(model, kind=kind)
    network = SideNetwork.from_spec(spec, head)
    taps = collect(Backbone.from_model(model, name="tiny", taps="all"), SAMPLES)
    with torch.no_grad():
        assert torch.equal(network(taps, LENGTHS), head.logits(head.normalise(taps[-1])))
    first, last = _train(network, taps, _next_tokens(), 60)
    assert last < 0.85 * first
    assert all(buffer.grad is None for buffer in head.buffers())


def test_language_loss_is_the_mean_over_counted_tokens() -> None:
    """The loss leaves out -100 and equals torch's own on the full logits."""
    model = tiny_model("llama")
    spec, head = language_session(model)
    network = SideNetwork.from_spec(spec, head)
    taps, targets = collect(Backbone.from_model(model, name="tiny", taps="all"), SAMPLES), _next_tokens()
    logits = network(taps, LENGTHS).detach()
    expected = F.cross_entropy(logits, targets, ignore_index=-100)
    torch.testing.assert_close(network.loss(taps, LENGTHS, targets).detach(), expected)
    sums = network.evaluate(taps, LENGTHS, targets)
    assert sums["count"] == 8.0
    assert sums["correct"] == float((logits.argmax(-1) == targets).sum())
    assert sums["loss"] == pytest.approx(8 * float(expected), rel=1e-5)
    nothing = torch.full_like(targets, -100)
    assert network.evaluate(taps, LENGTHS, nothing) == {"loss": 0.0, "correct": 0.0, "count": 0.0}


@pytest.mark.parametrize("kind", ["ladder", "parallel"])
def test_causal_masking(kind: str) -> None:
    """A future token changes no earlier output."""
    spec, head = language_session(tiny_model("llama"), kind=kind)
    network = SideNetwork.from_spec(spec, head)
    _disturb(network)
    taps, length = sink_taps(6), torch.tensor([6])
    before = network(taps, length)
    for tap in taps:
        tap[5] += 3.0
    after = network(taps, length)
    torch.testing.assert_close(before[:5], after[:5])
    assert not torch.allclose(before[5], after[5])


@pytest.mark.parametrize("kind", ["ladder", "parallel"])
def test_step_equals_forward(kind: str) -> None:
    """Decoding with the cache gives the logits of the whole sample, and does not change its argument."""
    spec, head = language_session(tiny_model("llama"), kind=kind, dropout=0.5)
    network = SideNetwork.from_spec(spec, head)
    _disturb(network)
    taps = sink_taps(6)
    cache: SideCache | None = None
    parts = []
    for part in (slice(0, 3), slice(3, 4), slice(4, 6)):
        logits, cache = network.step([tap[part] for tap in taps], cache)
        again, _ = network.step([tap[part] for tap in taps], None if part.start == 0 else cache)
        assert again.shape == logits.shape
        parts.append(logits)
    assert network.training
    torch.testing.assert_close(torch.cat(parts), network.eval()(taps, torch.tensor([6])))


@pytest.mark.parametrize("kind", ["ladder", "parallel", "head"])
@pytest.mark.parametrize("pool", ["last", "first", "mean"])
def test_samples_do_not_see_each_other(kind: str, pool: str) -> None:
    """[B-42] A sample's class scores are the same alone and in a batch."""
    network = SideNetwork.from_spec(session(kind=kind, pool=pool, outputs=3))
    _disturb(network)
    taps = sink_taps(11)
    together = network(taps, LENGTHS)
    alone = network([tap[5:7] for tap in taps], torch.tensor([2]))
    assert together.shape == (3, 3)
    torch.testing.assert_close(together[1:2], alone)


def test_regression() -> None:
    """Regression gives one value per sample and its sums are squared errors."""
    network = SideNetwork.from_spec(session("regression", 1))
    taps, targets = sink_taps(11), torch.tensor([0.5, -1.0, 2.0])
    assert torch.equal(network(taps, LENGTHS), torch.zeros(3))
    assert network.evaluate(taps, LENGTHS, targets) == {"loss": pytest.approx(5.25), "count": 3.0}
    first, last = _train(network, taps, targets)
    assert first == pytest.approx(1.75)
    assert last < 0.1


def test_classification_sums() -> None:
    """A fresh classifier gives every class the same score."""
    network = SideNetwork.from_spec(session(outputs=4))
    sums = network.evaluate(sink_taps(11), LENGTHS, torch.tensor([0, 1, 0]))
    assert sums["correct"] == 2.0
    assert sums["count"] == 3.0
    assert sums["loss"] == pytest.approx(3 * float(torch.tensor(4.0).log()))


def test_seed_fixes_everything() -> None:
    """The same spec gives the same weights and masks, and the process's random state is untouched."""
    spec = session(dropout=0.3)
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    one = SideNetwork.from_spec(spec)
    torch.manual_seed(6)
    two = SideNetwork.from_spec(spec)
    assert one.state_bytes() == two.state_bytes()
    taps, targets = sink_taps(11), torch.tensor([0, 1, 0])
    assert _train(one, taps, targets, 5) == _train(two, taps, targets, 5)
    assert one.state_bytes() == two.state_bytes()
    other = SideNetwork.from_spec(SessionSpec.from_map(spec.to_map() | {"seed": 9}))
    assert other.state_bytes() != SideNetwork.from_spec(spec).state_bytes()
    torch.random.set_rng_state(state)
    SideNetwork.from_spec(spec)
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_round_trip() -> None:
    """Saved weights hold nothing frozen and restore the same outputs."""
    spec, head = language_session(tiny_model("llama"))
    network, other = SideNetwork.from_spec(spec, head), SideNetwork.from_spec(spec, head)
    _disturb(network)
    data = network.state_bytes()
    assert len(data) < 4 * sum(p.numel() for p in network.parameters()) + 8192
    assert b"head_weight" not in data
    other.load_bytes(data)
    assert other.state_bytes() == data
    taps = sink_taps(11)
    torch.testing.assert_close(other(taps, LENGTHS), network(taps, LENGTHS), atol=0.0, rtol=0.0)


def test_weights_of_another_spec_are_refused() -> None:
    """The error names the tensor and both shapes, and no weight is changed."""
    network = SideNetwork.from_spec(session(width=8))
    before = network.state_bytes()
    with pytest.raises(
        ModelError, match=r"tensor body.blocks.0.attention_norm.bias is \[4\], expected \[8\]"
    ):
        network.load_bytes(SideNetwork.from_spec(session(width=4)).state_bytes())
    with pytest.raises(ModelError, match="is missing, expected"):
        network.load_bytes(SideNetwork.from_spec(session(kind="head")).state_bytes())
    with pytest.raises(ModelError, match="cannot be read"):
        network.load_bytes(b"\x00" * 20)
    assert network.state_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taps": sink_taps(11, count=2)}, "taps is 2; expected 3 tensors"),
        ({"taps": sink_taps(10)}, r"taps\[0\] is .*expected floating values of shape \[11, 16\]"),
        ({"lengths": torch.tensor([5, 6])}, "targets"),
        ({"targets": torch.tensor([0, 2, 1])}, "targets is 2; expected 0 to 1"),
        ({"targets": torch.tensor([0, -100, 1])}, "targets is -100"),
        ({"targets": torch.tensor([0.0, 1.0, 1.0])}, "expected int64 values"),
    ],
)
def test_bad_batches(changes: dict[str, Any], message: str) -> None:
    """What does not match the spec is a clear error before anything is computed."""
    batch: dict[str, Any] = {
        "taps": sink_taps(11),
        "lengths": LENGTHS,
        "targets": torch.tensor([0, 1, 0]),
    } | changes
    with pytest.raises(ConfigError, match=message):
        SideNetwork.from_spec(session()).loss(**batch)


def test_head_must_fit() -> None:
    """A missing, superfluous or foreign LM head is refused, and so are taps without the last layer."""
    spec, head = language_session(tiny_model("llama"))
    with pytest.raises(ModelError, match="needs an LM head"):
        SideNetwork.from_spec(spec)
    with pytest.raises(ModelError, match="takes no LM head"):
        SideNetwork.from_spec(session(), head)
    with pytest.raises(ModelError, match="hidden size 16 and 40 outputs, the session 16 and 41"):
        SideNetwork.from_spec(SessionSpec.from_map(spec.to_map() | {"outputs": 41}), head)
    lower = spec.to_map()
    lower["model"]["taps"] = [1, 2]
    with pytest.raises(ConfigError, match="the last layer, 3"):
        SideNetwork.from_spec(SessionSpec.from_map(lower), head)
    with pytest.raises(ModelError, match="cannot generate"):
        SideNetwork.from_spec(session()).step(sink_taps(1))


@pytest.mark.parametrize("kind", ["ladder", "parallel", "head"])
def test_count_is_that_of_the_network(kind: str) -> None:
    """Counting gives the number of parameters, and uses neither memory nor the random state."""
    spec = session(kind=kind, outputs=3)
    state = torch.get_rng_state()
    count = SideNetwork.count(spec)
    assert torch.equal(torch.get_rng_state(), state)
    assert count == sum(parameter.numel() for parameter in SideNetwork.from_spec(spec).parameters())


def test_count_without_the_frozen_head() -> None:
    """A language model's head is neither needed for counting nor counted."""
    spec, head = language_session(tiny_model("llama"))
    network = SideNetwork.from_spec(spec, head)
    assert SideNetwork.count(spec) == sum(parameter.numel() for parameter in network.parameters())


def test_a_network_larger_than_any_memory_can_be_counted() -> None:
    """The largest spec there is: a thousand blocks as wide as the widest model."""
    model = ModelSpec(name="huge", hidden_size=65536, layers=1000, taps=tuple(range(1, 1001)))
    huge = SessionSpec(
        task="classification",
        outputs=1 << 22,
        model=model,
        side=SideSpec(width=65536, heads=1),
        optimizer=OptimizerSpec(schedule="constant"),
    )
    assert SideNetwork.count(huge) > 10**13
