"""Names of the types in which linear layers are held in few bits; torch is not needed to know them."""

from __future__ import annotations

__all__ = ["BITS", "name_of_bits"]

BITS = {"int8": 8, "int4": 4}


def name_of_bits(bits: int | None) -> str:
    """Return the type of weights in so many bits; that of weights that are not quantized for None."""
    return next((name for name, own in BITS.items() if own == bits), "bfloat16")
