"""Tests of token files."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from mobillm.errors import ConfigError
from mobillm.transport.tokens import create_token_file, parse_tokens, read_token_file


def test_lines() -> None:
    """Tenants come in order, comments and blank lines are left out, a colon may be in the secret."""
    text = "# ours\n\n acme : s:1 \r\nbare-secret\n"
    assert parse_tokens(text, "f") == {"acme": "s:1", "default": "bare-secret"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "f is 'empty'; expected a line TENANT:SECRET"),
        ("acme:\n", "f, line 1 is 'not a token'"),
        ("acme:two words-s3cret\n", "f, line 1 is 'not a token'"),
        ("\n:s3cret\n", "f, line 2 is 'a tenant of 0 characters'"),
        (f"{'a' * 65}:s3cret\n", "1 to 64"),
        ("s3cret\ndefault:s3cret\n", "f, line 2 is \"a second token of 'default'\""),
    ],
)
def test_bad_lines(text: str, message: str) -> None:
    """A bad line is named by its number, and no secret is shown."""
    with pytest.raises(ConfigError) as caught:
        parse_tokens(text, "f")
    assert message in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_create(tmp_path: Path) -> None:
    """A new file is private and holds one long random secret; an existing one is kept."""
    path = tmp_path / "new" / "token"
    assert create_token_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    tokens = read_token_file(path)
    assert list(tokens) == ["default"]
    assert len(tokens["default"]) >= 43
    assert not create_token_file(path)
    assert read_token_file(path) == tokens
    assert [entry.name for entry in path.parent.iterdir()] == ["token"]


def test_unusable_places(tmp_path: Path) -> None:
    """A file that is missing, a directory or not text is refused by name."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(ConfigError, match="token file is"):
            read_token_file(path)
    with pytest.raises(ConfigError, match="token file is"):
        create_token_file(tmp_path / "binary" / "token")


def test_readable_by_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that others can read still works, with a warning that says what to do."""
    path = tmp_path / "token"
    path.write_text("s3cret\n")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING, "mobillm.transport"):
        assert read_token_file(path) == {"default": "s3cret"}
        path.chmod(0o600)
        read_token_file(path)
    assert [record.getMessage().partition("; ")[2] for record in caplog.records] == [f"run: chmod 600 {path}"]
