"""What a device remembers of an unfinished run."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from mobillm.codec import Equalizer
from mobillm.device.resume import Resume
from mobillm.errors import DataError
from mobillm.spec import CodecSpec
from tests.sessions import spec


def test_round_trip(tmp_path: pathlib.Path) -> None:
    """A session is remembered until it is cleared; there is none at first."""
    resume = Resume(tmp_path / "out" / "session.json", "da7a")
    assert resume.load(spec()) is None
    resume.save(b"x" * 16, spec())
    found = resume.load(spec())
    assert found is not None
    assert (found.session, found.equalizers) == (b"x" * 16, {})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["session.json"]
    resume.clear()
    assert resume.load(spec()) is None
    resume.clear()


def test_equalizers_come_back(tmp_path: pathlib.Path) -> None:
    """The factors and the batch that brought them are those that were saved, bit for bit."""
    resume = Resume(tmp_path / "session.json", "da7a")
    factors = np.linspace(1e-7, 65504, 16).astype(np.float16)
    resume.save(b"x" * 16, spec(), {1: (3, Equalizer(factors))})
    found = resume.load(spec())
    assert found is not None
    ((tap, (seq, equalizer)),) = found.equalizers.items()
    assert (tap, seq) == (1, 3)
    assert equalizer.factors.tobytes() == factors.tobytes()
    content = resume.path.read_text()
    for damage in (content.replace("ff7b", "ff7c"), content.replace('"1": [3', '"x": [3')):
        assert damage != content
        resume.path.write_text(damage)
        with pytest.raises(DataError, match="delete it to start anew"):
            resume.load(spec())


@pytest.mark.parametrize(
    "equalizers",
    [
        {"0": [1, ""]},
        {"0": [1, "003c" * 3]},
        {"0": [1, "003c" * 17]},
        {"0": [1, "0000" * 16]},
        {"2": [1, "003c" * 16]},
        {"-1": [1, "003c" * 16]},
        {"0": [float("inf"), "003c" * 16]},
        {"0": [1, 5]},
        [1],
    ],
)
def test_equalizers_that_are_none(tmp_path: pathlib.Path, equalizers: object) -> None:
    """Factors of another tap or width, or that are no factors, are an error that names the file."""
    resume = Resume(tmp_path / "session.json", "da7a")
    resume.save(b"x" * 16, spec())
    content = json.loads(resume.path.read_text())
    resume.path.write_text(json.dumps(content | {"equalizers": equalizers}))
    with pytest.raises(DataError, match=r"session\.json cannot be read .*; delete it to start anew"):
        resume.load(spec())


def test_another_session(tmp_path: pathlib.Path) -> None:
    """Other options are refused, with what to do."""
    resume = Resume(tmp_path / "session.json", "da7a")
    resume.save(b"x" * 16, spec())
    with pytest.raises(
        DataError, match=r"with other epochs, seed; repeat what .* or delete the file .*cancel 7878"
    ):
        resume.load(spec(seed=4, epochs=7))
    with pytest.raises(DataError, match=r"with other codec\.block; repeat"):
        resume.load(spec(codec=CodecSpec(block=64)))
    with pytest.raises(DataError, match="with other data; repeat"):
        Resume(resume.path, "0the7").load(spec())


@pytest.mark.parametrize(
    "content",
    ["", "{}", '{"session": "zz", "spec": {}}', '{"session": "00", "spec": 1}', "[]", "5", "[" * 200_000],
)
def test_damaged_file(tmp_path: pathlib.Path, content: str) -> None:
    """A damaged file is named, with what to do."""
    (tmp_path / "session.json").write_text(content)
    with pytest.raises(DataError, match="delete it to start anew"):
        Resume(tmp_path / "session.json", "da7a").load(spec())


def test_a_place_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    """The error names the file."""
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="choose another --out"):
        Resume(tmp_path / "out" / "session.json", "da7a").save(b"x" * 16, spec())


def test_an_id_of_another_length(tmp_path: pathlib.Path) -> None:
    """What is no session's id is not sent to a server."""
    resume = Resume(tmp_path / "session.json", "da7a")
    resume.save(b"x" * 15, spec())
    with pytest.raises(DataError, match="id has 15 bytes, expected 16"):
        resume.load(spec())
