"""The demo's data: fixed split, right labels, refusal of other content."""

from __future__ import annotations

import pathlib

import pytest

from mobillm.cli.demo_data import load_messages, load_topics
from mobillm.errors import DataError
from mobillm.nn.cache import cache_directory


def test_messages() -> None:
    """The split is fixed and disjoint, undecided messages are left out, and moods fit their texts."""
    train, heldout = load_messages(cache_directory())
    assert (len(train), len(heldout)) == (2632, 800)
    assert (train, heldout) == load_messages(cache_directory())
    positive = sum(example.target == 1 for example in train + heldout)
    assert positive / 3432 == pytest.approx(0.683, abs=0.001)
    lucky = next(example for example in train + heldout if "So lucky." in example.text)
    assert lucky.target == 1


def test_other_content_is_refused(tmp_path: pathlib.Path) -> None:
    """A file with another hash is named, with what to do."""
    (tmp_path / "tweets_GroundTruth.txt").write_text("1\t2.0\thello\n")
    with pytest.raises(DataError, match="delete it to fetch it again"):
        load_messages(tmp_path)


def test_topics() -> None:
    """Held-out pieces come from topics that are not trained on."""
    train, heldout = load_topics(40, 10, 500)
    assert (len(train), len(heldout)) == (40, 10)
    assert {example.text for example in train}.isdisjoint(example.text for example in heldout)
    assert all(250 <= len(example.text) <= 500 for example in train + heldout)
