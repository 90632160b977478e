"""Tests of the command line as a whole."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobillm import cli
from mobillm.cli import COMMANDS, main, predict
from mobillm.errors import ConfigError
from mobillm.version import __version__
from tests.cli.commands import fails, start

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]  # type: ignore[attr-defined]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the package."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mobillm {__version__}\n"


@pytest.mark.parametrize("name", NAMES)
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command's help has examples of itself and the exit statuses."""
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"  mobillm {name} " in out.partition("examples:\n")[2]
    assert out.rstrip().endswith("130 interrupted")
    assert max(map(len, out.splitlines())) <= 120


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is one line with the command whose help to read, and status 2."""
    assert "COMMAND; see 'mobillm --help'" in fails(capsys, status=2)
    assert "invalid choice: 'fly'" in fails(capsys, "fly", status=2)
    text = fails(capsys, "generate", "--model", "m", status=2)
    assert "required: --side, --prompt; see 'mobillm generate --help'" in text
    text = fails(capsys, "sessions", "list", "--all", status=2)
    assert "unrecognized arguments: --all; see 'mobillm sessions list --help'" in text


def _run_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *, debug: bool = False) -> None:
    def run(_args: argparse.Namespace) -> int:
        raise error

    parser = cli._parser()
    monkeypatch.setattr(cli, "_parser", lambda: parser)
    arguments: Any = parser.parse_args(["predict", "--model", "m", "--side", "s"])
    arguments.run = run
    arguments.debug = debug
    monkeypatch.setattr(parser, "parse_args", lambda _argv: arguments)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "mobillm: interrupted\n"),
        (ConfigError("x", 1, "2"), 2, "mobillm: error: x is 1; expected 2\n"),
        (TimeoutError("too slow"), 1, "mobillm: error: too slow; check the server and the network\n"),
        (
            ModuleNotFoundError("no", name="torch.nn"),
            1,
            "mobillm: error: this command needs the package torch; run: pip install 'mobillm[torch]'\n",
        ),
        (
            TypeError("two\nlines"),
            1,
            "mobillm: error: unexpected TypeError: two lines; this is a bug: run again with --debug for the "
            "traceback and report it\n",
        ),
        (
            ImportError("gone", name="mobillm.gone"),
            1,
            "mobillm: error: unexpected ImportError: gone; this is a bug: run again with --debug for the "
            "traceback and report it\n",
        ),
        (
            MemoryError(),
            1,
            "mobillm: error: the memory does not suffice; lower --batch-size or --max-length, or take a "
            "smaller model\n",
        ),
    ],
)
def test_errors_are_one_line(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a command raises becomes its exit status and one line."""
    _run_with(monkeypatch, error)
    assert main([]) == status
    assert capsys.readouterr().err == line


def test_defects_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --debug the traceback of a defect comes before its line."""
    _run_with(monkeypatch, ZeroDivisionError(), debug=True)
    assert main([]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("mobillm: error: unexpected ZeroDivisionError; this is a bug")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """With --debug the traceback comes before the line."""
    assert main(["predict", "--debug", "--model", "m", "--side", "/none"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("mobillm: error: --side /none does not exist; ")


def test_ctrl_c_ends_a_waiting_command(model: str, side: str) -> None:
    """SIGINT ends a command that waits for its input with one line and status 130."""
    arguments = ["--model", model, "--side", side, "--batch-size", "1"]
    with start("predict", *arguments) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print("w5 w20", file=process.stdin, flush=True)
        assert "\t" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mobillm: interrupted"
    assert "Traceback" not in err


def test_closed_output_is_no_traceback(model: str, side: str) -> None:
    """A reader that leaves early ends the command quietly."""
    with start("predict", "--model", model, "--side", side, "--batch-size", "1") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        print("w5", file=process.stdin, flush=True)
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write("w5\n" * 50)
        process.stdin.close()
        assert process.stderr is not None
        notices = process.stderr.read().splitlines()
    assert [line for line in notices if not line.endswith(" ...")] == []
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_output_without_space(model: str, side: str) -> None:
    """Output that cannot be written is one line, also when the interpreter ends."""
    command = [sys.executable, "-m", "mobillm", "predict", "--model", model, "--side", side, "w5"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True)
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1
    assert lines[0].startswith("mobillm: error: No space left on device; free some disk space")
    assert done.returncode == 1


def test_help_needs_no_torch() -> None:
    """The parser and its texts come without torch, transformers and rich."""
    code = (
        "import sys, mobillm.cli as c; c.main(['finetune', '--help']); "
        "sys.exit(bool({'torch', 'transformers', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_commands_offer_what_main_needs() -> None:
    """Each command's module can be added by naming it."""
    assert predict in COMMANDS
    assert {"serve", "finetune", "evaluate", "predict", "generate"} <= set(NAMES)
