"""Processes of a benchmark end with it, however it ends."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

from benchmarks import child

ROOT = pathlib.Path(__file__).parents[2]

_CHILD = "import signal; print(1, flush=True); signal.pause()"
_PARENT = f"""
import signal, subprocess
from benchmarks import child
child.start(["-c", {_CHILD!r}])
signal.pause()
"""
_RIG = """
import signal, sys
from benchmarks.harness import interruptible
from benchmarks.link import Shape, relayed
from benchmarks.rig import server
with interruptible("; the same command goes on"), server() as at, relayed(at.address, Shape()):
    print(at.directory.parent, flush=True)
    signal.pause()
"""


def python(source: str) -> subprocess.Popen[str]:
    """Run a program in this directory of sources."""
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    """Its end closes the pipe that it inherited; without it this would wait for ever."""
    with python(_PARENT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "1\n"
        parent.kill()
        assert parent.communicate(timeout=10.0) == ("", "")


def test_a_child_whose_parent_has_ended_does_not_begin() -> None:
    """Nobody would end it."""
    nobodys_parent = str(os.getpid())  # 1 is the parent of what runs in the background
    assert child.main([nobodys_parent, "never-started"]) == 1
    assert child.main([]) == 2


def test_sigterm_ends_a_benchmark_like_ctrl_c() -> None:
    """Server and link end, the server's files go, and one line says so."""
    with python(_RIG) as parent:
        assert parent.stdout is not None
        folder = parent.stdout.readline().strip()
        assert pathlib.Path(folder).is_dir()
        parent.send_signal(signal.SIGTERM)
        # The link has inherited standard error, so its end is the link's, too.
        _, errors = parent.communicate(timeout=60.0)
    assert errors == "interrupted; the same command goes on\n"
    assert parent.returncode == 130
    assert not pathlib.Path(folder).exists()
