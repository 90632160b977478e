"""Quantizers of other projects behind one interface, for comparisons; each is optional.

A peer quantizes and packs with its own format that is nearest to ours, with blocks of 64 where it has a
choice. Importing this module imports none of them.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mobillm.formats import Format

__all__ = ["PEERS", "Peer", "bitsandbytes", "gguf", "installed", "nearest", "torchao"]

PEERS = ("bitsandbytes", "torchao", "gguf")
BLOCK = 64

_GGUF = {2: "Q4_0", 3: "Q4_0", 4: "Q4_0", 5: "Q5_0", 6: "Q8_0", 7: "Q8_0", 8: "Q8_0"}
_GGUF_BITS = {"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q8_0": 8.5}


@dataclasses.dataclass(frozen=True)
class Peer:
    """One format of a peer, for tensors of one shape.

    Attributes:
        label: the peer's name of the format.
        bits: bits of a value, with scales.
        quantize: takes the fp32 tensor and returns whatever ``dequantize`` wants.
        dequantize: returns fp32 values in some shape.

    """

    label: str
    bits: float
    quantize: Callable[[torch.Tensor], Any]
    dequantize: Callable[[Any], Any]


def installed(name: str) -> bool:
    """Tell whether a peer can be imported."""
    return importlib.util.find_spec(name) is not None


def nearest(name: str, fmt: Format) -> Peer:
    """Return the format of peer ``name`` that is nearest to ours."""
    if name == "gguf":
        return gguf(_GGUF[fmt.bits])
    if name == "torchao":
        return torchao(fmt.bits)
    if fmt.bits > 6:
        return bitsandbytes("8bit")
    return bitsandbytes("fp4" if fmt is Format.FP4 else "nf4")


def bitsandbytes(kind: str) -> Peer:
    """Return ``nf4``, ``fp4`` or ``8bit`` of bitsandbytes, with fp32 scales."""
    functional: Any = importlib.import_module("bitsandbytes.functional")
    if kind == "8bit":
        return Peer(
            "bitsandbytes 8-bit",
            8.5,
            # The flat tensor: rows that are no multiple of the block are decoded wrongly.
            lambda x: functional.quantize_blockwise(x.reshape(-1), blocksize=BLOCK),
            lambda packed: functional.dequantize_blockwise(*packed),
        )
    return Peer(
        f"bitsandbytes {kind.upper()}",
        4.5,
        lambda x: functional.quantize_4bit(
            x.reshape(-1), blocksize=BLOCK, quant_type=kind, compress_statistics=False
        ),
        lambda packed: functional.dequantize_4bit(*packed),
    )


def torchao(bits: int) -> Peer:
    """Return torchao's affine quantization with an fp32 scale and an int32 zero point, bit-packed."""
    primitives: Any = importlib.import_module("torchao.quantization.quant_primitives")
    packing: Any = importlib.import_module("torchao.prototype.dtypes.uintx.bitpacking")
    top = (1 << bits) - 1

    def quantize(x: torch.Tensor) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        grain = (1, BLOCK)
        scale, zero = primitives.choose_qparams_affine(
            rows, primitives.MappingType.ASYMMETRIC, grain, torch.uint8, 0, top
        )
        codes = primitives.quantize_affine(rows, grain, scale, zero, torch.uint8, 0, top)
        return (packing.pack(codes, bits, -1) if bits < 8 else codes), scale, zero

    def dequantize(packed: Any) -> Any:
        codes, scale, zero = packed
        codes = packing.unpack(codes, bits, -1) if bits < 8 else codes
        return primitives.dequantize_affine(codes, (1, BLOCK), scale, zero, torch.uint8, 0, top)

    return Peer(f"torchao u{bits}", bits + 1.0, quantize, dequantize)


def gguf(kind: str) -> Peer:
    """Return a format of gguf's numpy code, for example ``Q4_0``; its blocks have 32 values."""
    quants: Any = importlib.import_module("gguf.quants")
    code = importlib.import_module("gguf").GGMLQuantizationType[kind]
    return Peer(
        f"gguf {kind}",
        _GGUF_BITS[kind],
        lambda x: quants.quantize(x.reshape(-1, x.shape[-1]).numpy(), code),
        lambda packed: quants.dequantize(packed, code),
    )
