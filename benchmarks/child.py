"""Run a program that ends when the one that started it does, even by kill -9.

``python -m benchmarks.child PARENT COMMAND ...`` becomes COMMAND, with the same process id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main", "start"]

PR_SET_PDEATHSIG = 1
USAGE = 2


def start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start Python with arguments as a process that ends with this one.

    Args:
        arguments: of the interpreter, such as ``-m`` and a module.
        options: of :class:`subprocess.Popen`.

    """
    command = [sys.executable, "-m", "benchmarks.child", str(os.getpid()), sys.executable, *arguments]
    return subprocess.Popen(command, text=True, **options)


def main(argv: Sequence[str]) -> int:
    """Ask Linux for a SIGTERM at the parent's end and become the command; returns only if that cannot be."""
    if len(argv) < 2:
        print(__doc__, file=sys.stderr)
        return USAGE
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # stays over exec
    if os.getppid() == int(argv[0]):
        os.execvp(argv[1], list(argv[1:]))
    return 1  # the parent ended before it could be watched


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
