"""Examples to token batches: tokenize, build targets, sort by length inside shuffled groups."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import DataError
from ..nn.inputs import Text, encode
from ..spec import IGNORED
from .dataset import LARGEST_TARGET, Example
from .pipeline import TokenBatch

if TYPE_CHECKING:
    from ..nn.backbone import Backbone

__all__ = ["make_batches"]

_MOST_CLASSES = 1 << 22

# Batches whose samples are sorted by length together: enough to make padding rare in the forward pass,
# few enough that batches stay random.
GROUP = 16
# Tokens of a batch that equalizers can be calibrated on: from 120 tokens of the shortest texts their error is
# a tenth larger, from 256 no longer (benchmarks/LOG.md).
ENOUGH = 256


def make_batches(
    backbone: Backbone,
    examples: Sequence[Example],
    *,
    task: str,
    batch_size: int,
    max_length: int,
    seed: int,
    heldout: bool = False,
    ending: str = "",
    tokens: str = "all",
) -> list[TokenBatch]:
    """Tokenize examples and cut them into batches.

    Args:
        backbone: whose tokenizer is used.
        examples: texts with their targets.
        task: ``causal-lm``, ``classification`` or ``regression``.
        batch_size: samples of a batch.
        max_length: most tokens of a sample; longer ones are cut.
        seed: of the order.
        heldout: whether the batches are for evaluation only.
        ending: given to texts without a final mark, see :mod:`mobillm.nn.ending`; ``causal-lm`` takes
            texts as they are.
        tokens: which are sent, see :class:`mobillm.SessionSpec`.

    Returns:
        batches in the order they are to be sent. The first one is small, as link and server have nothing
        to do until it is through the backbone, but large enough to calibrate the equalizers on.

    Raises:
        DataError: an example has no tokens, or no target to learn from that fits the task.
        ModelError: the backbone cannot run a sample: it has too many tokens, or one without an embedding.

    """
    samples = _tokenize(backbone, examples, task, max_length, ending)
    if samples:
        backbone.check([ids for ids, _ in samples])
    order = list(range(len(samples)))
    generator = random.Random(seed)
    generator.shuffle(order)
    span = batch_size * GROUP
    chunks = []
    for start in range(0, len(order), span):
        group = sorted(order[start : start + span], key=lambda index: len(samples[index][0]))
        chunks += [group[at : at + batch_size] for at in range(0, len(group), batch_size)]
    generator.shuffle(chunks)
    if chunks:
        sent = [sum(_sent(samples[index], tokens) for index in chunk) for chunk in chunks]
        first = min(range(len(chunks)), key=lambda at: _fitness(sent[at]))
        chunks[0], chunks[first] = chunks[first], chunks[0]
    return [_batch([samples[index] for index in chunk], task, heldout) for chunk in chunks]


def _sent(sample: _Sample, tokens: str) -> int:
    """Count the tokens of a sample that are sent."""
    ids, targets = sample
    if tokens == "last":
        return 1
    return len(ids) if tokens == "all" else sum(target != IGNORED for target in targets)


def _fitness(tokens: int) -> tuple[bool, int]:
    """Return what is least for the batch that should come first."""
    return tokens < ENOUGH, tokens if tokens >= ENOUGH else -tokens


_Sample = tuple[list[int], list[float]]


def _batch(samples: list[_Sample], task: str, heldout: bool) -> TokenBatch:
    targets = [target for _, sample_targets in samples for target in sample_targets]
    return TokenBatch([ids for ids, _ in samples], targets, heldout)


def _tokenize(
    backbone: Backbone, examples: Sequence[Example], task: str, max_length: int, ending: str
) -> list[_Sample]:
    if task == "causal-lm":
        return _tokenize_language(backbone, examples, max_length)
    paired = any(example.pair is not None for example in examples)
    texts: list[Text] = [(e.text, e.pair or "") if paired else e.text for e in examples]
    ids = encode(backbone.tokenizer, texts, max_length=max_length, ending=ending)
    samples = []
    for number, (example, sample) in enumerate(zip(examples, ids, strict=True), 1):
        expected = _expected_target(example.target, task)
        if expected is not None:
            raise DataError(f"example {number} has the target {example.target!r}; expected {expected}")
        if not sample:
            raise DataError(f"example {number} is empty; leave it out")
        assert example.target is not None
        samples.append((sample, [example.target]))
    return samples


def _expected_target(target: int | float | None, task: str) -> str | None:
    """Return what the target should have been; None when it can be learnt."""
    try:
        value = math.nan if target is None else float(target)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if task == "regression":
        return None if abs(value) <= LARGEST_TARGET else "a finite number, at most 3.4e38"
    whole = 0 <= value < _MOST_CLASSES and value.is_integer()
    return None if whole else "the number of a class, from 0"


def _tokenize_language(backbone: Backbone, examples: Sequence[Example], max_length: int) -> list[_Sample]:
    """Make each token's target the next token; of a prompt with a completion only the latter counts."""
    prompts = backbone.tokenize([example.text for example in examples], max_length)
    samples: list[_Sample] = []
    for example, prompt in zip(examples, prompts, strict=True):
        ids, first = prompt, 1
        if example.pair is not None:
            ids, first = (prompt + _completion(backbone, example.pair))[:max_length], len(prompt)
        targets: list[float] = [*ids[1:], IGNORED]
        targets[: first - 1] = [IGNORED] * min(first - 1, len(targets))
        if any(target != IGNORED for target in targets):
            samples.append((ids, targets))
    if not samples:
        raise DataError("no example has a token to predict; give longer texts or a larger max_length")
    return samples


def _completion(backbone: Backbone, text: str) -> list[int]:
    """Encode a completion: no start token in the middle of a sample, and the end token to be learnt."""
    ids: list[int] = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = backbone.tokenizer.eos_token_id
    return ids if end is None else [*ids, end]
