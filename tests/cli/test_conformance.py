"""The arguments of the conformance command; what it does is in :mod:`mobillm.cli.conformance_run`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mobillm.cli import main


def test_other_commands_do_not_load_the_cases() -> None:
    """All commands are known, and the cases are loaded by the one that runs them."""
    code = (
        "import sys, mobillm.cli as c; c.main(['conformance', '--help']); "
        "print('mobillm.conformance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_subject_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    """Without one the usage names what is missing."""
    assert main(["conformance"]) == 2
    assert "SUBJECT" in capsys.readouterr().err
