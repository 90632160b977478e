"""One training run on the device alone, in this process: full fine-tuning, LoRA, BitFit, or the head.

``python -m benchmarks.baselines METHOD TASK --data DIR --seed S --epochs E --lr LR``. SmolLM2-135M through
transformers and PEFT: frozen weights in bf16, trained ones in fp32, the forward pass in bf16 by autocast; all
in fp32 where the CPU has no instructions for bf16, as ``mobillm finetune`` computes there.
Batches, their order by length and the closing of texts are those of ``mobillm finetune``; AdamW, 10 %
warm-up, linear decay, gradients clipped to 1.

It prints a line of JSON: ``curve`` holds ``[samples, seconds, score]`` after each half epoch, where seconds
are the CPU time of training so far, without loading and evaluating. With ``--search`` a fifth of the
training samples is held out and judged instead of dev. With ``--steps N`` it prints what a sample took in
steps on batches that stand for all of an epoch, from the shortest to the longest.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import peft
import torch
import transformers
from torch.nn.functional import cross_entropy

from benchmarks.tasks import TASKS
from mobillm.device.batches import make_batches
from mobillm.device.dataset import Example
from mobillm.device.pipeline import TokenBatch
from mobillm.nn.backbone import Backbone
from mobillm.nn.compute import compute_type
from mobillm.nn.cross_entropy import IGNORED
from mobillm.nn.ending import common_ending
from mobillm.nn.evaluation import binary_scores
from mobillm.nn.gguf import dequantized_directory
from mobillm.nn.models import resolve_model
from mobillm.nn.quiet import quiet_loading

__all__ = ["BATCH", "MAX_LENGTH", "METHODS", "main"]

MAX_LENGTH = 128
BATCH = 16
RANK = 8
WARM_UP = 0.1
HELD_OUT = 0.2  # of the training samples, in a search

METHODS = ("full", "lora", "lora_checkpointing", "bitfit", "head")


class Trainee:
    """The whole model, of which a method trains a part.

    Args:
        method: one of :data:`METHODS`.
        seed: of what is initialised.
        language: whether it continues texts instead of classifying them.

    """

    def __init__(self, method: str, seed: int, language: bool = False) -> None:
        torch.manual_seed(seed)
        directory = dequantized_directory(pathlib.Path(resolve_model("smollm2")))
        kind: Any = transformers.AutoModelForSequenceClassification
        settings: dict[str, Any] = {"num_labels": 2}
        if language:
            kind, settings = transformers.AutoModelForCausalLM, {}
        self.language = language
        self.dtype = compute_type("auto", torch.bfloat16)
        with quiet_loading():
            self.model = kind.from_pretrained(directory, dtype=self.dtype, **settings)
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self.pad = self.model.config.pad_token_id = int(tokenizer.pad_token_id)
        self.backbone = Backbone.from_model(self.model.model, tokenizer, name="smollm2")
        getattr(self, f"_{method}")()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self.trained:
            parameter.data = parameter.data.float()

    def _full(self) -> None:
        self.model.requires_grad_(True)

    def _lora(self) -> None:
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            lora_dropout=0.05,
            target_modules=["q_proj", "v_proj"],
            task_type=peft.TaskType.CAUSAL_LM if self.language else peft.TaskType.SEQ_CLS,
        )
        self.model = peft.get_peft_model(self.model, config)

    def _lora_checkpointing(self) -> None:
        self.model.gradient_checkpointing_enable()
        self.model.enable_input_require_grads()
        self._lora()

    def _bitfit(self) -> None:
        """Train norms, since this model has no biases, and the head."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.endswith("norm.weight") or name.startswith("score"))

    def _head(self) -> None:
        self.model.requires_grad_(False)
        self.model.score.requires_grad_(True)

    def logits(self, batch: TokenBatch) -> torch.Tensor:
        """Run the model forward; fp32 [samples, classes], or [tokens, vocabulary] of all samples in turn."""
        longest = max(map(len, batch.input_ids))
        ids = torch.full((len(batch.input_ids), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(batch.input_ids):
            ids[row, : len(sample)] = torch.tensor(sample)
            mask[row, : len(sample)] = 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return (found[mask.bool()] if self.language else found).float()

    @torch.no_grad()
    def score(self, batches: Sequence[TokenBatch], metric: str) -> float:
        """Return the metric over batches, in % but for perplexity."""
        self.model.eval()
        if metric == "perplexity":
            sums = [
                cross_entropy(self.logits(batch), targets_of(batch), reduction="sum") for batch in batches
            ]
            count = sum(int((targets_of(batch) != IGNORED).sum()) for batch in batches)
            return math.exp(float(sum(sums)) / count)
        found = torch.cat([self.logits(batch).argmax(1) for batch in batches])
        classes = torch.cat([targets_of(batch) for batch in batches])
        if metric == "accuracy":
            return 100 * float((found == classes).double().mean())
        return 100 * binary_scores(found, classes)[metric]


def targets_of(batch: TokenBatch) -> torch.Tensor:
    """Return a batch's classes [samples], or next tokens [tokens]; those that do not count are IGNORED."""
    return torch.tensor([int(target) for target in batch.targets])


def representative(batches: Sequence[TokenBatch], count: int) -> list[TokenBatch]:
    """Return as many batches as evenly spaced ranks of all, ordered by what a padded step computes."""
    ordered = sorted(batches, key=lambda batch: len(batch.input_ids) * max(map(len, batch.input_ids)))
    return [ordered[len(ordered) * (2 * rank + 1) // (2 * count)] for rank in range(count)]


def train(
    trainee: Trainee, epochs: Sequence[Sequence[TokenBatch]], lr: float
) -> Iterator[tuple[int, float, bool]]:
    """Train; yield after each step the samples and CPU seconds so far, and whether half an epoch ended."""
    optimizer = torch.optim.AdamW(trainee.trained, lr=lr, weight_decay=0.01, fused=True)
    steps = sum(map(len, epochs))
    warm = max(1, round(WARM_UP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    samples, seconds = 0, 0.0
    for batches in epochs:
        for number, batch in enumerate(batches, 1):
            begun = time.process_time()
            trainee.model.train()
            cross_entropy(trainee.logits(batch), targets_of(batch)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(trainee.trained, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            samples += len(batch.input_ids)
            seconds += time.process_time() - begun
            yield samples, seconds, number in (len(batches) // 2, len(batches))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train once and return what is printed."""
    task = TASKS[args.task]
    dataset = task.load(args.data, "train")
    judged = task.load(args.data, "dev")
    if args.search:
        dataset, judged = dataset.split(HELD_OUT, 0)
    language = task.kind == "causal-lm"
    trainee = Trainee(args.method, args.seed, language)
    texts = (example.pair or example.text for example in dataset.examples)
    ending = "" if language else common_ending(texts)

    def batches(examples: Sequence[Example], seed: int) -> list[TokenBatch]:
        return make_batches(
            trainee.backbone,
            examples,
            task=task.kind,
            batch_size=BATCH,
            max_length=MAX_LENGTH,
            seed=seed,
            ending=ending,
        )

    epochs = [batches(dataset.examples, 1000 * epoch + args.seed) for epoch in range(args.epochs)]
    if args.steps:
        epochs = [representative(epochs[0], args.steps)]
    dev = batches(judged.examples, 0)
    curve: list[list[float]] = []
    for step, (samples, seconds, half) in enumerate(train(trainee, epochs, args.lr), 1):
        if step == args.steps:
            return {"seconds_per_sample": seconds / samples, "samples": samples}
        if args.steps or not half:
            continue
        curve.append([samples, round(seconds, 2), round(trainee.score(dev, task.metric), 3)])
        print(f"{args.method} {args.task} seed {args.seed} lr {args.lr:g}: {curve[-1]}", file=sys.stderr)
    return {"curve": curve, "trained": sum(parameter.numel() for parameter in trainee.trained)}


def main(argv: Sequence[str] | None = None) -> int:
    """Train once and print a line of JSON."""
    parser = argparse.ArgumentParser(prog="benchmarks.baselines", description=__doc__)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="of the task's files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--steps", type=int, default=0, metavar="N")
    args = parser.parse_args(argv)
    if args.method == "head" and TASKS[args.task].kind == "causal-lm":
        parser.error("head trains a classifier; choose another method")
    torch.set_num_threads(1)
    print(json.dumps(run(args)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
