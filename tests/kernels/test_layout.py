from __future__ import annotations

import math
from typing import Any

import pytest

from mobillm.errors import ConfigError
from mobillm.formats import BLOCKS, Format, packed_size
from mobillm.kernels.layout import Layout, code_size, refusal

SHAPES: list[tuple[int, ...]] = [(), (1,), (64,), (100,), (3, 5, 100), (0,), (3, 0), (0, 64), (2, 129)]


@pytest.mark.parametrize(
    ("bits", "values", "size"), [(3, 64, 24), (3, 7, 3), (5, 8, 5), (2, 1, 1), (8, 9, 9)]
)
def test_code_size_rounds_up_to_bytes(bits: int, values: int, size: int) -> None:
    """Codes end on a byte."""
    assert code_size(bits, values) == size


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("fmt", [fmt for fmt in Format if fmt.is_block])
def test_spans_cover_each_row_once(fmt: Format, block: int, shape: tuple[int, ...]) -> None:
    """Spans touch without overlap, in values and in bytes, and end where the row ends."""
    layout = Layout.of(fmt, block, shape)
    column = octet = 0
    for span in layout.spans:
        assert (span.columns.start, span.octets.start) == (column, octet)
        count = (span.columns.stop - column) // span.values
        assert count * span.values == span.columns.stop - column
        assert count * span.record == span.octets.stop - octet
        column, octet = span.columns.stop, span.octets.stop
    assert (column, octet) == (layout.width, layout.row_size)
    assert layout.size == packed_size(fmt, block, shape) == layout.rows * layout.row_size


def test_plain_formats_have_no_spans() -> None:
    """A format without blocks is described by its row size alone."""
    layout = Layout.of(Format.BF16, 64, (2, 3))
    assert (layout.rows, layout.width, layout.row_size, layout.size, layout.spans) == (2, 3, 6, 12, ())


@pytest.mark.parametrize("block", [0, -64, 16, 100, 256])
def test_unknown_block_is_refused(block: int) -> None:
    """Only the three block lengths of the format table exist."""
    with pytest.raises(ConfigError, match=r"block is .*expected 32, 64 or 128"):
        Layout.of(Format.ASYM4, block, (3,))


@pytest.mark.parametrize("block", [64.0, "64", None])
def test_block_of_another_type_is_refused(block: Any) -> None:
    """What equals an integer is none, and the refusal stays without consequence for the right type."""
    with pytest.raises(ConfigError, match=r"block is .*expected 32, 64 or 128, an integer"):
        Layout.of(Format.NF4, block, (3, 11))
    assert type(Layout.of(Format.NF4, 64, (3, 11)).row_size) is int


def test_format_is_no_number() -> None:
    """A wire code that was not looked up is refused, also after its format was laid out."""
    Layout.of(Format.ASYM4, 64, (3, 12))
    code: Any = 20
    with pytest.raises(ConfigError, match=r"fmt is 20; expected a Format"):
        Layout.of(code, 64, (3, 12))


@pytest.mark.parametrize("shape", [(2.0, 64), ("2",), (None,), 7])
def test_axes_are_integers(shape: Any) -> None:
    """A length that is no integer is refused before anything is counted."""
    with pytest.raises(ConfigError, match=r"shape is .*at most 8 axes"):
        Layout.of(Format.ASYM4, 64, shape)


@pytest.mark.parametrize("shape", [(0, 2**63), (2**40, 0, 2**40), (2**61,)])
def test_shape_that_no_memory_holds_is_refused(shape: tuple[int, ...]) -> None:
    """Axes count even beside one of length 0: numpy and torch cannot make such an array."""
    with pytest.raises(ConfigError, match=r"shape is .*2\*\*60 values"):
        Layout.of(Format.ASYM4, 64, shape)


@pytest.mark.parametrize("shape", [(1,) * 9, (2, -1)])
def test_impossible_shape_is_refused(shape: tuple[int, ...]) -> None:
    """More than eight axes, or a negative one, is an error that names the shape."""
    with pytest.raises(ConfigError, match=r"shape is .*at most 8 axes"):
        Layout.of(Format.F32, 64, shape)


def test_size_mismatch_names_both_sizes() -> None:
    """The error tells what came, what was expected, and what to look at."""
    layout = Layout.of(Format.ASYM4, 64, (2, 64))
    layout.check_packed(72, Format.ASYM4, 64, (2, 64))
    with pytest.raises(ConfigError, match=r"packed size is 71; expected 72 bytes for asym4, block 64, shape"):
        layout.check_packed(71, Format.ASYM4, 64, (2, 64))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_refusal_of_a_non_finite_value_points_to_the_model(value: float) -> None:
    """No format helps against NaN, so the advice is about its origin."""
    error = refusal(Format.ASYM4, 65504.0, (2, 3), value)
    assert error.position == (2, 3)
    assert "finite" in error.reason
    assert "use format" not in error.reason


@pytest.mark.parametrize(
    ("fmt", "limit", "advice"),
    [(Format.ASYM4, 65504.0, "use format bf16 or f32"), (Format.BF16, 3.3895e38, "use format f32")],
)
def test_refusal_of_a_large_value_names_limit_and_wider_formats(
    fmt: Format, limit: float, advice: str
) -> None:
    """A finite value that is too large fits into a wider format, which the error names."""
    error = refusal(fmt, limit, (), limit * 1.001)
    assert f"above {limit:g}, the limit of {fmt.name.lower()}" in error.reason
    assert error.reason.endswith(advice)
