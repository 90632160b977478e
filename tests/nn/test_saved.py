"""Tests of a side network on the disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mobillm.errors import ConfigError, ModelError
from mobillm.nn.saved import CONFIG_FILE, WEIGHTS_FILE, SideConfig, read_config, read_weights, save_side
from tests.nn.tiny import session


def test_files(tmp_path: Path) -> None:
    """The directory holds exactly the two files, and both survive the round trip."""
    folder = tmp_path / "new"
    config = SideConfig(spec=session(), max_length=7, labels=("a", "b"), ending=" .", pairs=True)
    save_side(folder, b"weights", config)
    assert {entry.name for entry in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    found = read_config(folder)
    assert found == dataclasses.replace(config, weights=hashlib.sha256(b"weights").hexdigest())
    assert read_weights(folder, found) == b"weights"


def test_weights_of_another_run(tmp_path: Path) -> None:
    """Weights that the configuration does not name are refused; without a digest they are taken."""
    config = SideConfig(spec=session(), max_length=7)
    save_side(tmp_path, b"one", config)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"two")
    with pytest.raises(ModelError, match=rf"{WEIGHTS_FILE} and .*{CONFIG_FILE} do not belong together"):
        read_weights(tmp_path, read_config(tmp_path))
    assert read_weights(tmp_path, config) == b"two"


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way is an error that names the directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot write to the directory .*file"):
        save_side(tmp_path / "file", b"", SideConfig(spec=session(), max_length=7))


def test_missing_files(tmp_path: Path) -> None:
    """A directory without the files is refused with their names."""
    for read in (read_config, lambda folder: read_weights(folder, SideConfig(spec=session(), max_length=1))):
        with pytest.raises(ModelError, match=f"cannot read .*{CONFIG_FILE} and {WEIGHTS_FILE}"):
            read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": None},
        {"format": "1"},
        {"format": 0},
        {"labels": ["a"]},
        {"labels": ["a", "\ud800"]},
        {"labels": "ab"},
        {"max_length": "x"},
        {"max_length": 0},
        {"max_length": 10**7},
        {"spec": None},
        {"weights": 5},
        {"bits": 5},
        {"bits": True},
        {"ending": None},
        {"pairs": None},
        {"pairs": 1},
    ],
)
def test_bad_configuration(change: dict[str, Any]) -> None:
    """Fields that are missing, of another type or out of range are damage, and it says what to do."""
    content = json.loads(SideConfig(spec=session(), max_length=7).to_json())
    with pytest.raises(ModelError, match=r"^d/x is damaged: .*; copy the whole directory again, or train"):
        SideConfig.from_json(json.dumps(content | change), "d/x")


@pytest.mark.parametrize("text", ["{", "", "[]", "5", "null", "[" * 200_000, '{"a":' * 200_000])
def test_what_is_no_configuration(text: str) -> None:
    """What is no JSON object, however deeply nested, is damage."""
    with pytest.raises(ModelError, match=f"{CONFIG_FILE} is damaged: "):
        SideConfig.from_json(text)


def test_newer_format() -> None:
    """A newer format asks for a newer version."""
    with pytest.raises(ModelError, match="has format 2, this version of mobillm knows 1; use a newer one"):
        SideConfig.from_json('{"format": 2}')


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    """A configuration that is not UTF-8 is damage."""
    (tmp_path / CONFIG_FILE).write_bytes(b"\xff")
    with pytest.raises(ModelError, match=f"{CONFIG_FILE} is damaged: not UTF-8"):
        read_config(tmp_path)


def test_options_out_of_range() -> None:
    """A configuration that could not be used is not made."""
    for changes in ({"max_length": 0}, {"max_length": 1_000_001}, {"labels": ("a",)}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            SideConfig(**({"spec": session(), "max_length": 4} | changes))  # type: ignore[arg-type]
