"""Tests of the ``taps`` option."""

from __future__ import annotations

import pytest

from mobillm.errors import ConfigError
from mobillm.nn.taps import parse_taps


@pytest.mark.parametrize(
    ("taps", "layers", "expected"),
    [
        ("every:4", 30, (4, 8, 12, 16, 20, 24, 28, 30)),
        ("every:4", 12, (4, 8, 12)),
        ("every:9", 3, (3,)),
        ("all", 3, (1, 2, 3)),
        ("4/7", 30, (17,)),
        (" 1 / 3", 2, (1,)),
        ("9/10", 24, (21,)),
        ("6, 10,30", 30, (6, 10, 30)),
        ("0,2", 2, (0, 2)),
        ([1, 3], 3, (1, 3)),
    ],
)
def test_forms(taps: str | list[int], layers: int, expected: tuple[int, ...]) -> None:
    """Every documented form gives the layers it names."""
    assert parse_taps(taps, layers) == expected


@pytest.mark.parametrize(
    "taps",
    [
        "",
        "every:0",
        "every:",
        "every:x",
        "0/3",
        "3/3",
        "1/0",
        "1/2/3",
        "x/2",
        "1,,2",
        "3,1",
        "2,2",
        "-1",
        "some",
        "9" * 5000,
        "every:" + "9" * 5000,
        [],
    ],
)
def test_unreadable(taps: str | list[int]) -> None:
    """What cannot be read is refused with the forms that can."""
    with pytest.raises(ConfigError, match="every:N"):
        parse_taps(taps, 8)


@pytest.mark.parametrize("taps", ["9", [-1, 3], [2, 11]])
def test_outside_the_model(taps: str | list[int]) -> None:
    """A layer that the backbone lacks is an error that names its layers."""
    with pytest.raises(ConfigError, match="to 8, the number of layers"):
        parse_taps(taps, 8)
