"""All tasks by which methods are compared, by name."""

from __future__ import annotations

from benchmarks.glue import GLUE, Task
from benchmarks.language import LANGUAGE, Language

__all__ = ["TASKS"]

TASKS: dict[str, Task | Language] = {**GLUE, **LANGUAGE}
