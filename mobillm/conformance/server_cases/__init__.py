"""The cases against a server, by area."""

from __future__ import annotations

from ..case import Case, numbered
from ..target import Lab
from . import (
    batches,
    blobs,
    compression,
    connection,
    credit,
    delivery,
    fields,
    handshake,
    header,
    logins,
    metadata,
    opening,
    packing,
    results,
    specs,
    states,
    tensors,
    types,
)

__all__ = ["server_suite"]

_AREAS = (
    header, types, metadata, fields, handshake, states, opening, specs,
    tensors, batches, packing, compression, credit, blobs,
    results, delivery, connection, logins,
)  # fmt: skip


def server_suite() -> list[Case[Lab]]:
    """Return all cases against a server; the names of cases do not depend on which of them are run."""
    return list(numbered((area.__name__.rpartition(".")[2], area.drafts()) for area in _AREAS))
