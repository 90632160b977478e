"""Training examples from data files; needs no torch and never leaves the device."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..spec import TASKS
from .table import TEXT_COLUMN, Row, Table, read_table, shorten

__all__ = ["LABEL_COLUMN", "LARGEST_TARGET", "TEXT_COLUMNS", "Dataset", "Example", "load_examples"]

TEXT_COLUMNS = ("sentence", TEXT_COLUMN)  # the first that exists, where none is named
LABEL_COLUMN = "label"
LARGEST_TARGET = (2 - 2**-23) * 2.0**127  # of a regression: the largest 32-bit float
_SHOWN = 20  # labels named in an error


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
    """One sample.

    Attributes:
        text: the text; for causal-lm the prompt when there is a ``pair``.
        pair: the second sentence, or for causal-lm the completion, whose tokens alone are targets then.
        target: a class number, a value for regression, None for causal-lm.

    """

    text: str
    pair: str | None = None
    target: int | float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """Examples and the names of their classes.

    Attributes:
        examples: in the order of the file.
        labels: name of each class, in the order of the class numbers; None without classes.

    """

    examples: tuple[Example, ...]
    labels: tuple[str, ...] | None = None

    def split(self, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Set a random part aside.

        Args:
            fraction: share of the second part, above 0 and below 1; it is rounded to whole examples.
            seed: of the choice.

        Returns:
            the rest and the part set aside, both in the order of the file.

        Raises:
            ConfigError: the fraction is out of range, or leaves either part empty.

        """
        if not 0.0 < fraction < 1.0:
            raise ConfigError("heldout", fraction, "a number above 0 and below 1")
        count = len(self.examples)
        aside = round(count * fraction)
        if not 0 < aside < count:
            raise ConfigError(
                "heldout", fraction, f"a part of the {count} examples that leaves at least one on each side"
            )
        chosen = set(random.Random(seed).sample(range(count), aside))
        rest = tuple(example for index, example in enumerate(self.examples) if index not in chosen)
        part = tuple(self.examples[index] for index in sorted(chosen))
        return Dataset(rest, self.labels), Dataset(part, self.labels)


def load_examples(
    source: str | Path,
    *,
    task: str,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    header: bool = True,
) -> Dataset:
    """Read examples from a file or a data set of the Hugging Face hub.

    Columns are given by name or by number from 0. Blanks around a text are dropped, but not for
    causal-lm, where they are part of what is learned. The kinds of files are those of
    :func:`~mobillm.device.table.read_table`.

    Args:
        source: path or hub name.
        task: ``classification``, ``regression`` or ``causal-lm``.
        text_column: the text; None takes ``sentence`` or ``text``.
        pair_column: the second sentence, or the completion for causal-lm; None when there is none.
        label_column: class name or value; None takes ``label``. Not for causal-lm.
        labels: names of the classes in the order of their numbers; None takes all that occur in the
            source, also beyond ``limit``: sorted, integers as numbers.
        limit: read at most so many examples; None reads all.
        header: whether the first line of a TSV or CSV file names the columns.

    Raises:
        ConfigError: an option is out of range or does not go with the task.
        DataError: the source is missing, empty or malformed, lacks a column or a value, or has a label
            outside ``labels``.

    """
    _check_options(task, label_column, labels, limit)
    table = read_table(source, header=header)
    text = _text_column(table, text_column)
    pair = None if pair_column is None else table.column(pair_column)
    label = None if task == "causal-lm" else table.column(label_column or LABEL_COLUMN)
    rows: Iterable[Row] = table.rows
    names: tuple[str, ...] | None = None
    if task == "classification":
        assert label is not None
        if labels is None:
            rows = list(rows)
            names = _discover(table.source, label, rows)
        else:
            names = tuple(labels)
    reader = _Reader(table.source, text, pair, label, names, strip=task != "causal-lm")
    return Dataset(tuple(map(reader.example, itertools.islice(rows, limit))), names)


