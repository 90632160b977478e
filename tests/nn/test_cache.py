"""The cache directory, and files that appear whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mobillm.errors import ModelError
from mobillm.nn.cache import cache_directory, file_digest, installed


def test_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable wins, then a directory of the place, then that of the home."""
    monkeypatch.setenv("MOBILLM_CACHE", str(tmp_path / "chosen"))
    assert cache_directory() == tmp_path / "chosen"
    monkeypatch.delenv("MOBILLM_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cache_directory() == tmp_path / "home" / ".cache" / "mobillm"
    (tmp_path / ".cache" / "mobillm").mkdir(parents=True)
    assert cache_directory() == Path(".cache") / "mobillm"


def test_digest(tmp_path: Path) -> None:
    """The digest is that of the content."""
    (tmp_path / "file").write_bytes(b"content")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()


def test_whole_or_absent(tmp_path: Path) -> None:
    """A file appears only when its block ended well, and nothing partial stays."""
    target = tmp_path / "sub" / "file"

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError

    with pytest.raises(RuntimeError), installed(target) as file:
        fail(file)
    assert list(target.parent.iterdir()) == []
    with installed(target) as file:
        file.write_bytes(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert list(target.parent.iterdir()) == [target]


def test_the_first_directory_stays(tmp_path: Path) -> None:
    """Of two processes that make the same directory, the second one's result is dropped."""
    target = tmp_path / "model"
    with installed(target) as second:
        second.mkdir()
        (second / "name").write_text("second")
        with installed(target) as first:
            first.mkdir()
            (first / "name").write_text("first")
    assert (target / "name").read_text() == "first"


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """The error names the place and the variable that changes it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="MOBILLM_CACHE"), installed(tmp_path / "file" / "model"):
        pass
