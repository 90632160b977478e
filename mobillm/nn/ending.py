"""How texts end: a decoder's head reads the last position, so samples should end alike."""

from __future__ import annotations

import collections
from collections.abc import Iterable

__all__ = ["close_text", "common_ending"]

_MARKS = ".!?。！？"  # noqa: RUF001 -- full-width marks end sentences of Chinese and Japanese
_ENOUGH = 20  # one text in so many has to end in a mark before others are made to


def common_ending(texts: Iterable[str]) -> str:
    """Return how most of the closed texts end: a mark, and the space before it if there is one.

    Phrases and whole sentences in one data set end in words here and in marks there, and what the last
    position of a decoder holds depends on that more than on what is to be learnt. SST-2 trains on phrases,
    of which a fifth end in `` .``, and is judged by sentences, of which nearly all do.

    Args:
        texts: the texts to train on.

    Returns:
        for example ``.`` or `` .``; empty when fewer than one text in 20 ends in a mark.

    """
    found: collections.Counter[str] = collections.Counter()
    total = 0
    for text in texts:
        total += 1
        stripped = text.rstrip()
        if stripped[-1:] and stripped[-1] in _MARKS:
            found[" " + stripped[-1] if stripped[-2:-1].isspace() else stripped[-1]] += 1
    closed = sum(found.values())
    if not closed or closed * _ENOUGH < total:
        return ""
    return max(found, key=lambda ending: (found[ending], ending))


def close_text(text: str, ending: str) -> str:
    """Add the ending to a text that ends in a letter or a digit; any other text stays as it is.

    Args:
        text: the text.
        ending: what :func:`common_ending` found; empty adds nothing.

    """
    stripped = text.rstrip()
    return stripped + ending if ending and stripped[-1:].isalnum() else text
