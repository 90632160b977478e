from __future__ import annotations

import numpy as np
import pytest

from mobillm.formats import Format
from mobillm.kernels import reference

# The examples of docs/packed-tensors.md, worked out by hand.
EXAMPLES = [
    (Format.ASYM4, list(range(16)), "10 32 54 76 98 ba dc fe 00 3c 00 00"),
    (Format.ASYM8, [0, 255], "00 ff 00 3c 00 00"),
    (Format.ASYM2, [0, 85, 170, 255], "e4 00 54 e0 4f"),
    (Format.NF4, [-2, 0, 2], "70 0f 00 40"),
    (Format.FP4, [-2, 0, 1, 2], "0b 35 00 40"),
    (Format.F8, [-2, 0, 1, 2], "fe 00 76 7e 00 40"),
    (Format.F32, [1, -0.0], "00 00 80 3f 00 00 00 80"),
    (Format.F16, [1, 65504, 2049], "00 3c ff 7b 00 68"),
    (Format.BF16, [1, 1.00390625, 1.01171875], "80 3f 80 3f 82 3f"),
]


@pytest.mark.parametrize(("fmt", "values", "packed"), EXAMPLES)
def test_quantize_gives_the_bytes_of_the_examples(fmt: Format, values: list[float], packed: str) -> None:
    """The rules lead to the bytes that a person finds with pencil and paper."""
    assert reference.quantize(np.array(values, np.float32), fmt) == bytes.fromhex(packed)


@pytest.mark.parametrize(
    ("codes", "packed"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 1, 2], "88 c6 fa 11"),
        ([0, 7, 1, 6, 2, 5, 3, 4, 4, 3, 5, 2, 6, 1, 7, 0], "88 77 c6 39 fa 05"),
    ],
)
def test_three_bit_codes_fill_byte_planes(codes: list[int], packed: str) -> None:
    """Eight segments share the planes; the rest follows as a stream."""
    assert reference.pack_codes(codes, 3) == bytes.fromhex(packed)
    assert reference.unpack_codes(bytes.fromhex(packed), 3, len(codes)) == codes


def test_i32_keeps_the_sign() -> None:
    """Integers are two's complement, lowest byte first."""
    packed = reference.quantize(np.array([-2, 1], np.int32), Format.I32)
    assert packed == bytes.fromhex("fe ff ff ff 01 00 00 00")
    assert reference.dequantize(packed, Format.I32, (2,)).tolist() == [-2, 1]


def test_dequantize_reads_each_block_with_its_own_trailer() -> None:
    """A row of a full and a short block, twice, decodes to constants."""
    x = np.repeat(np.array([[1, 2], [3, 4]], np.float32), [32, 3], axis=1)
    packed = reference.quantize(x, Format.ASYM8, 32)
    assert (reference.dequantize(packed, Format.ASYM8, x.shape, 32) == x).all()
