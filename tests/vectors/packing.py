"""Packed tensors made from the text of ``docs/packed-tensors.md`` alone, value by value.

A sum, difference, product or quotient of two fp32 numbers that is computed in double precision and then
rounded to fp32 equals the one that is rounded once, since 53 bits are more than twice 24 and 2.
"""

from __future__ import annotations

import math
import struct

__all__ = ["FORMATS", "decode", "encode", "f32", "limit"]

# Wire code, bits of a code, values in the trailer; no trailer means that values are stored as they are.
FORMATS = {
    "f32": (0, 32, 0), "f16": (1, 16, 0), "bf16": (2, 16, 0), "i32": (3, 32, 0), "asym2": (18, 2, 2),
    "asym3": (19, 3, 2), "asym4": (20, 4, 2), "asym5": (21, 5, 2), "asym6": (22, 6, 2), "asym7": (23, 7, 2),
    "asym8": (24, 8, 2), "nf4": (36, 4, 1), "fp4": (37, 4, 1), "f8": (40, 8, 1),
}  # fmt: skip
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
# The first point of the 8-bit grid of each code, in the order of the points (P24).
NF4_FROM = dict(enumerate((0, 20, 50, 69, 85, 98, 110, 122, 133, 143, 154, 165, 178, 192, 210, 238)))
FP4_FROM = {
    11: 0, 10: 22, 13: 54, 12: 75, 15: 91, 14: 101, 9: 117, 0: 127, 1: 129, 6: 139, 7: 155, 4: 165, 5: 181,
    2: 202, 3: 234,
}  # fmt: skip
FP4 = tuple(sign * size for sign in (1, -1) for size in (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 0.5, 1 / 6, 0.25))


def f32(value: float) -> float:
    """Round to fp32."""
    return float(struct.unpack(">f", struct.pack(">f", value))[0])


def limit(name: str) -> float:
    """Return the largest magnitude that a format carries (P18)."""
    return {"f32": 3.4028234663852886e38, "bf16": 3.3895313892515355e38}.get(name, 65504.0)


def f16_bits(value: float) -> int:
    """Round an fp32 number to fp16, to nearest, ties to even, and return its 16 bits."""
    sign = 0x8000 if math.copysign(1.0, value) < 0 else 0
    # The exponent of the leading bit; zero and subnormal numbers have the lowest one.
    exponent = max(math.frexp(value)[1] - 1, -14) if value else -14
    units = round(abs(value) / 2.0 ** (exponent - 10))  # exact quotient; round() takes ties to even
    # The leading bit, if there is one, adds 1 to the exponent's field; so does a carry out of rounding.
    return sign | (exponent + 14 << 10) + units


def f16_value(bits: int) -> float:
    """Return the number that 16 bits of fp16 stand for."""
    exponent, fraction = bits >> 10 & 31, bits & 0x3FF
    sign = -1.0 if bits >> 15 else 1.0
    if exponent == 31:
        return sign * math.inf if not fraction else math.nan
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024 + fraction) * 2.0 ** (exponent - 25)


def f16(value: float) -> float:
    """Round to fp16 and back."""
    return f16_value(f16_bits(value))


def e4m3_bits(value: float) -> int:
    """Round an fp32 number of at most 448 to e4m3, to nearest, ties to even, and return its 8 bits."""
    sign = 0x80 if math.copysign(1.0, value) < 0 else 0
    exponent = max(math.frexp(value)[1] - 1, -6) if value else -6
    units = round(abs(value) / 2.0 ** (exponent - 3))
    return sign | (exponent + 6 << 3) + units


def e4m3_value(bits: int) -> float:
    """Return the number that 8 bits of e4m3 stand for."""
    exponent, fraction = bits >> 3 & 15, bits & 7
    sign = -1.0 if bits >> 7 else 1.0
    if bits & 0x7F == 0x7F:
        return math.nan
    return sign * (fraction * 2.0**-9 if exponent == 0 else (8 + fraction) * 2.0 ** (exponent - 10))


def bf16_bits(value: float) -> int:
    """Round an fp32 number to bf16, to nearest, ties to even, and return its 16 bits."""
    bits = int(struct.unpack(">I", struct.pack(">f", value))[0])
    upper, lower = bits >> 16, bits & 0xFFFF
    return upper + 1 if lower > 0x8000 or (lower == 0x8000 and upper & 1) else upper


