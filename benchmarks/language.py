"""Texts to continue: restaurants described in a sentence (E2E NLG) and encyclopaedia (WikiText-2).

E2E NLG: Novikova et al., 2017; a sample is a list of attributes and the sentence that says them, whose tokens
alone count. WikiText-2: Merity et al., 2016; a sample is a paragraph, of which a method sees at most as many
tokens as it takes of any text.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator

from mobillm.device.dataset import Dataset, Example, load_examples

__all__ = ["LANGUAGE", "Language"]

DEV = 200  # samples that are judged
E2E_STEP = 23  # rows of E2E from one sample to the next: neighbours describe the same restaurant


@dataclasses.dataclass(frozen=True, slots=True)
class Language:
    """One task of continuing texts; what has the lower perplexity is better.

    Attributes:
        read: yields the samples of a part, ``train`` or ``dev``, from the folder that holds the tasks' own.
        limit: training samples that are used, the first ones.

    """

    read: Callable[[pathlib.Path, str], Iterator[Example]]
    limit: int
    kind: str = "causal-lm"
    labels: None = None
    metric: str = "perplexity"
    lower: bool = True

    def load(self, data: pathlib.Path, part: str) -> Dataset:
        """Read a part, ``train`` or ``dev``, from the folder that holds the tasks' own."""
        wanted = self.limit if part == "train" else DEV
        return Dataset(tuple(itertools.islice(self.read(data, part), wanted)))


def _e2e(data: pathlib.Path, part: str) -> Iterator[Example]:
    path = data / "e2e_nlg" / f"{part}set.csv"
    rows = load_examples(path, task="causal-lm", text_column="mr", pair_column="ref").examples
    for row in rows[::E2E_STEP]:
        yield Example(row.text + "\n", row.pair)


def _wikitext(data: pathlib.Path, part: str) -> Iterator[Example]:
    name = {"train": "train", "dev": "valid"}[part]
    for line in (data / "wikitext-2" / f"wiki.{name}.tokens").read_text().splitlines():
        text = line.strip()
        if text and not text.startswith("="):  # a heading
            yield Example(text)


LANGUAGE = {"e2e": Language(_e2e, 600), "wikitext": Language(_wikitext, 500)}
