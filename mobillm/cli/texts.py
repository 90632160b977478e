"""Texts from the command line and standard input, refused before they reach a model."""

from __future__ import annotations

from ..errors import DataError
from ..nn.tokens import lone_surrogate

__all__ = ["check_text"]


def check_text(text: str, place: str, *, pair: bool = True) -> None:
    """Refuse a text that no model can use.

    Args:
        text: what was given.
        place: where, for the error.
        pair: whether a tab separates two sentences.

    Raises:
        DataError: the text is empty, as training would not take it either, or not valid Unicode.

    """
    wrong = lone_surrogate(text)
    if wrong is not None:
        raise DataError(
            f"{place}: not valid Unicode (character {wrong + 1} stands for no character); "
            "convert it to UTF-8 or leave it out"
        )
    if not all(part.strip() for part in text.split("\t", 1 if pair else 0)):
        seen = "one of its two sentences" if text.strip() else "it"
        raise DataError(f"{place}: {seen} is empty; give a text")