def adjacent(codes: list[int], bits: int) -> bytes:
    """Pack codes one after another, the first in the lowest bits (P8)."""
    out = bytearray((len(codes) * bits + 7) // 8)
    for index, code in enumerate(codes):
        for bit in range(bits):
            if code >> bit & 1:
                out[(index * bits + bit) // 8] |= 1 << (index * bits + bit) % 8
    return bytes(out)


def pack_codes(codes: list[int], bits: int) -> bytes:
    """Pack the codes of one block (P9 to P12)."""
    if bits in (2, 4, 8):
        return adjacent(codes, bits)
    lane = len(codes) // 8
    groups = [adjacent([codes[s * lane + j] for s in range(8)], bits) for j in range(lane)]
    return bytes(group[p] for p in range(bits) for group in groups) + adjacent(codes[8 * lane :], bits)


def unpack_codes(data: bytes, bits: int, count: int) -> list[int]:
    """Unpack the codes of one block: try where each bit of each code went."""
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for index in range(count):
        for bit in range(bits):
            one = pack_codes([1 << bit if i == index else 0 for i in range(count)], bits)
            octet = next(i for i, value in enumerate(one) if value)
            places[index, bit] = (octet, one[octet].bit_length() - 1)
    codes = [0] * count
    for (index, bit), (octet, shift) in places.items():
        codes[index] |= (data[octet] >> shift & 1) << bit
    return codes


def trailer(*values: float) -> bytes:
    """Store fp32 numbers as fp16, without negative zeros (P20)."""
    return b"".join(struct.pack("<H", 0 if f16(value) == 0 else f16_bits(value)) for value in values)


def clipped(value: float, top: int) -> int:
    """Round to an integer, ties to even, within 0 to ``top``."""
    return max(0, min(top, round(value)))


def encode_block(name: str, values: list[float]) -> bytes:
    """Return the record of one block (P19 to P27)."""
    bits = FORMATS[name][1]
    low, high = min(values), max(values)
    if name == "f8":
        top = max(-low, high)
        inverse = f32(448.0 / max(top, 2.0**-24))
        return bytes(e4m3_bits(f32(value * inverse)) for value in values) + trailer(top)
    if name in ("nf4", "fp4"):
        top = max(-low, high)
        inverse = f32(255.0 / f32(f32(top + top) + f32(1e-8)))
        points = [clipped(f32(f32(value + top) * inverse), 255) for value in values]
        starts = NF4_FROM if name == "nf4" else FP4_FROM
        codes = [[code for code in starts if starts[code] <= point][-1] for point in points]
        return pack_codes(codes, 4) + trailer(top)
    if name == "asym4":
        minimum = f16(low)
        scale = f16(f32(f32(high - minimum) / 15.0)) or 1.0
        inverse = f32(1.0 / scale)
        codes = [clipped(f32(f32(value - minimum) * inverse), 15) for value in values]
        return pack_codes(codes, 4) + trailer(scale, minimum)
    step = f32(f32(high - low) / 255.0)
    inverse = f32(255.0 / f32(f32(high - low) + f32(1e-8)))
    drop = 8 - bits
    codes = [clipped(f32(f32(value - low) * inverse), 255) >> drop for value in values]
    middle = f32(step * ((2**drop - 1) / 2))
    return pack_codes(codes, bits) + trailer(f32(step * 2**drop), f32(low + middle))


def decode_block(name: str, record: bytes, count: int) -> list[float]:
    """Return the values of one record (P13 to P15)."""
    _, bits, trailers = FORMATS[name]
    size = len(record) - 2 * trailers
    first, *rest = [f16_value(bits_) for (bits_,) in struct.iter_unpack("<H", record[size:])]
    codes = unpack_codes(record[:size], bits, count)
    if name == "f8":
        return [f32(f32(e4m3_value(code) / 448.0) * first) for code in codes]
    if name in ("nf4", "fp4"):
        table = NF4 if name == "nf4" else FP4
        return [f32(f32(table[code]) * first) for code in codes]
    return [f32(code * first + rest[0]) for code in codes]


def blocks(width: int, rows: int, block: int) -> list[tuple[int, int]]:
    """Return start and length of each block in a tensor's values (P1, P2, P4)."""
    starts = range(0, width, block)
    return [(row * width + start, min(block, width - start)) for row in range(rows) for start in starts]


def encode(name: str, shape: list[int], block: int, values: list[float]) -> bytes:
    """Return the bytes of a packed tensor."""
    if name == "i32":
        return b"".join(struct.pack("<i", int(value)) for value in values)
    if name == "f32":
        return b"".join(struct.pack("<f", value) for value in values)
    if name in ("f16", "bf16"):
        bits = f16_bits if name == "f16" else bf16_bits
        return b"".join(struct.pack("<H", bits(value)) for value in values)
    width = shape[-1]
    cuts = blocks(width, len(values) // width, block)
    return b"".join(encode_block(name, values[start : start + count]) for start, count in cuts)


def decode(name: str, shape: list[int], block: int, data: bytes) -> list[float]:
    """Return the values of a packed tensor."""
    if name in ("i32", "f32"):
        return [value for (value,) in struct.iter_unpack("<i" if name == "i32" else "<f", data)]
    if name == "f16":
        return [f16_value(bits) for (bits,) in struct.iter_unpack("<H", data)]
    if name == "bf16":
        return [struct.unpack("<f", b"\0\0" + data[i : i + 2])[0] for i in range(0, len(data), 2)]
    _, bits, trailers = FORMATS[name]
    values: list[float] = []
    offset = 0
    for _, count in blocks(shape[-1], math.prod(shape[:-1]), block):
        size = (count * bits + 7) // 8 + 2 * trailers
        values += decode_block(name, data[offset : offset + size], count)
        offset += size
    return values
