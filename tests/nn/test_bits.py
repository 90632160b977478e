"""Tests of the names of quantized types."""

from __future__ import annotations

from mobillm.nn.bits import BITS, name_of_bits


def test_names() -> None:
    """Each type is found by its bits; weights of all bits are in bf16."""
    assert [name_of_bits(bits) for bits in BITS.values()] == list(BITS)
    assert name_of_bits(None) == "bfloat16"
