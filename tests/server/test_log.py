"""The activation log: append, read, recover after every kind of damage."""

from __future__ import annotations

import os
import pathlib
import resource

import pytest

from mobillm.errors import StorageError
from mobillm.server.batch import Batch
from mobillm.server.log import ActivationLog
from tests.sessions import packed, spec

SPEC = spec()


@pytest.fixture
def path(tmp_path: pathlib.Path, no_fd_leak: None) -> pathlib.Path:
    """Return where the log is; all logs must be closed at the end."""
    return tmp_path / "activations.log"


def write(path: pathlib.Path, groups: list[list[int]]) -> list[int]:
    """Write batches in groups; return the offset of each record, and of the end."""
    log = ActivationLog(path)
    for group in groups:
        log.append([packed(SPEC, seq, heldout=seq == 2) for seq in group])
    offsets = [entry.offset for entry in log.entries] + [log.size]
    log.close()
    return offsets


def same(left: Batch, right: Batch) -> bool:
    """Tell whether two batches hold the same."""
    return (left.seq, left.samples, left.heldout, dict(left.headers)) == (
        right.seq,
        right.samples,
        right.heldout,
        dict(right.headers),
    ) and all(bytes(left.payloads[n]) == bytes(right.payloads[n]) for n in left.headers)


def test_append_read_and_open_again(path: pathlib.Path) -> None:
    """What was appended is read, before and after opening again."""
    log = ActivationLog(path)
    assert (log.size, log.last, log.entries) == (0, 0, [])
    log.append([packed(SPEC, 1)])
    first = log.read(log.entries[0])
    log.append([packed(SPEC, 2, heldout=True), packed(SPEC, 3)])
    assert log.last == 3
    assert same(log.read(log.entries[2]), packed(SPEC, 3))
    log.close()
    log.close()
    assert same(first, packed(SPEC, 1))  # it outlives the file
    again = ActivationLog(path)
    assert [entry.seq for entry in again.entries] == [1, 2, 3]
    assert [entry.heldout for entry in again.entries] == [False, True, False]
    assert again.entries[2].lengths == tuple(packed(SPEC, 3).lengths())
    assert all(same(again.read(e), packed(SPEC, e.seq, heldout=e.heldout)) for e in again.entries)
    assert path.stat().st_mode & 0o777 == 0o600
    again.close()


def test_torn_at_every_byte(path: pathlib.Path) -> None:
    """Whatever a crash left of the last record is cut off, and the log goes on."""
    offsets = write(path, [[1], [2], [3]])
    whole = path.read_bytes()
    for size in range(offsets[2], offsets[3]):
        path.write_bytes(whole[:size])
        log = ActivationLog(path)
        assert [entry.seq for entry in log.entries] == [1, 2]
        assert path.stat().st_size == offsets[2]
        if size % 97 == 0:
            log.append([packed(SPEC, 3)])
            assert same(log.read(log.entries[2]), packed(SPEC, 3))
        log.close()


def test_damage_in_the_last_group_is_torn(path: pathlib.Path) -> None:
    """A crash may lose the first record of a group and keep the second: neither was durable."""
    offsets = write(path, [[1], [2, 3]])
    whole = bytearray(path.read_bytes())
    for position in range(offsets[1], offsets[2], 7):
        damaged = whole.copy()
        damaged[position] ^= 0x40
        path.write_bytes(damaged)
        log = ActivationLog(path)
        assert log.last == 1
        log.close()
    path.write_bytes(whole[: offsets[1]] + bytes(len(whole) - offsets[1]))  # blocks that were never written
    log = ActivationLog(path)
    assert log.last == 1
    log.close()


def test_damage_in_the_middle_names_the_byte(path: pathlib.Path) -> None:
    """Damage before durable records is never cut off, wherever it is."""
    offsets = write(path, [[1], [2], [3]])
    whole = path.read_bytes()
    for position in range(offsets[1], offsets[2]):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match=f"batch 2, at byte {offsets[1]}, is damaged"):
            ActivationLog(path)
        assert path.read_bytes() == bytes(damaged)


def test_damage_while_open(path: pathlib.Path) -> None:
    """The first read of a batch finds what the disk has lost since."""
    log = ActivationLog(path)
    log.append([packed(SPEC, 1)])
    with open(path, "r+b") as file:
        file.seek(log.size - 1)
        file.write(b"\xff")
    with pytest.raises(StorageError, match="batch 1 at byte 0 is damaged"):
        log.read(log.entries[0])
    log.close()


def test_disk_full(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves the log as it was; later it goes on."""
    log = ActivationLog(path)
    log.append([packed(SPEC, 1)])
    before = path.read_bytes()[: log.size]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 200, limit[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            log.append([packed(SPEC, 2), packed(SPEC, 3)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    assert (log.last, log.size) == (1, len(before))

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            log.append([packed(SPEC, 2)])
    assert path.read_bytes() == before
    log.append([packed(SPEC, 2)])
    assert same(log.read(log.entries[1]), packed(SPEC, 2))
    log.close()


def test_room_is_allocated_ahead_and_given_back(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the log is open the file is larger than its records; neither closing nor a crash leaves that."""
    log = ActivationLog(path)
    log.append([packed(SPEC, 1)])
    one = log.size
    assert path.stat().st_size == 2 * one  # as much again
    log.append([packed(SPEC, 1)])
    assert path.stat().st_size == 2 * one  # no new room before it is needed
    monkeypatch.setattr("mobillm.server.log.ROOM", 10)
    log.append([packed(SPEC, 1)])
    assert path.stat().st_size == 3 * one + 10
    crashed = path.with_name("crashed")
    crashed.write_bytes(path.read_bytes())
    log.close()
    assert path.stat().st_size == log.size
    log = ActivationLog(crashed)
    assert log.size == crashed.stat().st_size == 3 * one
    assert not caplog.records  # nothing was lost, so nothing is said
    log.append([packed(SPEC, 1)])
    assert same(log.read(log.entries[3]), packed(SPEC, 1))
    log.close()


def test_no_room_ahead(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be allocated ahead, the log grows by what is written."""

    def none(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", none)
    log = ActivationLog(path)
    log.append([packed(SPEC, 1)])
    assert path.stat().st_size == log.size
    log.close()
    assert path.stat().st_size == log.size


def test_short_writes_are_continued(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may write less than it was asked to."""
    write = os.pwritev
    before = path.with_name("whole")
    for place, most in ((before, 1 << 20), (path, 11)):

        def some(file: int, buffers: list[memoryview], offset: int, most: int = most) -> int:
            return write(file, [memoryview(b"".join(buffers))[:most]], offset)

        monkeypatch.setattr(os, "pwritev", some)
        log = ActivationLog(place)
        log.append([packed(SPEC, 1), packed(SPEC, 2)])
        log.close()
    assert path.read_bytes() == before.read_bytes()
    log = ActivationLog(path)
    assert log.last == 2
    log.close()


def test_many_buffers(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of more buffers than one call takes is written in several."""
    monkeypatch.setattr("mobillm.server.log.MAX_BUFFERS", 5)
    log = ActivationLog(path)
    log.append([packed(SPEC, seq) for seq in range(1, 8)])
    log.close()
    log = ActivationLog(path)
    assert log.last == 7
    assert same(log.read(log.entries[6]), packed(SPEC, 7))
    log.close()


def test_a_path_that_cannot_be_opened(tmp_path: pathlib.Path) -> None:
    """A directory in the file's place is named."""
    with pytest.raises(StorageError, match="cannot be opened"):
        ActivationLog(tmp_path)
