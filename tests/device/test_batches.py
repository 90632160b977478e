"""Examples to token batches."""

from __future__ import annotations

import pytest

from mobillm.device.batches import ENOUGH, GROUP, make_batches
from mobillm.device.dataset import Example
from mobillm.errors import DataError, ModelError
from mobillm.nn.backbone import Backbone
from mobillm.nn.tokens import tokenize_pairs
from mobillm.spec import IGNORED
from tests.nn.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return a tiny decoder."""
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1, 3])


def examples(count: int) -> list[Example]:
    """Return texts of one to nine words, each with its own class."""
    return [
        Example(" ".join(f"w{3 + (n + i) % 30}" for i in range(1 + n % 9)), target=n % 2)
        for n in range(count)
    ]


def test_classification(backbone: Backbone) -> None:
    """Every example comes once, with its target; lengths within a batch are alike."""
    data = examples(100)
    batches = make_batches(backbone, data, task="classification", batch_size=4, max_length=6, seed=1)
    assert [len(batch.input_ids) for batch in batches].count(4) == 25
    found = [
        (tuple(ids), target)
        for batch in batches
        for ids, target in zip(batch.input_ids, batch.targets, strict=True)
    ]
    expected = [
        (tuple(ids), example.target)
        for ids, example in zip(backbone.tokenize([e.text for e in data], 6), data, strict=True)
    ]
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    spread = [max(map(len, b.input_ids)) - min(map(len, b.input_ids)) for b in batches]
    assert sum(spread) / len(spread) < 1.5
    assert 4 * GROUP < 100  # more than one group


@pytest.mark.parametrize("batch_size", [4, 64])
def test_the_first_batch_is_small_but_large_enough(backbone: Backbone, batch_size: int) -> None:
    """It has the fewest tokens of those to calibrate on; without such a one it is the largest."""
    for seed in range(3):
        batches = make_batches(
            backbone, examples(500), task="classification", batch_size=batch_size, max_length=9, seed=seed
        )
        tokens = [sum(map(len, batch.input_ids)) for batch in batches]
        assert min(tokens) < ENOUGH
        assert (max(tokens) >= ENOUGH) == (batch_size == 64)
        large = [count for count in tokens if count >= ENOUGH]
        assert tokens[0] == (min(large) if large else max(tokens))


@pytest.mark.parametrize(("tokens", "task"), [("loss", "causal-lm"), ("last", "classification")])
def test_what_is_sent_counts_for_the_first_batch(backbone: Backbone, tokens: str, task: str) -> None:
    """Of prompts with completions only these are calibrated on, of other texts only the last tokens."""
    rows = [Example("w3 " * 18, pair="w4" if number % 2 else "w5 " * 12) for number in range(600)]
    if task == "classification":
        rows = [Example("w3 " * (1 + number % 20), target=0) for number in range(540)]
    batches = make_batches(backbone, rows, task=task, batch_size=40, max_length=60, seed=0, tokens=tokens)
    sent = [
        sum(target != IGNORED for target in batch.targets) if tokens == "loss" else len(batch.input_ids)
        for batch in batches
    ]
    large = [count for count in sent if count >= ENOUGH]
    assert min(sent) < ENOUGH
    assert sent[0] == (min(large) if large else max(sent))


def test_ending(backbone: Backbone) -> None:
    """A text without a final mark, or the second of a pair, gets the ending; causal-lm takes it as it is."""
    for example, text in (
        (Example("w5 w6", target=0), "w5 w6 ."),
        (Example("w5 !", target=0), "w5 !"),
        (Example("w5", pair="w6 w7", target=0), ("w5", "w6 w7 .")),
    ):
        (batch,) = make_batches(
            backbone, [example], task="classification", batch_size=4, max_length=9, seed=0, ending=" ."
        )
        expected = (
            backbone.tokenize([text], 9)
            if isinstance(text, str)
            else tokenize_pairs(backbone.tokenizer, [text], 9)
        )
        assert batch.input_ids == expected
    (batch,) = make_batches(
        backbone, [Example("w5 w6")], task="causal-lm", batch_size=4, max_length=9, seed=0, ending=" ."
    )
    assert batch.input_ids == backbone.tokenize(["w5 w6"], 9)


def test_the_order_depends_on_the_seed(backbone: Backbone) -> None:
    """The same seed gives the same order, another one another."""

    def order(seed: int) -> list[object]:
        return list(
            make_batches(backbone, examples(20), task="classification", batch_size=4, max_length=9, seed=seed)
        )

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_language_targets(backbone: Backbone) -> None:
    """[B-29] Each token's target is the next; of a prompt with a completion only the completion counts."""
    plain, paired = Example("w5 w6 w7"), Example("w5 w6", pair="w7 w8")
    (batch,) = make_batches(
        backbone, [plain], task="causal-lm", batch_size=4, max_length=9, seed=0, heldout=True
    )
    assert batch.heldout
    assert batch.targets == [*batch.input_ids[0][1:], IGNORED]
    (batch,) = make_batches(backbone, [paired], task="causal-lm", batch_size=4, max_length=9, seed=0)
    assert batch.input_ids == [[1, 5, 6, 7, 8, 2]]  # start and end token
    assert batch.targets == [IGNORED, IGNORED, 7, 8, 2, IGNORED]
    (batch,) = make_batches(backbone, [paired, plain], task="causal-lm", batch_size=4, max_length=3, seed=0)
    assert len(batch.input_ids) == 1  # nothing of the completion is left


def test_examples_that_cannot_be_used(backbone: Backbone) -> None:
    """The number of the example is in the error."""
    for bad, task, match in [
        (Example("w5"), "classification", "example 1 has the target None"),
        (Example("w5", target=float("nan")), "regression", "target nan"),
        (Example("w5", target=1e39), "regression", r"target 1e\+39; expected a finite number"),
        (Example("w5", target=10**400), "regression", "expected a finite number"),
        (Example("w5", target=-1), "classification", "target -1; expected the number of a class"),
        (Example("w5", target=0.5), "classification", "target 0.5; expected the number of a class"),
        (Example("w5", target=10**400), "classification", "expected the number of a class"),
        (Example("w5"), "causal-lm", "no example has a token to predict"),
    ]:
        with pytest.raises(DataError, match=match):
            make_batches(backbone, [bad], task=task, batch_size=1, max_length=1, seed=0)


def test_samples_that_the_model_cannot_run(backbone: Backbone) -> None:
    """They are refused before anything is sent, with the option that helps."""
    long = Example(" ".join(["w5"] * 40), target=0)
    with pytest.raises(ModelError, match=r"sample 1 has 41 tokens .* at most 32; lower .*--max-length"):
        make_batches(
            backbone,
            [Example("w5", target=0), long],
            task="classification",
            batch_size=2,
            max_length=99,
            seed=0,
        )