def _check_options(
    task: str, label_column: str | None, labels: Sequence[str] | None, limit: int | None
) -> None:
    if task not in TASKS:
        raise ConfigError("task", task, f"one of {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise ConfigError("limit", limit, "at least 1, or None")
    if task == "causal-lm" and label_column is not None:
        raise ConfigError("label_column", label_column, "None for causal-lm; a completion is the pair column")
    if labels is None:
        return
    if task != "classification":
        raise ConfigError("labels", list(labels), f"None for {task}")
    if len(labels) < 2 or len(set(labels)) != len(labels) or not all(labels):
        raise ConfigError("labels", list(labels), "at least 2 names, each once, none empty")


def _text_column(table: Table, wanted: str | None) -> str:
    if wanted is not None:
        return table.column(wanted)
    for name in TEXT_COLUMNS:
        if name in table.columns:
            return name
    raise DataError(
        f"{table.source} has no column {' or '.join(map(repr, TEXT_COLUMNS))}; its columns are "
        f"{table.listing()}; say which one holds the text (--text-column, and --pair-column for a second "
        f"text or a completion), by its name or its number from 0{table.advice}"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
    """Makes an example of a row."""

    source: str
    text: str
    pair: str | None
    label: str | None
    names: tuple[str, ...] | None
    strip: bool

    def example(self, row: Row) -> Example:
        text = self._text(row, self.text)
        pair = None if self.pair is None else self._text(row, self.pair)
        if self.label is None:
            return Example(text, pair)
        name = _label(self.source, self.label, row)
        return Example(
            text, pair, self._value(row[0], name) if self.names is None else self._class(row[0], name)
        )

    def _text(self, row: Row, column: str) -> str:
        line, cells = row
        value = cells.get(column)
        if isinstance(value, str) and value.strip():
            _check_unicode(self.source, line, column, value)
            return value.strip() if self.strip else value
        seen = "no text" if value is None or isinstance(value, str) else f"a {type(value).__name__}"
        raise DataError(
            f"{self.source}, line {line}: {seen} in the column {column!r}, expected a text; "
            "correct the line or leave it out"
        )

    def _class(self, line: int, name: str) -> int:
        assert self.names is not None
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(
                f"{self.source}, line {line}: the label {shorten(name)!r} is none of {_shown(self.names)}; "
                "correct the line, add the label to the list, or name another label column"
            ) from None

    def _value(self, line: int, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{self.source}, line {line}: the target {shorten(text)!r} in the column {self.label!r} is "
                "no finite number; correct the line, or use the task classification"
            )
        if abs(value) > LARGEST_TARGET:
            raise DataError(
                f"{self.source}, line {line}: the target {shorten(text)!r} in the column {self.label!r} does "
                "not fit a 32-bit float, at most 3.4e38; scale the targets, or leave the line out"
            )
        return value


def _label(source: str, column: str, row: Row) -> str:
    line, cells = row
    value: Any = cells.get(column)
    if isinstance(value, list | dict):
        raise DataError(
            f"{source}, line {line}: a {type(value).__name__} in the column {column!r}, expected a label; "
            "write a text or a number"
        )
    name = value.strip() if isinstance(value, str) else json.dumps(value, default=str)
    if value is None or not name:
        raise DataError(
            f"{source}, line {line}: no label in the column {column!r}; correct the line or leave it out"
        )
    _check_unicode(source, line, column, name)
    return name


def _check_unicode(source: str, line: int, column: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{source}, line {line}: the column {column!r} is not valid Unicode (character {error.start + 1} "
            "is half of a surrogate pair); correct the line or leave it out"
        ) from None


def _discover(source: str, column: str, rows: Iterable[Row]) -> tuple[str, ...]:
    names = {_label(source, column, row) for row in rows}
    if len(names) < 2:
        raise DataError(
            f"{source} has only the label {shorten(names.pop())!r} in the column {column!r}, but a "
            "classification needs at least 2; name the label column, or list all labels"
        )
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(repr(shorten(name)) for name in names[:_SHOWN]) + more
