"""Files that are whole or not there."""

from __future__ import annotations

import os
import pathlib

import pytest

from mobillm.errors import StorageError
from mobillm.server.files import replace_file


def test_replace(tmp_path: pathlib.Path) -> None:
    """The file has the new content, is private, and nothing lies beside it."""
    path = tmp_path / "file"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_everything_is_synced_in_order(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content reaches the disk before the name does, and the name before the call returns."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(file: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{file}"))
        fsync(file)

    def noted_replace(source: pathlib.Path, target: pathlib.Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    replace_file(tmp_path / "file", b"new")
    assert calls == [str(tmp_path / "file.new"), "rename", str(tmp_path)]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whatever fails, the old content stays and nothing lies beside it."""
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError, match="file cannot be written: No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
