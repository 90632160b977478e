"""What does zstd leave of packed taps, how long does it take, and below which link rate does that pay?

``python -m benchmarks.compression --json benchmarks/results/compression.json``. SmolLM2-135M reads Python's
own reference manual in three ways: ``manual``, sequences of 256 tokens; ``sentences``, single ones; and
``phrases``, each sentence and its beginnings, as data sets have them that repeat themselves: tokens behind
the same beginning have the same hidden states. Every fourth layer is tapped, equalized by its first tensor,
and packed with blocks of 64, 1,024 tokens to a tensor. Compressing and decompressing are those of
:mod:`mobillm.protocol`, on one thread, each tensor checked to come back the same. Compressing a tensor pays
where the link needs longer for the bytes that are saved than the compressor needs: below ``break_even``;
below ``both_sides`` where the server's time counts too, which it does only if the link waits for it.

Keys, for each kind of texts and widths of 2, 3, 4 and 8 bits: ``<texts>.asym<b>.share`` (of the packed bytes
that is left), ``.compress`` and ``.decompress`` (MB of packed bytes a second), ``.break_even`` and
``.both_sides`` (Mbit/s), and ``.sent`` (the share of tensors that zstd made smaller).
"""

from __future__ import annotations

import argparse
import math
import pathlib
import pydoc_data.topics
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness import write_json
from mobillm.codec import PackedTensor, calibrate, pack
from mobillm.formats import Format
from mobillm.nn.backbone import Backbone
from mobillm.protocol import compress, decompress

WIDTHS = (2, 3, 4, 8)
BLOCK = 64
TOKENS = 1024  # of a tensor
LENGTH = 256  # tokens of a text, at most
TAPS = "every:4"


def texts(tokens: int) -> dict[str, list[str]]:
    """Return each kind of texts, with about so many tokens."""
    topics: dict[str, str] = pydoc_data.topics.topics
    manual = " ".join(" ".join(topics[name].split()) for name in sorted(topics))
    sequences = tokens // LENGTH
    step = len(manual) // sequences
    sentences = [text for text in re.split(r"(?<=[.:]) ", manual) if 30 <= len(text) <= 150]
    sentences = sentences[: tokens // 20]
    phrases = []
    for words in (sentence.split() for sentence in sentences[: tokens // 36]):
        phrases += [" ".join(words[: len(words) * part // 4]) for part in (4, 2, 1)]
    return {
        "manual": [manual[i * step : (i + 1) * step] for i in range(sequences)],
        "sentences": sentences,
        "phrases": [phrase for phrase in phrases if phrase],
    }


def hidden_states(backbone: Backbone, samples: Sequence[str]) -> list[torch.Tensor]:
    """Return the hidden states of each tap, bf16 [tokens, width] as a backbone in bf16 has them."""
    found: list[torch.Tensor] = []
    inputs = backbone.tokenize(samples, LENGTH)
    backbone.forward(inputs, lambda _, hidden: found.append(hidden.to(torch.bfloat16)))
    return found


def tensors(taps: Sequence[torch.Tensor], bits: int) -> list[PackedTensor]:
    """Pack all whole tensors of each tap, [tokens, width], as a session does."""
    packed = []
    for hidden in taps:
        parts = [hidden[start : start + TOKENS] for start in range(0, len(hidden) - TOKENS + 1, TOKENS)]
        equalizer = calibrate(parts[0], "tap")
        packed += [pack(part, Format.parse(f"asym{bits}"), BLOCK, "tap", equalizer) for part in parts]
    return packed


def seconds(work: Callable[[], object], rounds: int) -> float:
    """Return the median time of some rounds, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure(packed: Sequence[PackedTensor], rounds: int) -> dict[str, float]:
    """Return the figures of one width."""
    found = [(tensor, compress(tensor.payload)) for tensor in packed]
    frames = [(frame, tensor.header.size) for tensor, frame in found if frame is not None]
    for tensor, frame in found:
        if frame is not None and decompress(frame, tensor.header.size) != tensor.payload:
            raise RuntimeError("a tensor does not come back the same")
    size = sum(tensor.header.size for tensor in packed)
    left = sum(tensor.header.size if frame is None else frame.nbytes for tensor, frame in found)
    forth = seconds(lambda: [compress(tensor.payload) for tensor in packed], rounds)
    back = seconds(lambda: [decompress(frame, size) for frame, size in frames], rounds)
    saved = 8 * (size - left) / 1e6  # Mbit
    return {
        "share": left / size,
        "sent": len(frames) / len(packed),
        "compress": size / forth / 1e6,
        "decompress": size / back / 1e6 if frames else math.inf,
        "break_even": saved / forth,
        "both_sides": saved / (forth + back),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=3072, help="of each kind of texts")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=pathlib.Path, help="where to write the figures")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    # Processors without bf16 compute many times as long in it.
    backbone = Backbone.from_pretrained("smollm2", dtype="float32", taps=TAPS)
    results: dict[str, float] = {}
    columns = ("compress", "decompress", "break_even", "both_sides")
    table = Table("texts", "format", "share", *columns)
    for name, samples in texts(args.tokens).items():
        taps = hidden_states(backbone, samples)
        for bits in WIDTHS:
            figures = measure(tensors(taps, bits), args.rounds)
            results |= {f"{name}.asym{bits}.{key}": value for key, value in figures.items()}
            row = (f"{figures['share']:.3f}", *(f"{figures[key]:,.0f}" for key in columns))
            table.add_row(name, f"asym{bits}", *row)
    Console().print(table)
    write_json(args.json, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
