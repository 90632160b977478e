"""The LoRA step that the demo compares with."""

from __future__ import annotations

import json
import subprocess
import sys


def test_one_step() -> None:
    """A real LoRA step on the real model runs, and its peak is more than the weights alone."""
    command = [sys.executable, "-W", "ignore", "-m", "mobillm.cli.demo_lora"]
    command += ["--batch", "1", "--length", "8", "--task", "classification"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_bytes"] > 269_000_000
