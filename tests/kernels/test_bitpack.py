from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mobillm.kernels import bitpack, reference
from mobillm.kernels.layout import code_size

Octets = npt.NDArray[np.uint8]

LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 31, 32, 36, 63, 64, 65, 96, 100, 127, 128)
WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def codes_of(bits: int, n: int, rows: int = 5) -> Octets:
    codes = np.random.default_rng(n).integers(0, 1 << bits, (rows, n), dtype=np.uint8)
    codes[0], codes[1] = 0, (1 << bits) - 1
    return codes


def packed_of(codes: Octets, bits: int) -> Octets:
    """Pack codes that are in the low bits, with rubbish below them once they are in the high ones."""
    rubbish = np.random.default_rng(0).integers(0, 1 << (8 - bits), codes.shape, dtype=np.uint8)
    out = np.empty((len(codes), code_size(bits, codes.shape[1])), np.uint8)
    bitpack.pack(codes << np.uint8(8 - bits) | rubbish, bits, out)
    return out


def unpacked_of(packed: Octets, bits: int, n: int) -> Octets:
    """Unpack ``n`` codes of each row."""
    out = np.empty((len(packed), n), np.uint8)
    bitpack.unpack(packed, bits, out)
    return out


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n", LENGTHS)
def test_pack_equals_the_reference(bits: int, n: int) -> None:
    """Every row packs to the bytes that the plain rules give; bits below a code do not matter."""
    codes = codes_of(bits, n)
    packed = packed_of(codes, bits)
    assert [row.tobytes() for row in packed] == [reference.pack_codes(row.tolist(), bits) for row in codes]


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n", LENGTHS)
def test_unpack_inverts_pack(bits: int, n: int) -> None:
    """Codes come back, also from rows that lie inside a wider array, and into such rows."""
    codes = codes_of(bits, n)
    packed = packed_of(codes, bits)
    wide = np.full((len(codes), packed.shape[1] + 3), 0xAA, np.uint8)
    wide[:, :-3] = packed
    target = np.full((len(codes), n + 5), 0x55, np.uint8)
    bitpack.unpack(wide[:, :-3], bits, target[:, :-5])
    assert (target[:, :-5] == codes).all()
    assert (target[:, -5:] == 0x55).all()


@pytest.mark.parametrize("bits", WIDTHS)
def test_pack_reads_and_writes_rows_inside_a_wider_array(bits: int) -> None:
    """A row stride larger than the row changes nothing, and neighbours are left alone."""
    wide = codes_of(bits, 72) << np.uint8(8 - bits)
    size = 8 * bits
    target = np.full((len(wide), size + 4), 0x55, np.uint8)
    bitpack.pack(wide[:, :64], bits, target[:, :size])
    assert (target[:, :size] == packed_of(wide[:, :64] >> np.uint8(8 - bits), bits)).all()
    assert (target[:, size:] == 0x55).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_unpack_ignores_unused_bits(bits: int) -> None:
    """Bits after the last code do not reach a code."""
    codes = codes_of(bits, 65)
    packed = packed_of(codes, bits)
    used = 65 * bits % 8
    assert used
    packed[:, -1] |= 0xFF << used & 0xFF
    assert (unpacked_of(packed, bits, 65) == codes).all()


@pytest.mark.parametrize("bits", [3, 7])
def test_many_rows_are_chunked_without_a_seam(bits: int) -> None:
    """More rows than one chunk holds pack and unpack as each row does on its own."""
    codes = codes_of(bits, 64, rows=4200)
    packed = packed_of(codes, bits)
    for row in (0, 4095, 4096, 4199):
        assert packed[row].tobytes() == reference.pack_codes(codes[row].tolist(), bits)
    assert (unpacked_of(packed, bits, 64) == codes).all()


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_plane_parts_use_every_bit_once(bits: int) -> None:
    """Parts fill all bits of all planes, and every bit of every code has a place."""
    seen = [
        (plane * 8 + bit + shift, segment * bits + bit)
        for plane, segment, shift in bitpack.plane_parts(bits)
        for bit in range(bits)
        if 0 <= bit + shift < 8
    ]
    assert sorted(seen) == [(bit, bit) for bit in range(8 * bits)]
