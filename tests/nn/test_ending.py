"""The ending that texts have in common."""

from __future__ import annotations

import pytest

from mobillm.nn.ending import close_text, common_ending


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ""),
        (["a phrase", "another one"], ""),
        (["a phrase", "a sentence .", "another . \n"], " ."),
        (["One. ", "Two.", "Three .", "Four!"], "."),
        (["Why?", "a phrase"], "?"),
        (["这部电影很好。", "很好"], "。"),
        (["", "   ", "Done."], "."),
        (["."], "."),
        ([*["a phrase"] * 19, "a sentence."], "."),
        ([*["a phrase"] * 20, "a sentence."], ""),
    ],
)
def test_common_ending(texts: list[str], expected: str) -> None:
    """The most frequent mark with its space, if one text in twenty ends in a mark."""
    assert common_ending(texts) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a phrase", "a phrase ."),
        ("a phrase \n", "a phrase ."),
        ("in 1999", "in 1999 ."),
        ("a sentence .", "a sentence ."),
        ("really ?", "really ?"),
        ("he said ''", "he said ''"),
        ("", ""),
        ("  ", "  "),
    ],
)
def test_close_text(text: str, expected: str) -> None:
    """Only a text that ends in a letter or a digit gets the ending."""
    assert close_text(text, " .") == expected
    assert close_text(text, "") == text
