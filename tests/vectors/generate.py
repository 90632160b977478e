"""Write the golden vectors: ``python -m tests.vectors.generate``. Nothing of the package is used."""

from __future__ import annotations

import json
import math
import pathlib
import random
import struct
from collections.abc import Callable

from tests.vectors import compression, conversations, messages, packing
from tests.vectors.wire import Case, crc32c

__all__ = ["FOLDER", "build"]

FOLDER = pathlib.Path(__file__).parent / "v1"
SHAPES = ([1], [7], [64], [65], [4, 3], [2, 33], [3, 1], [1, 2, 2, 5])
WIDE = ([2, 130], [129])
SEED = 20250220

RULES = {
    "f32": ["P1", "P2", "P3", "P17"], "f16": ["P1", "P3", "P17"], "bf16": ["P3", "P17"], "i32": ["P3"],
    "asym2": ["P4", "P5", "P6", "P9", "P14", "P23"], "asym3": ["P10", "P11", "P14", "P23"],
    "asym4": ["P5", "P8", "P9", "P13", "P14", "P19", "P20", "P21"],
    "asym5": ["P10", "P11", "P23"], "asym6": ["P10", "P11", "P12", "P23"], "asym7": ["P10", "P11", "P23"],
    "asym8": ["P9", "P14", "P22"], "nf4": ["P5", "P15", "P24", "P25"], "fp4": ["P15", "P24", "P25"],
    "f8": ["P15", "P26", "P27"],
}  # fmt: skip


def values_of(kind: str, count: int) -> list[float]:
    """Return fp32 values of one kind, the same every time."""
    dice = random.Random(f"{SEED} {kind} {count}")

    def bell(spread: float) -> float:
        # A sum of uniform numbers is nearly normal and, unlike log and cos, the same on every machine.
        return spread * (sum(dice.random() for _ in range(12)) - 6.0)

    makers: dict[str, Callable[[int], float]] = {
        "normal": lambda i: bell(1.0),
        "outlier": lambda i: 27000.0 if i % 41 == 5 else bell(3.0),
        "extremes": lambda i: (65504.0, -65504.0, 0.0, -0.0, 1.0)[i % 5],
        "zeros": lambda i: (-0.0, 0.0)[i % 2],
        "constant": lambda i: 2049.5,
        "tiny": lambda i: (dice.random() - 0.5) * 2.0 ** -(120 + i % 29),
        "halves": lambda i: (i % 31 - 15) / 2.0,
        "ties": lambda i: 1.0 + (2 * (i % 64) + 1) * 2.0**-12,
        "negative": lambda i: -1.0 - abs(bell(1.0)),
        "integers": lambda i: (0, -1, 2**31 - 1, -(2**31), -100, dice.randrange(2**31))[i % 6],
    }
    return [packing.f32(makers[kind](i)) if kind != "integers" else makers[kind](i) for i in range(count)]


def hexed(name: str, values: list[float]) -> str:
    """Return values as 8 hexadecimal digits each: the bits of the fp32 number or of the integer."""
    code = ">i" if name == "i32" else ">f"
    return b"".join(struct.pack(code, int(value) if name == "i32" else value) for value in values).hex()


def tensor(name: str, shape: list[int], block: int, kind: str) -> Case:
    """Return one packed tensor with its values before and after."""
    code, _, trailers = packing.FORMATS[name]
    block = block if trailers else 0
    values = values_of(kind, math.prod(shape))
    data = packing.encode(name, shape, block, values)
    return {
        "name": f"{name}-{'x'.join(map(str, shape))}-{block}-{kind}",
        "rules": [*RULES[name], "B-22"],
        "words": f"{kind} values",
        "format": name,
        "code": code,
        "block": block,
        "shape": shape,
        "values": hexed(name, values),
        "bytes": data.hex(),
        "decoded": hexed(name, packing.decode(name, shape, block, data)),
    }


def tensors(name: str) -> list[Case]:
    """Return the packed tensors of one format."""
    if name == "i32":
        return [tensor(name, shape, 0, "integers") for shape in SHAPES]
    is_block = bool(packing.FORMATS[name][2])
    kinds = ["normal", "outlier", "extremes", "zeros", "constant", "tiny", "halves", "ties", "negative"]
    cases = [tensor(name, shape, 64, kinds[i % 2]) for i, shape in enumerate(SHAPES)]
    cases += [tensor(name, [2, 35], 32, kind) for kind in kinds]
    if is_block:
        cases += [tensor(name, shape, block, "normal") for shape in WIDE for block in (32, 64, 128)]
    return cases


