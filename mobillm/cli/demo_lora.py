"""What LoRA needs on the same device: ``python -m mobillm.cli.demo_lora --batch 32 --length 64``.

One optimizer step of LoRA (r = 8, attention's q and v) on the same model, batch and length, in a process of
its own, whose peak resident memory is printed as JSON. It is in bf16 where the CPU has instructions for that,
else in fp32: a step in emulated bf16 takes twenty times as long.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import peft
import torch
import transformers

from ..device.arena import peak_bytes
from ..nn.compute import has_native_bf16
from ..nn.gguf import dequantized_directory
from ..nn.models import resolve_model
from ..nn.quiet import quiet_loading

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Take one step and print the peak resident memory in bytes."""
    parser = argparse.ArgumentParser(prog="mobillm.cli.demo_lora")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--task", choices=("classification", "causal-lm"), required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    language = args.task == "causal-lm"
    directory = dequantized_directory(pathlib.Path(resolve_model("smollm2")))
    kind: Any = transformers.AutoModelForSequenceClassification
    if language:
        kind = transformers.AutoModelForCausalLM
    dtype = torch.bfloat16 if has_native_bf16() else torch.float32
    with quiet_loading():
        model = kind.from_pretrained(directory, dtype=dtype)
    task = peft.TaskType.CAUSAL_LM if language else peft.TaskType.SEQ_CLS
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type=task)
    tuned: Any = peft.get_peft_model(model, config)
    tuned.train()
    ids = torch.randint(5, 1000, (args.batch, args.length))
    labels = ids if language else torch.zeros(args.batch, dtype=torch.int64)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad])
    tuned(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
    optimizer.step()
    peak = peak_bytes()
    print(json.dumps({"peak_bytes": peak, "dtype": str(dtype).removeprefix("torch.")}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
