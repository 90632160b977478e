"""Data files as tables: TSV, CSV, JSON lines, plain text, or a data set of the Hugging Face hub."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

from ..errors import DataError

__all__ = ["TEXT_COLUMN", "Row", "Table", "read_table", "shorten"]

TEXT_COLUMN = "text"  # the only column of a plain text file
_FORMATS = "a .tsv, .csv or .jsonl file, or plain text under any other name"
_FIELD_LIMIT = 2**31 - 1  # characters of a CSV field: the most that every platform takes
_HEAD = 1 << 16  # bytes that are looked at for line ends
_SHOWN = 20  # columns named in an error
_SHOWN_LENGTH = 40  # characters of what an error repeats
_WORDS = 4  # in a header, a field of so many words is suspected to be data
_HUB_FORM = "NAME, NAME:CONFIG or NAME:CONFIG:SPLIT"

Row = tuple[int, dict[str, Any]]  # line number from 1, and the cells by column


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """Rows with named columns, read as they are asked for.

    Attributes:
        source: path or name, for errors.
        columns: names; a column without a name of its own goes by its number from 0.
        rows: the rows, once.
        advice: what else to say where a column is missing; empty if there is nothing.

    """

    source: str
    columns: tuple[str, ...]
    rows: Iterator[Row]
    advice: str = ""

    def column(self, wanted: str) -> str:
        """Return the name of a column that is given by its name or its number from 0.

        Raises:
            DataError: there is no such column.

        """
        if wanted in self.columns:
            return wanted
        number = wanted.lstrip("0") or wanted[:1]
        if number.isascii() and number.isdigit() and len(number) < 10 and int(number) < len(self.columns):
            return self.columns[int(number)]
        raise DataError(
            f"{self.source} has no column {shorten(wanted)!r}; its columns are {self.listing()}; "
            f"give one of them, or its number from 0{self.advice}"
        )

    def listing(self) -> str:
        """Return the names of the columns for an error."""
        more = f" and {len(self.columns) - _SHOWN} more" if len(self.columns) > _SHOWN else ""
        return ", ".join(map(shorten, self.columns[:_SHOWN])) + more


def shorten(text: str) -> str:
    """Return a text as an error repeats it: its beginning, if it is long."""
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 3]}..."


def read_table(source: str | Path, *, header: bool = True) -> Table:
    """Open a data file, or a data set of the Hugging Face hub.

    The name's ending says how the file is read, always as UTF-8 with or without a byte order mark:
    ``.tsv`` has quote characters as plain text; ``.csv`` follows RFC 4180; ``.jsonl`` has one object
    per line, and the columns are the keys of the first one. Anything else is plain text with one
    column, ``text``: its paragraphs if it has blank lines between them, else its lines. LF and CRLF
    end a line; CR does in a CSV file, and in a file that has no LF.

    Args:
        source: path of a file; a name that is no file is one of the hub, written NAME, NAME:CONFIG or
            NAME:CONFIG:SPLIT, where the split is ``train`` unless given.
        header: whether the first line of a TSV or CSV file names the columns.

    Raises:
        DataError: the file is missing, empty or malformed; the hub cannot be used. Rows that come
            later raise it when they are read.

    """
    try:
        path = Path(source).expanduser()
    except RuntimeError as error:  # ~somebody, who has no home here
        raise DataError(f"there is no file {str(source)!r}: {error}; give the whole path") from error
    if not (path.is_file() or path.is_fifo()):
        if path.is_dir():
            raise DataError(f"{source} is a directory; give {_FORMATS}")
        if str(path) == os.devnull:
            raise _empty(str(source))
        if path.exists():
            raise DataError(f"{source} is a device, not a file; give {_FORMATS}")
        return _read_hub(str(source))
    name, ending = str(source), path.suffix.lower()
    if ending in (".tsv", ".csv"):
        records = _tsv_records(path, name) if ending == ".tsv" else _csv_records(path, name)
        return _delimited(name, records, header)
    if ending in (".jsonl", ".ndjson", ".json"):
        return _json_lines(path, name)
    return _plain_text(path, name)


def _lines(file: TextIO, name: str) -> Iterator[str]:
    """Yield lines without their ends; CR alone ends one only in a file that has no LF."""
    try:
        for line in file:
            yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error.reason}); convert it to UTF-8") from error


def _open(path: Path, name: str, newline: str) -> TextIO:
    try:
        file = path.open("rb", buffering=_HEAD)
        head = cast(io.BufferedReader, file).peek()
    except OSError as error:
        raise DataError(
            f"cannot read {name}: {error.strerror}; check the path and its permissions"
        ) from error
    if newline == "\n" and b"\r" in head and b"\n" not in head:
        newline = "\r"
    return io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)


def _tsv_records(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    with _open(path, name, "\n") as file:
        for number, line in enumerate(_lines(file, name), 1):
            if line.strip():
                yield number, line.split("\t")


def _csv_records(path: Path, name: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(_FIELD_LIMIT)
    with _open(path, name, "") as file:
        reader = csv.reader(file, strict=True)
        first = 1
        try:
            for fields in reader:
                if fields:
                    yield first, fields
                first = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{name}, line {first}: not valid CSV ({error}); quote the field, double the quotes "
                "inside it, or use a .jsonl file"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is not UTF-8 ({error.reason}); convert it to UTF-8") from error


def _delimited(name: str, records: Iterator[tuple[int, list[str]]], header: bool) -> Table:
    first = next(records, None)
    if first is None:
        raise _empty(name)
    number, fields = first
    if header:
        # The first of several columns with one name has it; the others go by their numbers.
        columns = tuple(
            str(index) if not field.strip() or field in fields[:index] else field
            for index, field in enumerate(fields)
        )
    else:
        columns = tuple(map(str, range(len(fields))))
        records = itertools.chain([(number, fields)], records)

    def rows() -> Iterator[Row]:
        for line, cells in records:
            if len(cells) != len(columns):
                raise DataError(
                    f"{name}, line {line}: {len(cells)} columns, but {len(columns)} in line {number}; "
                    "correct the line or leave it out"
                )
            yield line, dict(zip(columns, cells, strict=True))

    headless = header and any(map(_looks_like_data, fields))
    advice = "; if the first line is data and no header, add --no-header (header=False)" if headless else ""
    return Table(name, columns, _not_empty(rows(), name), advice)


def _looks_like_data(field: str) -> bool:
    """Whether a field is more likely data than a column's name: a number, or a sentence."""
    text = field.strip()
    try:
        float(text)
    except ValueError:
        return len(text.split()) >= _WORDS or text.endswith((".", "!"))
    return True