def tensor_refusals() -> list[Case]:
    """Return values that a writer refuses, and payloads whose size a reader refuses."""
    cases = []
    for name in packing.FORMATS:
        if name == "i32":
            continue
        wrong = {"nan": 0x7FC00000, "infinity": 0x7F800000, "minus-infinity": 0xFF800000}
        if name != "f32":
            above = struct.pack(">f", packing.limit(name))
            wrong["too-large"] = int.from_bytes(above, "big") + 1
        for what, bits in wrong.items():
            values = "3f800000" * 4 + f"{bits:08x}" + "00000000" * 3
            case: Case = {
                "name": f"{name}-{what}",
                "rules": ["P18"],
                "words": f"{what} in a tensor",
                "format": name,
            }
            cases.append(case | {"block": 64, "shape": [2, 4], "values": values})
    for name, (_, _, trailers) in packing.FORMATS.items():
        size = len(packing.encode(name, [2, 33], 32, [0.0] * 66))
        for wrong_size in (0, size - 1, size + 1):
            case = {
                "name": f"{name}-size-{wrong_size}",
                "rules": ["P7"],
                "words": f"{wrong_size} bytes for {size}",
            }
            case |= {
                "format": name,
                "block": 32 if trailers else 0,
                "shape": [2, 33],
                "bytes": "00" * wrong_size,
            }
            cases.append(case)
    return cases


def readings() -> list[Case]:
    """Return payloads that no writer makes and that a reader decodes all the same."""
    forms = [
        ("unused-bits", ["P12"], "unused bits that are set", "asym3", [1], "f9" + "003c0000"),
        ("infinite-scale", ["P16"], "an infinite scale", "asym4", [2], "10" + "007c0000"),
        ("negative-zero", ["P14"], "a trailer of negative zeros", "asym8", [1], "05" + "00800080"),
    ]
    cases = []
    for name, rules, words, form, shape, data in forms:
        values = packing.decode(form, shape, 32, bytes.fromhex(data))
        texts = ["nan" if math.isnan(value) else hexed(form, [value]) for value in values]
        case = {"name": name, "rules": rules, "words": words, "format": form, "block": 32, "shape": shape}
        cases.append(case | {"bytes": data, "decoded": texts})
    return cases


def equalized() -> list[Case]:
    """Return tensors whose channels are divided by factors before they are packed."""
    cases = []
    for name, (_, _, trailers) in packing.FORMATS.items():
        if not trailers:
            continue
        for shape, kind in (([4, 3], "normal"), ([2, 33], "outlier"), ([3, 70], "normal")):
            width, dice = shape[-1], random.Random(f"{SEED} factors {shape}")
            factors = [packing.f16(0.5 + 200 * dice.random() ** 4) for _ in range(width)]
            values = values_of(kind, math.prod(shape))
            inverse = [packing.f32(1 / factor) for factor in factors]
            divided = [packing.f32(value * inverse[i % width]) for i, value in enumerate(values)]
            data = packing.encode(name, shape, 32, divided)
            decoded = packing.decode(name, shape, 32, data)
            decoded = [packing.f32(value * factors[i % width]) for i, value in enumerate(decoded)]
            packed = packing.encode("f16", [width], 0, factors)
            cases.append(
                {
                    "name": f"{name}-{kind}-{'x'.join(map(str, shape))}",
                    "rules": ["P28", "P29", "P30", "B-36"],
                    "words": f"{kind} values, equalized",
                    "format": name,
                    "code": packing.FORMATS[name][0],
                    "block": 32,
                    "shape": shape,
                    "equalizer": packed.hex(),
                    "checksum": crc32c(packed),
                    "values": hexed(name, values),
                    "bytes": data.hex(),
                    "decoded": hexed(name, decoded),
                }
            )
    return cases


def build() -> dict[str, str]:
    """Return the text of each file of vectors by its name."""
    groups = {
        "frames": messages.frames(),
        "header-refusals": messages.header_refusals(),
        "map-refusals": messages.map_refusals(),
        "handshakes": conversations.handshakes(),
        "sessions": conversations.sessions(),
        "credit": conversations.credit(),
        "tensor-refusals": tensor_refusals(),
        "tensor-readings": readings(),
        "tensors-equalized": equalized(),
        "tensors-compressed": compression.compressed(),
        **{f"tensors-{name}": tensors(name) for name in packing.FORMATS},
    }
    return {f"{name}.json": _text(name, cases) for name, cases in groups.items()}


def _text(name: str, cases: list[Case]) -> str:
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    return f'{{"protocol": 1, "group": "{name}", "cases": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, text in build().items():
        (FOLDER / file).write_text(text)
