from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mobillm.kernels import bitpack, reference

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 31, 32, 36, 63, 64, 65, 96, 100, 127, 128)
WIDTHS = (2, 3, 4, 5, 6, 8)


def codes_of(bits: int, n: int, rows: int = 5) -> npt.NDArray[np.uint8]:
    codes = np.random.default_rng(n).integers(0, 1 << bits, (rows, n), dtype=np.uint8)
    codes[0], codes[1] = 0, (1 << bits) - 1
    return codes


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n", LENGTHS)
def test_pack_equals_the_reference(bits: int, n: int) -> None:
    """Every row packs to the bytes that the plain rules give."""
    codes = codes_of(bits, n)
    packed = bitpack.pack(codes, bits)
    assert [row.tobytes() for row in packed] == [reference.pack_codes(row.tolist(), bits) for row in codes]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n", LENGTHS)
def test_unpack_inverts_pack(bits: int, n: int) -> None:
    """Codes come back, also from rows that lie inside a wider array."""
    codes = codes_of(bits, n)
    packed = bitpack.pack(codes, bits)
    wide = np.full((len(codes), packed.shape[1] + 3), 0xAA, np.uint8)
    wide[:, :-3] = packed
    assert (bitpack.unpack(wide[:, :-3], bits, n) == codes).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_pack_reads_rows_inside_a_wider_array(bits: int) -> None:
    """A row stride larger than the row changes nothing."""
    wide = codes_of(bits, 72)
    assert (bitpack.pack(wide[:, :64], bits) == bitpack.pack(wide[:, :64].copy(), bits)).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_unpack_ignores_unused_bits(bits: int) -> None:
    """Bits after the last code do not reach a code."""
    codes = codes_of(bits, 65)
    packed = bitpack.pack(codes, bits).copy()
    used = 65 * bits % 8
    assert used
    packed[:, -1] |= 0xFF << used & 0xFF
    assert (bitpack.unpack(packed, bits, 65) == codes).all()


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_plane_parts_use_every_bit_once(bits: int) -> None:
    """Parts fill all bits of all planes, and every bit of every code has a place."""
    seen = [
        (plane * 8 + bit + shift, segment * bits + bit)
        for plane, segment, shift in bitpack.plane_parts(bits)
        for bit in range(bits)
        if 0 <= bit + shift < 8
    ]
    assert sorted(seen) == [(bit, bit) for bit in range(8 * bits)]
