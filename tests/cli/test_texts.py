"""Tests of texts from outside."""

from __future__ import annotations

import pytest

from mobillm.cli.texts import check_text
from mobillm.errors import DataError


def test_good_texts() -> None:
    """Texts and pairs pass; a tab in a prompt separates nothing."""
    for text in ("a", " a ", "one\ttwo", "\U0001f600"):
        check_text(text, "text 1")
    check_text("a\t", "--prompt", pair=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 4: it is empty"),
        (" \t ", "line 4: it is empty"),
        ("one\t", "line 4: one of its two sentences is empty"),
        ("ab\ud800", r"line 4: not valid Unicode \(character 3"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    """The place, what is wrong and what to do are in the error."""
    with pytest.raises(DataError, match=message) as caught:
        check_text(text, "line 4")
    assert ";" in str(caught.value)
