"""What a side network was trained to read: texts as token ids, in use as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError
from .ending import close_text
from .saved import SideConfig, read_config
from .tokens import tokenize, tokenize_pairs

__all__ = ["Text", "check_pairs", "encode", "input_ids"]

Text = str | tuple[str, str]


def input_ids(side: str | Path, tokenizer: Any, texts: Sequence[Text]) -> list[list[int]]:
    """Return the token ids that a trained side network expects, for use without :class:`mobillm.SideTuned`.

    A ``tail``, for one, is a PEFT adapter, and answers as ``mobillm predict`` does if it is given these.

    Args:
        side: directory of the side network.
        tokenizer: the backbone's, of transformers.
        texts: texts, or sentence pairs where it was trained on pairs.

    Returns:
        the ids of each text, without padding. Of a ``causal-lm`` they are those of a prompt.

    Raises:
        ModelError: there is no side network, it reads pairs and these are none (or the other way round), or
            a text is not valid Unicode.

    """
    config = read_config(side)
    check_pairs(config, texts)
    if config.spec.task == "causal-lm":
        return tokenize(tokenizer, [text for text in texts if isinstance(text, str)], config.max_length)
    return encode(tokenizer, texts, max_length=config.max_length, ending=config.ending)


def encode(tokenizer: Any, texts: Sequence[Text], *, max_length: int, ending: str) -> list[list[int]]:
    """Encode texts, or sentence pairs, that are to be classified or valued.

    Blanks around a text are dropped, and what ends in a word gets the ending.

    Args:
        tokenizer: of transformers.
        texts: all of one kind.
        max_length: most tokens of a sample, see :mod:`mobillm.nn.tokens`.
        ending: see :mod:`mobillm.nn.ending`; empty for none.

    """
    pairs = [text for text in texts if not isinstance(text, str)]
    if not pairs:
        closed = [close_text(text.strip(), ending) for text in texts if isinstance(text, str)]
        return tokenize(tokenizer, closed, max_length)
    both = [(first.strip(), close_text(second.strip(), ending)) for first, second in pairs]
    return tokenize_pairs(tokenizer, both, max_length)


def check_pairs(config: SideConfig, texts: Sequence[Text]) -> None:
    """Refuse single texts where pairs were trained on, and pairs where single texts were.

    Raises:
        ModelError: a text is of the other kind.

    """
    for number, text in enumerate(texts, 1):
        if isinstance(text, str) == config.pairs:
            kinds = ("pairs of texts", "single texts")
            expected, seen = kinds if config.pairs else kinds[::-1]
            raise ModelError(
                f"text {number}: the side network was trained on {expected} and got {seen}; with pairs give "
                "the second text in --pair-column, to 'mobillm predict' after a tab, in Python as a tuple"
            )
