"""Running commands, in this process and in one of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobillm.cli import main

__all__ = ["RunningServer", "fails", "start"]


@dataclasses.dataclass(frozen=True, slots=True)
class RunningServer:
    """A ``mobillm serve`` process.

    Attributes:
        address: what it printed.
        token_file: its tokens.

    """

    address: str
    token_file: Path


@contextlib.contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command line as a process of its own, with pipes; what still runs at the end is killed."""
    with subprocess.Popen(
        [sys.executable, "-m", "mobillm", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                process.kill()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    """Run a command that must fail with one line on standard error, notices apart; return that line."""
    capsys.readouterr()
    assert main(arguments) == status
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == ""
    assert last.startswith("mobillm: error: ")
    assert err.count("mobillm: ") == 1
    assert "Traceback" not in err
    return last.removeprefix("mobillm: error: ")
