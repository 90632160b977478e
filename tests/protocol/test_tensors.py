"""Tests of mobillm.protocol.tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mobillm.formats import Format, packed_size
from mobillm.protocol import EQUALIZERS, LENGTHS, TARGETS, TensorHeader, checksum, tensor_name
from mobillm.protocol.tensors import is_tensor


def test_names() -> None:
    """[B-3] [B-35] Taps by number, two names, and the equalizers of the taps."""
    assert [tensor_name(n) for n in (0, 999, TARGETS, LENGTHS)] == ["tap 0", "tap 999", "targets", "lengths"]
    assert (TARGETS, LENGTHS, EQUALIZERS) == (1000, 1001, 2000)
    assert tensor_name(2999) == "the equalizer of tap 999"
    assert [n for n in range(-1, 3001) if is_tensor(n)] == [*range(1002), *range(2000, 3000)]


def test_checksum() -> None:
    """[B-36] [F-11] Equalizers are named by the CRC32C of their bytes."""
    assert checksum(b"123456789") == checksum(memoryview(b"123456789")) == 0xE3069283


def test_only_blocks_are_equalized() -> None:
    """[B-39] A plain format has no scales that an equalizer could help."""
    assert TensorHeader(Format.ASYM3, 64, (4,), equalizer=0).equalizer == 0
    with pytest.raises(ValueError, match="an equalizer for a format without blocks"):
        TensorHeader(Format.F16, 0, (4,), equalizer=0)


@pytest.mark.parametrize("fmt", list(Format))
def test_size_is_the_packed_size(fmt: Format) -> None:
    """[B-22] The header gives the exact bytes of the packed tensor."""
    block = 64 if fmt.is_block else 0
    header = TensorHeader(fmt, block, (3, 70))
    assert header.values == 210
    assert header.size == packed_size(fmt, block, (3, 70))


@pytest.mark.parametrize(
    ("fmt", "block", "shape", "text"),
    [
        (Format.ASYM4, 0, (4,), "block of 0"),
        (Format.ASYM4, 96, (4,), "block of 96"),
        (Format.NF4, 256, (4,), "block of 256"),
        (Format.F16, 64, (4,), "without blocks"),
        (Format.F16, 0, (), "rank 0"),
        (Format.F16, 0, (1,) * 9, "rank 9"),
        (Format.F16, 0, (0,), "dimension"),
        (Format.F16, 0, (4, -1), "dimension"),
        (Format.F16, 0, (2**31,), "dimension"),
    ],
)
def test_impossible_headers_are_refused(fmt: Format, block: int, shape: tuple[int, ...], text: str) -> None:
    """[B-14] [L-10] Block, rank and dimensions have bounds."""
    with pytest.raises(ValueError, match=text):
        TensorHeader(fmt, block, shape)


@pytest.mark.parametrize(
    "changes",
    [{"format": 20}, {"block": 64.0}, {"shape": (1.5,)}, {"shape": (True,)}, {"equalizer": 1.0}],
)
def test_headers_hold_integers(changes: dict[str, Any]) -> None:
    """A number of another type would only fail when the header is written."""
    with pytest.raises(ValueError, match=r"not an integer|20 in the place of a packed format"):
        dataclasses.replace(TensorHeader(Format.ASYM4, 64, (4,)), **changes)


def test_bounds_are_inclusive() -> None:
    """[B-14] [L-10] The largest rank, dimension and each block length pass, without overflow."""
    assert TensorHeader(Format.F32, 0, (2**31 - 1,) * 8).size == (2**31 - 1) ** 8 * 4
    assert [TensorHeader(Format.ASYM2, block, (1,)).size for block in (32, 64, 128)] == [5, 5, 5]