def _json_lines(path: Path, name: str) -> Table:
    def rows() -> Iterator[Row]:
        with _open(path, name, "\n") as file:
            for line, text in enumerate(_lines(file, name), 1):
                if text.strip():
                    yield line, _json_object(text, name, line)

    found = _not_empty(rows(), name)
    first = next(found)
    return Table(name, tuple(first[1]), itertools.chain([first], found))


def _json_object(text: str, name: str, line: int) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{name}, line {line}: nested too deeply; write one flat object per line") from error
    except ValueError as error:
        raise DataError(
            f"{name}, line {line}: not valid JSON ({error}); write one object per line"
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            f"{name}, line {line}: a JSON {type(value).__name__}, not an object; write one object per line"
        )
    if not value:
        raise DataError(f"{name}, line {line}: an object without keys; give it a text, or leave the line out")
    return value


def _plain_text(path: Path, name: str) -> Table:
    with _open(path, name, "\n") as file:
        lines = [(number, line) for number, line in enumerate(_lines(file, name), 1)]
    while lines and not lines[0][1].strip():
        lines.pop(0)
    while lines and not lines[-1][1].strip():
        lines.pop()
    if not lines:
        raise _empty(name)
    if all(line.strip() for _, line in lines):
        samples: Iterable[tuple[int, str]] = lines
    else:
        blocks = itertools.groupby(lines, key=lambda entry: bool(entry[1].strip()))
        paragraphs = [list(block) for filled, block in blocks if filled]
        samples = [(block[0][0], "\n".join(line for _, line in block)) for block in paragraphs]
    return Table(name, (TEXT_COLUMN,), iter([(line, {TEXT_COLUMN: text}) for line, text in samples]))


def _not_empty(rows: Iterator[Row], name: str) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise _empty(name)
    return itertools.chain([first], rows)


def _empty(name: str) -> DataError:
    return DataError(f"{name} is empty: it holds no samples; give a file with at least one")


def _read_hub(source: str) -> Table:
    name, config, split = [*source.split(":"), "", ""][:3]
    local = Path(name).suffix.lower() in (".tsv", ".csv", ".jsonl", ".ndjson", ".json", ".txt")
    if local or name.startswith((".", "/", "~")) or name.count("/") > 1 or not name or source.count(":") > 2:
        raise DataError(f"there is no file {source!r}; give {_FORMATS}")
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"there is no file {source!r}, and reading it from the Hugging Face hub needs the package "
            f"datasets: run 'pip install datasets', or give {_FORMATS}"
        ) from error
    try:
        found = library.load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library documents no base class of its many errors
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"cannot load the data set {source!r} from the Hugging Face hub: {reason}; check the name "
            f"({_HUB_FORM}) and the network, or give {_FORMATS}"
        ) from error
    names = {
        column: list(feature.names)
        for column, feature in found.features.items()
        if getattr(feature, "names", None)
    }

    def rows() -> Iterator[Row]:
        for number, cells in enumerate(found, 1):
            yield number, {column: _class_name(cell, names.get(column)) for column, cell in cells.items()}

    return Table(source, tuple(found.column_names), _not_empty(rows(), source))


def _class_name(cell: Any, names: list[str] | None) -> Any:
    """Turn a class number into its name; -1 stands for a label that is withheld."""
    if names is None or type(cell) is not int:
        return cell
    return names[cell] if 0 <= cell < len(names) else None
