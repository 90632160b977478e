"""Fuzz one target with atheris: ``python -m tests.fuzz.run TARGET [libFuzzer options] [corpus directories]``.

``make fuzz`` runs each for a while. An input that fails is kept as ``.cache/fuzz/crash-...``; to see why,
pass it as the only argument after the target. Once it is mended, put it into
``tests/fuzz/corpus/TARGET``.
"""

from __future__ import annotations

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["mobillm"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Hand the target to libFuzzer."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.run {'|'.join(TARGETS)} [libFuzzer options] [directories]")
    warnings.simplefilter("error")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
