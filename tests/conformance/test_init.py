"""Tests of mobillm.conformance as a package."""

from __future__ import annotations

import subprocess
import sys

import mobillm.conformance

SCRIPT = """
import sys
sys.modules["torch"] = None
import mobillm.conformance
assert not {"mobillm.device", "mobillm.server"} & set(sys.modules)
print(len(mobillm.conformance.server_suite()))
"""


def test_the_suite_needs_no_torch() -> None:
    """Nor anything of the package's own server and device."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 550


def test_public_names_exist() -> None:
    """Each of them, in order."""
    names = mobillm.conformance.__all__
    assert names == sorted(names)
    assert all(hasattr(mobillm.conformance, name) for name in names)
