"""``python -m mobillm``."""

from __future__ import annotations

import subprocess
import sys

from mobillm.version import __version__


def test_module_runs_the_command_line() -> None:
    """The module prints its version, and its exit status is the command's."""
    command = [sys.executable, "-m", "mobillm"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"mobillm {__version__}\n")
    assert subprocess.run([*command, "nonsense"], capture_output=True, check=False).returncode == 2
