"""Tests of tokenization."""

from __future__ import annotations

import pytest

from mobillm.errors import ConfigError, ModelError
from mobillm.nn.tokens import lone_surrogate, tokenize, tokenize_pairs
from tests.nn.tiny import tiny_tokenizer


def test_texts() -> None:
    """Each text follows the start token, and is cut at the end."""
    tokenizer = tiny_tokenizer()
    assert tokenize(tokenizer, ["w5 w6 w7", "w9", ""], 3) == [[1, 5, 6], [1, 9], [1]]
    assert tokenize(tokenizer, [], 2) == []


def test_start_token() -> None:
    """A tokenizer's own special tokens suffice; the document separator is preferred to the start token."""
    assert tokenize(tiny_tokenizer(bert=True), ["w5 w6"], 8) == [[1, 5, 6, 2]]
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|endoftext|>"])
    assert tokenize(tokenizer, ["w5 w6"], 8) == [[40, 5, 6]]
    assert tokenize_pairs(tokenizer, [("w5", "w6")], 8) == [[40, 5, 6]]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (9, [1, 4, 5, 6, 7, 8, 9]),
        (6, [1, 4, 5, 6, 7, 8]),
        (5, [1, 4, 6, 7, 8]),
        (3, [1, 6, 7]),
    ],
)
def test_pairs_without_separator(limit: int, expected: list[int]) -> None:
    """The second sentence follows the first, and the longer one is cut first."""
    assert tokenize_pairs(tiny_tokenizer(), [("w4 w5", "w6 w7 w8 w9")], limit) == [expected]


def test_pairs_with_separator() -> None:
    """A tokenizer with a separator uses its own pair form."""
    assert tokenize_pairs(tiny_tokenizer(bert=True), [("w4", "w6 w7 w8")], 6) == [[1, 4, 2, 6, 7, 2]]
    assert tokenize_pairs(tiny_tokenizer(bert=True), [], 6) == []


def test_errors() -> None:
    """A length out of range, text that UTF-8 cannot hold, and an empty text that no token can stand for."""
    tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigError, match="max_length is 0; expected 1 to 1000000"):
        tokenize(tokenizer, ["w4"], 0)
    with pytest.raises(ConfigError, match="max_length is 1000001"):
        tokenize_pairs(tokenizer, [("w4", "w5")], 1_000_001)
    with pytest.raises(ModelError, match="not valid Unicode"):
        tokenize(tokenizer, ["w4 \ud800"], 4)
    with pytest.raises(ModelError, match="not valid Unicode"):
        tokenize_pairs(tokenizer, [("w4", "\udcff")], 4)
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="a text is empty"):
        tokenize(tokenizer, [""], 4)


def test_lone_surrogate() -> None:
    """Only half of a pair is found; characters beyond 16 bits are whole."""
    assert lone_surrogate("a\U0001f600b") is None
    assert lone_surrogate("ab\udfff") == 2
