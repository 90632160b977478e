"""Tests of mobillm.conformance.server_cases.specs."""

from __future__ import annotations

import dataclasses

from mobillm.conformance import Target, select, server_suite
from mobillm.conformance.samples import spec
from mobillm.conformance.server_cases import specs
from mobillm.spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec
from tests.conformance.running import passing, server_results


def test_our_server_passes(target: Target) -> None:
    """All cases of the area pass against this package's server; there are no less than these."""
    assert passing(server_results(target, select(server_suite(), ["specs"]))) >= 240


def test_every_field_of_a_spec_has_cases() -> None:
    """The paths that are made wrong are those of the package's own spec."""
    paths = set()
    for field in dataclasses.fields(SessionSpec):
        paths.add(field.name)
    for name, cls in (
        ("model", ModelSpec),
        ("side", SideSpec),
        ("optimizer", OptimizerSpec),
        ("codec", CodecSpec),
    ):
        paths |= {f"{name}.{field.name}" for field in dataclasses.fields(cls)}
    assert set(specs._WRONG) == paths


def test_one_change_leaves_the_sample_alone() -> None:
    """A changed spec is a copy."""
    before = spec()
    assert specs._changed("model.taps", [1])["model"]["taps"] == [1]
    assert "task" not in specs._changed("task", ...)
    assert spec() == before
