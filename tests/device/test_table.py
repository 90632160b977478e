"""Tests of data files as tables."""

from __future__ import annotations

import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from mobillm.device.table import Row, read_table
from mobillm.errors import DataError


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _rows(path: Path, **options: bool) -> list[Row]:
    return list(read_table(path, **options).rows)


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    """Quotes are text, a byte order mark is dropped, LF and CRLF end a line and nothing else does."""
    content = '\ufefftext\tlabel\r\n"half a quote\t1\r\n\r\na\rb\u2028c\t0'
    table = read_table(_write(tmp_path, "d.tsv", content))
    assert table.columns == ("text", "label")
    assert list(table.rows) == [
        (2, {"text": '"half a quote', "label": "1"}),
        (4, {"text": "a\rb\u2028c", "label": "0"}),
    ]


def test_csv_fields_may_hold_line_breaks(tmp_path: Path) -> None:
    """A quoted field keeps its line break, and later rows still have the right line number."""
    path = _write(tmp_path, "d.csv", 'mr,ref\r\n"a\nb","say ""hi"", you"\r\nc,d\r\n')
    assert _rows(path) == [(2, {"mr": "a\nb", "ref": 'say "hi", you'}), (4, {"mr": "c", "ref": "d"})]


def test_without_header_columns_are_numbers(tmp_path: Path) -> None:
    """The first line is data and the columns are named by their numbers."""
    path = _write(tmp_path, "d.tsv", "gj04\t1\t\tA text.\n")
    assert _rows(path, header=False) == [(1, {"0": "gj04", "1": "1", "2": "", "3": "A text."})]


def test_columns_by_name_and_number(tmp_path: Path) -> None:
    """A column is found by its name or its number; of equal names the later ones have only numbers."""
    table = read_table(_write(tmp_path, "d.tsv", "id\ttext\tid\t\n1\t2\t3\t4\n"))
    assert [table.column(name) for name in ("id", "0", "2", "3")] == ["id", "id", "2", "3"]
    assert next(table.rows)[1] == {"id": "1", "text": "2", "2": "3", "3": "4"}
    for unknown in ("label", "4", "-1"):
        with pytest.raises(DataError, match=r"no column .*; its columns are id, text, 2, 3;"):
            table.column(unknown)


def test_json_lines(tmp_path: Path) -> None:
    """Each line is an object; its values keep their types."""
    path = _write(tmp_path, "d.jsonl", '{"text": "é", "label": 3}\n\n{"text": null, "more": [1]}\n')
    table = read_table(path)
    assert table.columns == ("text", "label")
    assert list(table.rows) == [(1, {"text": "é", "label": 3}), (3, {"text": None, "more": [1]})]


