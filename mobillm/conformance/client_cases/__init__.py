"""The cases against a client, by area."""

from __future__ import annotations

from ..case import Case, numbered
from ..visit import Visit
from . import compression, ending, framing, greeting, packing, results, roles, traffic

__all__ = ["client_suite"]

_AREAS = (
    greeting, framing, roles, traffic, packing, compression, results, ending,
)  # fmt: skip


def client_suite() -> list[Case[Visit]]:
    """Return all cases against a client."""
    return list(numbered((area.__name__.rpartition(".")[2], area.drafts()) for area in _AREAS))
