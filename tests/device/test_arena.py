"""Tests of the setting of the C library's memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from mobillm.device.arena import share_arena

if sys.argv[1] == "shared":
    assert share_arena()
kept, together = [], threading.Barrier(4)

def take():
    together.wait(30)
    kept.append([b"%d" % number * 900 for number in range(200)])
    together.wait(30)

threads = [threading.Thread(target=take) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_stats()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_stats"), reason="not glibc")
@pytest.mark.parametrize("how", ["shared", "apart"])
def test_threads_share_an_arena(how: str) -> None:
    """Threads that take memory make arenas of their own, but not after the call."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], stderr=subprocess.PIPE, text=True, timeout=60, check=True
    )
    arenas = done.stderr.count("Arena ")
    assert arenas == 1 if how == "shared" else arenas > 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_peak_is_the_process_s_own() -> None:
    """What the process that started it holds does not count; what it holds itself does."""
    large = bytearray(b"x") * (400 << 20)
    program = (
        "from mobillm.device.arena import peak_bytes\n"
        "before = peak_bytes()\n"
        "kept = bytearray(b'x') * (64 << 20)\n"
        "print(before, peak_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert len(large) > before
    assert after >= before + (60 << 20)
