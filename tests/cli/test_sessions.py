"""Tests of ``mobillm sessions``."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from mobillm.cli import main, sessions
from tests.cli.commands import fails
from tests.conftest import Run
from tests.sessions import device, serving, spec, train

ONE: dict[str, Any] = {
    "session": "0123456789abcdef" * 2,
    "tenant": "a-tenant-with-a-very-long-name\x1b[31m",
    "state": "receiving",
    "attached": True,
    "steps": 123456,
    "total_steps": 1234567,
    "epoch": 100,
    "kept_epoch": None,
    "epochs": 10000,
    "loss": 12.34567,
    "log_bytes": 123_456_789_012,
    "created": 0.0,
}


def test_on_a_live_server(run_once: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """List, show, export, cancel and delete, for people and for programs."""

    async def command(*words: str) -> str:
        capsys.readouterr()
        arguments = ["sessions", *words, "--data-dir", str(tmp_path)]
        assert await asyncio.to_thread(main, arguments) == 0
        return capsys.readouterr().out

    async def work() -> None:
        assert_empty = "no sessions\n"
        async with serving(tmp_path) as server, device(server) as client:
            assert await command("list") == assert_empty
            done, weights = await train(client, spec(batches=2, epochs=2), 2)
            going = await client.open(spec())
            lines = (await command("list")).splitlines()
            assert lines[0].split() == ["session", "tenant", "state", "steps", "epoch", "loss", "log", "age"]
            assert f"{done.id.hex()[:8]}  default    finished *           4/4        2/2" in lines[1]
            assert lines[-1] == "* a device is attached"
            listed = json.loads(await command("list", "--json"))["sessions"]
            assert [one["state"] for one in listed] == ["finished", "receiving"]
            shown = await command("show", done.id.hex()[:12])
            assert f"session             {done.id.hex()}\n" in shown
            assert "spec optimizer" in shown
            assert max(map(len, shown.splitlines())) <= 80
            assert json.loads(await command("show", done.id.hex(), "--json"))["spec"]["epochs"] == 2
            out = tmp_path / "out"
            await command("export", done.id.hex(), "--out", str(out))
            assert (out / "side_model.safetensors").read_bytes() == weights
            assert safetensors.torch.load(weights)
            assert json.loads((out / "session.json").read_text())["session"] == done.id.hex()
            assert "cancelled" in await command("cancel", going.id.hex())
            assert json.loads(await command("delete", going.id.hex(), "--json"))["state"] == "cancelled"
            assert f"session {done.id.hex()} deleted" in await command("delete", done.id.hex())
            assert await command("list") == assert_empty

    run_once(work())


def test_the_list_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the figures, no line is longer, and nothing of a tenant's name reaches the terminal raw."""
    empty = ONE | {"steps": None, "total_steps": None, "epoch": None, "loss": None, "log_bytes": 0}
    monkeypatch.setattr(sessions, "request", lambda *_, **__: ({"sessions": [ONE, empty]}, b""))
    assert main(["sessions", "list"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out
    assert "receiving *" in out
    assert "-/-" in out
    first = out.splitlines()[1].split()
    assert first[4:] == ["123k/1.23M", "100/10k", "12.3457", "123", "GB", first[-1]]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"steps": 57, "total_steps": 2000}, "57/2000"),
        ({"steps": 9999, "total_steps": 12345}, "9999/12.3k"),
        ({"steps": 99_950, "total_steps": 999_999_999}, "100k/1G"),
        ({"log_bytes": 491_300}, "491 kB"),
        ({"log_bytes": 999}, "999 B"),
        ({"log_bytes": 999_999}, "1 MB"),
        ({"log_bytes": 12_345}, "12.3 kB"),
        ({"loss": 1234.5}, "1234.50"),
        ({"loss": 99.99999}, "100.000"),
        ({"loss": 123456.7}, "1.2e+05"),
    ],
)
def test_no_number_is_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], shown: str
) -> None:
    """A figure that has no room is shortened, never cut."""
    monkeypatch.setattr(sessions, "request", lambda *_, **__: ({"sessions": [ONE | changes]}, b""))
    assert main(["sessions", "list"]) == 0
    out = capsys.readouterr().out
    assert f" {shown} " in out
    assert max(map(len, out.splitlines())) <= 80


def test_a_session_that_stopped_early(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list marks it and says what the mark means."""
    one = ONE | {
        "state": "finished",
        "steps": 9,
        "total_steps": 120,
        "epoch": 3,
        "epochs": 40,
        "kept_epoch": 1,
    }
    monkeypatch.setattr(sessions, "request", lambda *_, **__: ({"sessions": [one]}, b""))
    assert main(["sessions", "list"]) == 0
    out = capsys.readouterr().out
    assert re.search(r" finished~ \* +9/120 +3/40 ", out)
    assert "~ stopped early; 'mobillm sessions show' has the epoch of the weights" in out
    assert max(map(len, out.splitlines())) <= 80


def test_export_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory with an export in it is refused before the server is asked."""
    (tmp_path / "session.json").write_text("{}")
    text = fails(capsys, "sessions", "export", "1f", "--out", str(tmp_path), status=2)
    assert "a directory without session.json" in text


@pytest.mark.parametrize("name", ["", "1g", "é", "1 f"])
def test_what_names_no_session(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that no session can have is refused as it was given, before a server is asked."""
    text = fails(capsys, "sessions", "show", name, status=2)
    assert text.startswith(f"argument SESSION: {name!r} is no name of a session; expected the first digits")


def test_no_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line says what is missing."""
    text = fails(capsys, "sessions", "list", "--data-dir", str(tmp_path), status=2)
    assert text.startswith(f"--data-dir is '{tmp_path}'; expected the --data-dir that a server")