@pytest.mark.parametrize(
    ("content", "samples"),
    [
        ("one\ntwo\n", [(1, "one"), (2, "two")]),
        ("\n a \nb\n\n \nc\n\n", [(2, " a \nb"), (6, "c")]),
    ],
)
def test_plain_text(tmp_path: Path, content: str, samples: list[tuple[int, str]]) -> None:
    """Text is cut at blank lines if there are any between others, else at each line's end."""
    assert _rows(_write(tmp_path, "d.txt", content)) == [(line, {"text": text}) for line, text in samples]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.tsv", "", "holds no samples"),
        ("d.csv", "text,label\n", "holds no samples"),
        ("d.jsonl", "\n\n", "holds no samples"),
        ("d.txt", " \n", "holds no samples"),
        ("d.tsv", "a\tb\n1\t2\n3\n", "line 3: 1 columns, but 2 in line 1"),
        ("d.csv", 'a,b\n1,"2\n3,4\n', "line 2: not valid CSV"),
        ("d.jsonl", '{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        ("d.jsonl", "{}\n", "line 1: an object without keys; give it a text"),
        ("d.jsonl", '{"a": 1}\n' + '{"a":' * 200_000, "line 2: nested too deeply"),
        ("d.jsonl", "[" * 200_000, "line 1: nested too deeply"),
        ("d.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: not valid JSON"),
        ("d.txt", "", "is empty"),
        ("d.jsonl", '[{"a": 1}]', "line 1: a JSON list, not an object"),
        ("d.tsv", b"a\tb\n\xff\t1\n", "is not UTF-8"),
        ("d.csv", b"a,b\n\xff,1\n", "is not UTF-8"),
        ("d.txt", b"\xff", "is not UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    """Empty and malformed files are refused with the place and the reason."""
    with pytest.raises(DataError, match=message) as caught:
        _rows(_write(tmp_path, name, content))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["d.tsv", "d.csv", "d.jsonl", "d.txt"])
def test_carriage_returns_alone(tmp_path: Path, name: str) -> None:
    """In a file without any LF, CR ends a line."""
    lines = {"d.jsonl": ['{"text": "a"}', '{"text": "b"}'], "d.txt": ["a", "b"]}.get(name, ["text", "a", "b"])
    path = _write(tmp_path, name, "\r".join(lines) + "\r")
    assert [cells for _, cells in _rows(path)] == [{"text": "a"}, {"text": "b"}]


def test_large_csv_fields(tmp_path: Path) -> None:
    """A field may be longer than the library's own limit."""
    (row,) = _rows(_write(tmp_path, "d.csv", f"text,label\n{'a' * 200_000},1\n"))
    assert len(row[1]["text"]) == 200_000


def test_missing_header(tmp_path: Path) -> None:
    """Where a column is missing and the first line looks like data, the option for that is named."""
    for first in ("gj04\t1\t\tOur friends will not buy it.", "a film of some charm\tyes", "a\t0.5"):
        table = read_table(_write(tmp_path, "d.tsv", f"{first}\n{first}\n"))
        with pytest.raises(
            DataError, match=r"no column 'label'.*; if the first line is data.* add --no-header"
        ):
            table.column("label")
    table = read_table(_write(tmp_path, "d.tsv", "words\tgold label\na\t1\n"))
    with pytest.raises(DataError, match="no column 'label'") as caught:
        table.column("label")
    assert "--no-header" not in str(caught.value)


def test_long_names_are_shortened(tmp_path: Path) -> None:
    """Neither a number of thousands of digits nor a wide table fills the screen."""
    columns = ["x" * 500, *map(str, range(1000))]
    table = read_table(_write(tmp_path, "d.tsv", "\t".join(columns) + "\n" + "a\t" * 1000 + "\n"))
    for wanted in ("9" * 5000, "1001", "y" * 5000):
        with pytest.raises(DataError, match=r"no column .* and 981 more") as caught:
            table.column(wanted)
        assert len(str(caught.value)) < 600
    assert table.column("0" * 5000) == columns[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_pipes_and_devices(tmp_path: Path) -> None:
    """A pipe is read like a file; the null device is empty; other devices are refused."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("one\ntwo\n",))
    writer.start()
    assert [cells["text"] for _, cells in _rows(pipe)] == ["one", "two"]
    writer.join()
    with pytest.raises(DataError, match="/dev/null is empty"):
        read_table(os.devnull)
    with pytest.raises(DataError, match="/dev/zero is a device, not a file"):
        read_table("/dev/zero")


def test_missing_files(tmp_path: Path) -> None:
    """What looks like a path is reported as a missing file, not looked for on the hub."""
    for source in (tmp_path / "none.tsv", "train.tsv", "./data", "a:b:c:d", "~no-such-user-here/d.tsv"):
        with pytest.raises(DataError, match="there is no file"):
            read_table(source)
    with pytest.raises(DataError, match="is a directory"):
        read_table(tmp_path)


def test_hub_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional library the error says how to get it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        read_table("owner/name")


class _HubData(list[dict[str, Any]]):
    column_names = ("text", "label")
    features = types.MappingProxyType({"text": object(), "label": types.SimpleNamespace(names=["no", "yes"])})


def test_hub_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class numbers become names, -1 becomes no label, and failures are one sentence."""
    asked: list[tuple[str, str | None, str]] = []

    def load(name: str, config: str | None, *, split: str) -> _HubData:
        asked.append((name, config, split))
        if name == "gone":
            raise RuntimeError("no network\nat all")
        return _HubData([{"text": "a", "label": 1}, {"text": "b", "label": -1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))
    rows = list(read_table("glue:sst2:validation").rows)
    assert rows == [(1, {"text": "a", "label": "yes"}), (2, {"text": "b", "label": None})]
    with pytest.raises(DataError, match=r"cannot load .*hub: no network; check the name"):
        read_table("gone")
    assert asked == [("glue", "sst2", "validation"), ("gone", None, "train")]
