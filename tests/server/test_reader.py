"""Reading a log that another process writes."""

from __future__ import annotations

import pathlib

import pytest

from mobillm.errors import StorageError
from mobillm.server.log import ActivationLog
from mobillm.server.reader import LogReader
from tests.sessions import packed, spec


def test_what_is_appended_later_is_read(tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """The file is mapped again when it has grown; nothing of it is kept open in between."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1)])
    reader = LogReader(log.path, log.entries)
    first = reader.read(reader.entries[0])
    log.append([packed(spec(), 2), packed(spec(), 3)])
    for seq, entry in enumerate(log.entries, 1):
        found, sent = reader.read(entry), packed(spec(), seq)
        assert found.seq == seq
        assert {n: bytes(p) for n, p in found.payloads.items()} == {
            n: bytes(p) for n, p in sent.payloads.items()
        }
    assert bytes(first.payloads[0]) == bytes(packed(spec(), 1).payloads[0])
    reader.close()
    log.close()


def test_a_file_that_is_behind(tmp_path: pathlib.Path) -> None:
    """Storage that does not show what was written is told from damage."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1), packed(spec(), 2)])
    (tmp_path / "other").write_bytes((tmp_path / "log").read_bytes()[: log.entries[0].end])
    reader = LogReader(tmp_path / "other", log.entries)
    assert reader.read(log.entries[0]).seq == 1
    with pytest.raises(StorageError, match=f"bytes, but {log.size} were written: server and workers need"):
        reader.read(log.entries[1])
    with pytest.raises(StorageError, match="none cannot be read"):
        LogReader(tmp_path / "none").read(log.entries[0])
    log.close()


def test_reading_cuts_nothing_off(tmp_path: pathlib.Path) -> None:
    """What looks torn may be a record that is being written now."""
    log = ActivationLog(tmp_path / "log")
    log.append([packed(spec(), 1)])
    with open(log.path, "ab") as file:
        file.write(b"MLog, more to come")
    before = log.path.read_bytes()
    assert LogReader(log.path, log.entries).read(log.entries[0]).seq == 1
    assert log.path.read_bytes() == before
    log.close()
