"""Tests of mobillm.conformance.server_cases.fields."""

from __future__ import annotations

import dataclasses

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.server_cases import fields
from mobillm.protocol import MESSAGES
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["fields"]))) >= 290


def test_the_table_is_that_of_the_messages() -> None:
    """Every field of every message that a device sends, and no other."""
    ids = [field.id for table in fields.FIELDS.values() for field in table.values()]
    assert len(ids) == len(set(ids))
    for kind, table in fields.FIELDS.items():
        outside = {"stream", "seq", "payload"}
        own = {field.name: field for field in dataclasses.fields(MESSAGES[kind]) if field.name not in outside}
        assert list(table) == list(own), kind
        for name, field in table.items():
            assert field.required == (own[name].default is dataclasses.MISSING), (kind, name)
            assert field.optional == (own[name].default is None), (kind, name)
