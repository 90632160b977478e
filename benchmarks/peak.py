"""Run a command of ``mobillm`` in this process, then print the process's peak of resident memory in bytes.

``python -m benchmarks.peak plan --model smollm2 --json``. The peak counts from the process's exec on, with
everything that is imported.
"""

from __future__ import annotations

import sys

from benchmarks.harness import peak_bytes
from mobillm.cli import main

if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    print(peak_bytes())
    sys.exit(status)
