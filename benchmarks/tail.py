"""What does a sample cost the device with LoRA above one tap, and what with LoRA in the whole model?

``python -m benchmarks.tail --data train.tsv --json F``. The same batches of real sentences go through the
layers below the tap and are packed, as ``mobillm finetune --side-kind tail`` does, and through a step of
PEFT's LoRA (rank 8, the backbone in bf16), in turns, one thread. Sending is not in it.

Keys: ``milliseconds.<method>`` of a sample, medians of the rounds, for ``tail``, ``lora`` (every linear
layer) and ``lora_qv`` (query and value projections); ``spread.<method>`` (least and largest);
``ratio.<lora>_over_tail`` (of one epoch; the device computes one, whatever their number);
``bytes_per_token``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import peft
import torch
import transformers
from torch import Tensor

from benchmarks.harness import write_json
from mobillm.defaults import TAIL_DEFAULTS
from mobillm.device.dataset import load_examples
from mobillm.device.taps import TapPacker
from mobillm.nn.adapter import MODULES
from mobillm.nn.loading import model_source
from mobillm.nn.quiet import quiet_loading
from mobillm.nn.streamed import StreamedBackbone
from mobillm.nn.tail import TailBlobs
from mobillm.spec import OptimizerSpec, SessionSpec, SideSpec

__all__ = ["main"]

BATCH = 32
Batches = list[tuple[list[list[int]], list[int]]]


def device_pass(backbone: StreamedBackbone, batches: Batches) -> Callable[[], int]:
    """Return what the device does with the batches; it returns the packed bytes."""
    spec = SessionSpec(
        task="classification",
        outputs=2,
        model=backbone.model_spec(),
        side=SideSpec(kind="tail"),
        optimizer=OptimizerSpec(schedule="constant"),
        tail=TailBlobs(backbone).spec,
    )

    def work() -> int:
        packer, sizes = TapPacker(spec, {}), []

        def on_tap(_batch: int, index: int, hidden: Tensor) -> None:
            sizes.append(packer.pack(index, hidden, None).header.size)

        backbone.forward_all([ids for ids, _ in batches], on_tap)
        return sum(sizes)

    return work


def lora_steps(source: str, modules: Sequence[str], batches: Batches) -> Callable[[], None]:
    """Return LoRA's steps on the batches."""
    kind: Any = transformers.AutoModelForSequenceClassification
    model = kind.from_pretrained(source, dtype=torch.bfloat16, num_labels=2).train()
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=list(modules), task_type=peft.TaskType.SEQ_CLS
    )
    wrapped: Any = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW((p for p in wrapped.parameters() if p.requires_grad), lr=5e-4)

    def work() -> None:
        for samples, labels in batches:
            longest = max(map(len, samples))
            ids = torch.tensor([sample + [0] * (longest - len(sample)) for sample in samples])
            mask = torch.tensor([[1] * len(s) + [0] * (longest - len(s)) for s in samples])
            out = wrapped(input_ids=ids, attention_mask=mask, labels=torch.tensor(labels), use_cache=False)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return work


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both in turns and print the figures."""
    parser = argparse.ArgumentParser(prog="benchmarks.tail", description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    source, _ = model_source("smollm2", None, None)
    with quiet_loading():
        backbone = StreamedBackbone.from_pretrained(source, dtype="bfloat16", taps=TAIL_DEFAULTS.taps)
    found = load_examples(args.data, task="classification", limit=BATCH * args.batches).examples
    examples = sorted(found, key=lambda example: len(example.text))  # both with little padding
    batches: Batches = []
    for first in range(0, len(examples), BATCH):
        part = examples[first : first + BATCH]
        ids = backbone.tokenize([example.text for example in part], 128)
        batches.append((ids, [int(example.target or 0) for example in part]))
    ours = device_pass(backbone, batches)
    work: dict[str, Callable[[], object]] = {"tail": ours}
    with quiet_loading():
        work["lora"] = lora_steps(source, MODULES["llama"], batches)
        work["lora_qv"] = lora_steps(source, ["q_proj", "v_proj"], batches)
    tokens = sum(len(sample) for ids, _ in batches for sample in ids)
    size = ours()
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(args.rounds):
        for name, run in work.items():
            start = time.monotonic()
            run()
            times[name].append(1e3 * (time.monotonic() - start) / len(examples))
    figures: dict[str, Any] = {"samples": len(examples), "tokens": tokens}
    for name, values in times.items():
        figures[f"milliseconds.{name}"] = round(statistics.median(values), 2)
        figures[f"spread.{name}"] = [round(min(values), 2), round(max(values), 2)]
    for name in ("lora", "lora_qv"):
        ratio = figures[f"milliseconds.{name}"] / figures["milliseconds.tail"]
        figures[f"ratio.{name}_over_tail"] = round(ratio, 2)
    figures["bytes_per_token"] = round(size / tokens, 1)
    if args.json is not None:
        write_json(args.json, figures)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
