"""Settings from flags, environment and file."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mobillm.cli import serve
from mobillm.cli.arguments import Parser, between, file_path, limit
from mobillm.cli.settings import Setting, add_settings, resolve
from mobillm.errors import ConfigError
from tests.cli.commands import fails

SETTINGS = (
    Setting(name="data-dir", read=file_path, help="where", default=Path("home")),
    Setting(name="count", read=between(1, 9), help="how many", default=1),
    Setting(name="fast", read=bool, help="not slow"),
    Setting(name="kind", choices=("a", "b"), default="a", help="which"),
    Setting(name="bounds", read=limit, default=[], help="how far", many=True),
)


def parse(*words: str, environment: dict[str, str] | None = None) -> argparse.Namespace:
    """Return the settings that a command line, an environment and a file give."""
    parser = Parser(prog="x", description="", epilog="")
    add_settings(parser, SETTINGS, "X_")
    return resolve(parser.parse_args(words), SETTINGS, "X_", environment or {})


def test_precedence(tmp_path: Path) -> None:
    """Flag over environment over file over default, for each setting by itself."""
    path = tmp_path / "x.toml"
    path.write_text('data-dir = "file"\ncount = 2\nfast = true\n')
    found = parse()
    assert (found.data_dir, found.count, found.fast, found.kind) == (Path("home"), 1, None, "a")
    found = parse("--config", str(path))
    assert (found.data_dir, found.count, found.fast, found.kind) == (Path("file"), 2, True, "a")
    environment = {"X_CONFIG": str(path), "X_COUNT": "3", "X_FAST": "0", "X_KIND": "b", "OTHER": "9"}
    found = parse(environment=environment)
    assert (found.data_dir, found.count, found.fast, found.kind) == (Path("file"), 3, False, "b")
    found = parse("--count", "4", "--kind", "a", "--fast", environment=environment)
    assert (found.count, found.fast, found.kind) == (4, True, "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuont = 2", "is 'cuont'; expected one of bounds, count, data-dir, fast, kind"),
        ("count = 10", "count is 10; expected what --count takes"),
        ("count = [1]", "expected a text or a number"),
        ("count = true", "expected a text or a number"),
        ('data-dir = ""', "data-dir is ''; expected what --data-dir takes ('' is no path"),
        ("fast = 1", "fast is 1; expected true or false"),
        ('bounds.sessions = "3"', "bounds.sessions is '3'; expected an integer"),
        ("bounds.sessions = true", "bounds.sessions is True; expected an integer"),
        ('fast = "maybe"', "fast is 'maybe'; expected true or false"),
        ('kind = "c"', "kind is 'c'; expected one of a, b"),
        ("[table]\nx = 1", "a setting in"),
        ("count = ", "a TOML file that can be read"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, expected: str) -> None:
    """What is wrong is named with the file and the key."""
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as info:
        parse("--config", str(path))
    assert expected in str(info.value)
    assert "x.toml" in str(info.value)


def test_bad_environment(tmp_path: Path) -> None:
    """Variables are checked as the file is."""
    for name, value, expected in (
        ("X_CUONT", "1", "a variable is 'X_CUONT'; expected one of X_BOUNDS, X_COUNT"),
        ("X_COUNT", "x", "the variable X_COUNT is 'x'; expected what --count takes"),
        ("X_CONFIG", str(tmp_path / "no.toml"), "a TOML file that can be read (No such file"),
    ):
        with pytest.raises(ConfigError) as info:
            parse(environment={name: value})
        assert expected in str(info.value)


def test_many_values(tmp_path: Path) -> None:
    """A table in the file, commas in the environment, flags that are given again; the names of all count."""
    path = tmp_path / "x.toml"
    path.write_text("[bounds]\nsessions = 3\nstored = 50000\n")
    assert parse().bounds == []
    assert parse("--config", str(path)).bounds == [("sessions", 3), ("stored", 50000)]
    found = parse("--config", str(path), environment={"X_BOUNDS": "sessions=4,steps=9"})
    assert dict(found.bounds) == {"sessions": 4, "stored": 50000, "steps": 9}
    found = parse(
        "--config", str(path), "--bounds", "steps=1", environment={"X_BOUNDS": "sessions=4,steps=9"}
    )
    assert dict(found.bounds) == {"sessions": 4, "stored": 50000, "steps": 1}
    assert parse("--bounds", "steps=1", "--bounds", "memory=7").bounds == [("steps", 1), ("memory", 7)]
    for text in ("bounds = 3", "[bounds]\nsesions = 3"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="bounds is"):
            parse("--config", str(path))


def test_serve_refuses_unknown_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server does not start with a setting that would have no effect."""
    path = tmp_path / "server.toml"
    path.write_text('listen = "127.0.0.1:0"\nlimitts = 3\n')
    assert "is 'limitts'; expected one of" in fails(capsys, "serve", "--config", str(path), status=2)
    monkeypatch.setenv("MOBILLM_SERVE_LISTENN", "x")
    assert "a variable is 'MOBILLM_SERVE_LISTENN'; expected" in fails(capsys, "serve", status=2)
    assert len({setting.name for setting in serve.SETTINGS}) == len(serve.SETTINGS)
