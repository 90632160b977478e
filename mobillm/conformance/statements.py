"""The texts of the specification's statements, for reports.

They are kept beside the package's code, since an installed package has no documents;
``python -m mobillm.conformance.statements docs/protocol.md docs/packed-tensors.md`` renews them.
"""

from __future__ import annotations

import importlib.resources
import json
import pathlib
import re
import sys
from collections.abc import Iterable

__all__ = ["FILE", "load", "read", "render"]

FILE = pathlib.Path(__file__).with_name("statements.json")

# A list item or the first cells of a table's row, and the paragraphs of the packed formats.
_ITEM = re.compile(r"^- `\[([A-Z]-\d+)\]` (.+)$", re.MULTILINE)
_ROW = re.compile(r"^\| `\[([A-Z]-\d+)\]` \| (.+) \|$", re.MULTILINE)
_PARAGRAPH = re.compile(r"^\*\*(P\d+)\.\*\* (.+?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


def read(texts: Iterable[str]) -> dict[str, str]:
    """Return the statements of specifications by their ids, on one line each."""
    found: dict[str, str] = {}
    for text in texts:
        for pattern in (_ITEM, _ROW, _PARAGRAPH):
            for match in pattern.finditer(text):
                found[match[1]] = " ".join(_LINK.sub(r"\1", match[2]).split())
    return found


def render(statements: dict[str, str]) -> str:
    """Return the content of the package's file of statements."""
    return json.dumps(statements, ensure_ascii=False, indent=0, sort_keys=True) + "\n"


def load() -> dict[str, str]:
    """Return the statements that the package was made with."""
    source = importlib.resources.files(__package__).joinpath(FILE.name)
    statements: dict[str, str] = json.loads(source.read_text(encoding="utf-8"))
    return statements


if __name__ == "__main__":
    documents = (pathlib.Path(name).read_text(encoding="utf-8") for name in sys.argv[1:])
    FILE.write_text(render(read(documents)), encoding="utf-8")
