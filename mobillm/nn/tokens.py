"""Texts and sentence pairs as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError, ModelError

__all__ = ["MAX_LENGTH", "lone_surrogate", "tokenize", "tokenize_pairs"]

MAX_LENGTH = 1_000_000  # tokens of a sample
_DOCUMENT_START = "<|endoftext|>"


def lone_surrogate(text: str) -> int | None:
    """Return the index of the first half of a surrogate pair, which UTF-8 cannot hold; None if none is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Encode texts, each behind a start token.

    The first position of a decoder turns into an attention sink, whatever its token is
    (arXiv 2309.17453), and would be lost as a word of the text. Where a tokenizer adds no special
    token by itself, ``<|endoftext|>`` if it knows it, or else its own start token, comes first.

    Args:
        tokenizer: a transformers tokenizer.
        texts: the texts.
        max_length: most tokens of a sample, special ones included; what is longer loses its end.

    Returns:
        the token ids of each text, each with at least one.

    Raises:
        ConfigError: ``max_length`` is not from 1 to 1000000.
        ModelError: a text is not valid Unicode, or is empty and the tokenizer has no token that could
            stand for it.

    """
    _check(max_length, texts)
    if not texts:
        return []
    start = _start(tokenizer)
    encoded = tokenizer(list(texts), add_special_tokens=True, truncation=True, max_length=max_length)
    return [_sample([*start, *ids][:max_length]) for ids in encoded["input_ids"]]


def tokenize_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int) -> list[list[int]]:
    """Encode sentence pairs as one sample each.

    A tokenizer with a separator token (BERT, RoBERTa) uses its own pair form; with any other the
    second sentence follows on a new line.

    Args:
        tokenizer: a transformers tokenizer.
        pairs: the sentence pairs.
        max_length: most tokens of a sample, special ones included; the longer sentence of a pair
            loses its end first.

    Returns:
        the token ids of each pair, each with at least one.

    Raises:
        ConfigError: ``max_length`` is not from 1 to 1000000.
        ModelError: a text is not valid Unicode, or a pair is empty and the tokenizer has no token that
            could stand for it.

    """
    _check(max_length, [text for pair in pairs for text in pair])
    if not pairs:
        return []
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    if tokenizer.sep_token is not None:
        encoded = tokenizer(firsts, seconds, truncation="longest_first", max_length=max_length)
        return [_sample(list(ids)) for ids in encoded["input_ids"]]
    start = _start(tokenizer)
    heads = tokenizer(firsts, add_special_tokens=True)["input_ids"]
    tails = tokenizer([f"\n{second}" for second in seconds], add_special_tokens=False)["input_ids"]
    samples = []
    for ids, tail in zip(heads, tails, strict=True):
        head = [*start, *ids]
        keep_head, keep_tail = _shares(len(head), len(tail), max_length)
        samples.append(_sample([*head[:keep_head], *tail[:keep_tail]]))
    return samples


def _start(tokenizer: Any) -> list[int]:
    """Return what to put before a sample; nothing when the tokenizer adds special tokens itself."""
    if tokenizer("", add_special_tokens=True)["input_ids"]:
        return []
    document = tokenizer.get_vocab().get(_DOCUMENT_START)
    start = tokenizer.bos_token_id if document is None else document
    return [] if start is None else [int(start)]


def _shares(first: int, second: int, limit: int) -> tuple[int, int]:
    """Split ``limit`` over two lengths so that the longer one is cut first."""
    if first + second <= limit:
        return first, second
    short = min(first, second, limit // 2)
    return (short, min(second, limit - short)) if first <= second else (min(first, limit - short), short)


def _sample(ids: list[int]) -> list[int]:
    if not ids:
        raise ModelError("a text is empty and the tokenizer has no start token; leave the text out")
    return ids


def _check(max_length: int, texts: Sequence[str]) -> None:
    if not 1 <= max_length <= MAX_LENGTH:
        raise ConfigError("max_length", max_length, f"1 to {MAX_LENGTH}")
    for text in texts:
        wrong = lone_surrogate(text)
        if wrong is not None:
            raise ModelError(
                f"the text {text[:40]!r} is not valid Unicode (character {wrong + 1} stands for no "
                "character); correct it or leave it out"
            )
