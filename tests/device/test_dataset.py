"""Tests of training examples from data files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobillm.device.dataset import LARGEST_TARGET, Dataset, Example, load_examples
from mobillm.errors import ConfigError, DataError


def _load(folder: Path, content: str, name: str = "d.tsv", **options: Any) -> Dataset:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return load_examples(path, **({"task": "classification"} | options))


def test_classification_with_defaults(tmp_path: Path) -> None:
    """The usual columns are found, labels are sorted as numbers, blanks around texts are dropped."""
    data = _load(tmp_path, "sentence\tlabel\n a film . \t10\nb\t9\n")
    assert data == Dataset((Example("a film .", None, 1), Example("b", None, 0)), ("9", "10"))


def test_words_as_labels(tmp_path: Path) -> None:
    """Word labels are sorted by their letters; a given order is kept."""
    content = "text\tlabel\na\tyes\nb\tno\n"
    assert _load(tmp_path, content).labels == ("no", "yes")
    given = _load(tmp_path, content, labels=["yes", "no", "maybe"])
    assert given.labels == ("yes", "no", "maybe")
    assert [example.target for example in given.examples] == [0, 1]


def test_pairs_and_numbered_columns(tmp_path: Path) -> None:
    """Files without a header work by column numbers, with a second sentence."""
    data = _load(
        tmp_path, "1\tx\ty\n0\tu\tv\n", header=False, text_column="1", pair_column="2", label_column="0"
    )
    assert data.examples == (Example("x", "y", 1), Example("u", "v", 0))


def test_json_labels(tmp_path: Path) -> None:
    """Numbers and booleans of JSON are label names as JSON writes them."""
    content = '{"text": "a", "label": true}\n{"text": "b", "label": false}\n'
    assert _load(tmp_path, content, "d.jsonl").labels == ("false", "true")
    content = '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n'
    assert _load(tmp_path, content, "d.jsonl").labels == ("0", "1")


def test_regression(tmp_path: Path) -> None:
    """Targets are numbers and there are no labels."""
    data = _load(tmp_path, "text\tlabel\na\t1.5\nb\t-2e1\n", task="regression")
    assert [example.target for example in data.examples] == [1.5, -20.0]
    assert data.labels is None


def test_causal_lm_keeps_blanks(tmp_path: Path) -> None:
    """Prompt and completion keep their blanks, since these are learned, too."""
    content = '{"q": "The capital is", "a": " Paris"}\n'
    data = _load(tmp_path, content, "d.jsonl", task="causal-lm", text_column="q", pair_column="a")
    assert data == Dataset((Example("The capital is", " Paris"),))
    assert _load(tmp_path, "one\n\ntwo\n", "d.txt", task="causal-lm").examples[1] == Example("two")


def test_limit_keeps_the_classes_of_the_whole_file(tmp_path: Path) -> None:
    """A limit cuts the examples, not the set of classes."""
    content = "text\tlabel\na\t0\nb\t0\nc\t1\n"
    data = _load(tmp_path, content, limit=2)
    assert (len(data.examples), data.labels) == (2, ("0", "1"))
    assert len(_load(tmp_path, content, limit=9).examples) == 3


def test_limit_stops_reading(tmp_path: Path) -> None:
    """With known labels nothing beyond the limit is read."""
    content = "text\tlabel\na\t0\nbroken\n"
    assert len(_load(tmp_path, content, limit=1, labels=["0", "1"]).examples) == 1


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text\tgold\na\t1\n", {}, r"no column 'label'; its columns are text, gold"),
        ("words\tlabel\na\t1\n", {}, r"no column 'sentence' or 'text'; its columns are words, label"),
        ("text\tlabel\na\t1\n", {"pair_column": "q"}, "no column 'q'"),
        ("text\tlabel\na\tyes\n", {"labels": ["0", "1"]}, r"line 2: the label 'yes' is none of '0', '1'"),
        ("text\tlabel\na\t1\nb\t\n", {}, r"line 3: no label in the column 'label'"),
        ("text\tlabel\na\t1\n \t0\n", {}, r"line 3: no text in the column 'text'"),
        ("text\tlabel\na\t1\nb\t1\n", {}, r"only the label '1' in the column 'label'"),
        ("text\tlabel\na\t1,5\n", {"task": "regression"}, r"line 2: the target '1,5' .* no finite number"),
        ("text\tlabel\na\tnan\n", {"task": "regression"}, r"line 2: the target 'nan'"),
        ("text\tlabel\na\t1e39\n", {"task": "regression"}, r"line 2: the target '1e39' .* 32-bit float"),
        ("text\tlabel\na\t-1e39\n", {"task": "regression"}, r"line 2: the target '-1e39'"),
        ("text\tlabel\na\t" + "9" * 5000 + "\n", {"task": "regression"}, r"line 2: the target '999.*\.\.\.'"),
        ("a fine film indeed\t1\nb\t0\n", {}, r"no column 'sentence' or 'text'; .* add --no-header"),
        ("text\t1\na\t0\n", {}, r"no column 'label'; its columns are text, 1; .* add --no-header"),
        ("text\tlabel\na\t1\n", {"text_column": "9" * 5000}, "no column '999"),
    ],
)
def test_bad_data(tmp_path: Path, content: str, options: dict[str, Any], message: str) -> None:
    """Each kind of bad data is refused with its place, what was seen and what to do."""
    with pytest.raises(DataError, match=message) as caught:
        _load(tmp_path, content, **options)
    assert ";" in str(caught.value)


def test_bad_json_cells(tmp_path: Path) -> None:
    """A text that is a number and a null label are refused."""
    with pytest.raises(DataError, match=r"line 1: a int in the column 'text', expected a text"):
        _load(tmp_path, '{"text": 5, "label": 1}\n', "d.jsonl", labels=["0", "1"])
    with pytest.raises(DataError, match="line 1: no label"):
        _load(tmp_path, '{"text": "a", "label": null}\n', "d.jsonl")
    for label in ("[1]", "{}"):
        with pytest.raises(DataError, match=r"line 1: a (list|dict) in the column 'label', expected a label"):
            _load(tmp_path, f'{{"text": "a", "label": {label}}}\n', "d.jsonl")


def test_half_of_a_surrogate_pair(tmp_path: Path) -> None:
    """What UTF-8 cannot hold is refused in texts, second sentences and labels, with its line."""
    good = {"text": "a\U0001f600", "pair": "b", "label": "yes"}
    for column in good:
        rows = [good, good | {"label": "no"}, good | {column: "c\ud800"}]
        content = "\n".join(map(json.dumps, rows)) + "\n"
        with pytest.raises(
            DataError, match=rf"line 3: the column '{column}' is not valid Unicode \(character 2"
        ):
            _load(tmp_path, content, "d.jsonl", pair_column="pair")


def test_the_largest_target(tmp_path: Path) -> None:
    """The largest 32-bit float is a target."""
    data = _load(tmp_path, "text\tlabel\na\t3.4028234e38\n", task="regression")
    assert data.examples[0].target == pytest.approx(LARGEST_TARGET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "translation"}, "task is 'translation'"),
        ({"limit": 0}, "limit is 0; expected at least 1"),
        ({"labels": ["a"]}, "labels is"),
        ({"labels": ["a", "a"]}, "labels is"),
        ({"labels": ["a", ""]}, "labels is"),
        ({"labels": ["a", "b"], "task": "regression"}, "None for regression"),
        ({"label_column": "a", "task": "causal-lm"}, "None for causal-lm"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Options out of range or of another task are refused before the file is read."""
    with pytest.raises(ConfigError, match=message):
        load_examples(tmp_path / "none.tsv", **({"task": "classification"} | options))


def test_many_labels_are_shortened(tmp_path: Path) -> None:
    """An error names some of many labels only."""
    with pytest.raises(DataError, match="'19' and 80 more"):
        _load(tmp_path, "text\tlabel\na\tx\n", labels=[str(number) for number in range(100)])


def test_split() -> None:
    """A split is a partition, depends on the seed alone and keeps the order."""
    data = Dataset(tuple(Example(str(number)) for number in range(20)), ("a", "b"))
    rest, part = data.split(0.25, seed=3)
    assert (len(rest.examples), len(part.examples), part.labels) == (15, 5, ("a", "b"))
    assert set(rest.examples) | set(part.examples) == set(data.examples)
    assert [int(example.text) for example in rest.examples] == sorted(int(e.text) for e in rest.examples)
    assert data.split(0.25, seed=3) == (rest, part)
    assert data.split(0.25, seed=4) != (rest, part)
    for fraction in (0.0, 1.0, float("nan"), 0.001):
        with pytest.raises(ConfigError, match="heldout"):
            data.split(fraction, seed=0)


def test_needs_no_torch() -> None:
    """Reading examples does not import torch."""
    code = "import sys, mobillm.device.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
