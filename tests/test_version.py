"""Tests of mobillm.version."""

from __future__ import annotations

import re

from mobillm.version import __version__


def test_version_is_a_release_number() -> None:
    """The version is what packaging tools understand (PEP 440)."""
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?((a|b|rc|\.dev|\.post)\d+)*", __version__)
