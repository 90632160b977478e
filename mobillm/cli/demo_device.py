"""The demo's device process: ``python -m mobillm.cli.demo_device OPTIONS``.

It prints one JSON object per line: ``{"start": text}``, ``{"progress": {...}}`` about five times a second
and ``{"result": {...}}`` at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..device.arena import peak_bytes, share_arena
from ..device.batches import make_batches
from ..device.client import connect
from ..device.dataset import Example
from ..device.finetune import finetune_async
from ..device.progress import Progress
from ..nn.backbone import Backbone, OnBatchTap
from ..nn.cache import cache_directory
from ..nn.ending import common_ending
from ..nn.evaluation import evaluate
from ..nn.heads import FrozenHead, export_lm_head
from ..nn.models import resolve_model
from ..nn.side import SideNetwork
from ..nn.sidetuned import SideTuned
from ..spec import OptimizerSpec, SessionSpec, SideSpec
from .demo_data import LABELS, load_messages, load_topics

__all__ = ["main"]

BATCH_SIZE = 32
MAX_LENGTH = 128
SHOWN = 3  # held-out messages that are printed with their prediction

LM_BATCH_SIZE = 4
LM_TRAIN, LM_HELDOUT, LM_CHARACTERS = 96, 24, 900
LM_TOKENS = 256
LM_PROMPT = "The try statement"
LM_NEW = 40


class Recorder(Backbone):
    """A backbone that also keeps what a head alone would need: the last tap at each sample's last token."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.features: list[np.ndarray[Any, Any]] = []

    def forward_all(self, batches: Sequence[Sequence[Sequence[int]]], on_tap: OnBatchTap) -> None:
        """Run forward, and keep the last tap's rows of the last tokens."""
        last = len(self.taps) - 1

        def both(number: int, index: int, hidden: torch.Tensor) -> None:
            if index == last:
                ends = torch.tensor([len(sample) for sample in batches[number]]).cumsum(0) - 1
                self.features.append(hidden[ends].float().numpy())
            on_tap(number, index, hidden)

        super().forward_all(batches, both)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one demo session and print what happened as JSON lines."""
    parser = argparse.ArgumentParser(prog="mobillm.cli.demo_device")
    parser.add_argument("--server", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--task", choices=("classification", "causal-lm"), required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--taps", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--trace", type=pathlib.Path)
    args = parser.parse_args(argv)
    share_arena()  # before torch starts threads
    torch.set_num_threads(1)
    work = _classify if args.task == "classification" else _continue
    try:
        _print({"result": work(args)})
    except KeyboardInterrupt:
        return 130
    return 0


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _on_progress(progress: Progress) -> None:
    _print({"progress": dataclasses.asdict(progress)})


def _load(args: argparse.Namespace, *, lm_head: bool) -> Recorder:
    backbone = Backbone.from_pretrained(
        resolve_model("smollm2"), dtype="bfloat16", taps=args.taps, lm_head=lm_head
    )
    return Recorder(backbone.model, backbone.tokenizer, name=backbone.name, taps=backbone.taps)


def _first(
    limit: int | None, train: list[Example], heldout: list[Example]
) -> tuple[list[Example], list[Example]]:
    return (train, heldout) if limit is None else (train[:limit], heldout[: max(8, limit // 4)])


def _classify(args: argparse.Namespace) -> dict[str, Any]:
    train, heldout = _first(args.limit, *load_messages(cache_directory()))
    backbone = _load(args, lm_head=False)
    report = asyncio.run(
        finetune_async(
            backbone,
            train,
            server=args.server,
            token=args.token,
            heldout=heldout,
            labels=LABELS,
            batch_size=BATCH_SIZE,
            max_length=MAX_LENGTH,
            output=args.output,
            trace=args.trace,
            on_start=lambda text: _print({"start": text}),
            on_progress=_on_progress,
            epochs=args.epochs,
        )
    )
    peak = peak_bytes()
    head = asyncio.run(_head_only(args, backbone, train, heldout))
    side = SideTuned.from_pretrained(backbone, args.output)
    shown = heldout[:SHOWN]
    predictions = side.predict([example.text for example in shown])
    return {
        "report": dataclasses.asdict(report),
        "peak_bytes": peak,
        "head_only": head,
        "longest": max(len(ids) for ids in backbone.tokenize([e.text for e in train], MAX_LENGTH)),
        "predictions": [
            {
                "text": example.text,
                "label": prediction.label,
                "score": max(prediction.scores),
                "truth": LABELS[int(example.target or 0)],
            }
            for example, prediction in zip(shown, predictions, strict=True)
        ],
    }


async def _head_only(
    args: argparse.Namespace, backbone: Recorder, train: list[Example], heldout: list[Example]
) -> dict[str, float]:
    """Train a head on the frozen model's last hidden state: one token per sample, from the same pass."""
    ending = common_ending(example.text for example in train)
    batches = [
        batch
        for examples, apart in ((train, False), (heldout, True))
        for batch in make_batches(
            backbone,
            examples,
            task="classification",
            batch_size=BATCH_SIZE,
            max_length=MAX_LENGTH,
            seed=0,
            heldout=apart,
            ending=ending,
        )
    ]
    model = dataclasses.replace(backbone.model_spec(), taps=(backbone.layers,))
    spec = SessionSpec(
        task="classification",
        outputs=len(LABELS),
        model=model,
        side=SideSpec(kind="head", dropout=0.0),
        # The best of lr 1e-3 to 3e-2 and 4 to 60 epochs: the baseline is not to be weaker than it can be.
        optimizer=OptimizerSpec(lr=3e-3),
        epochs=16,
        batches=sum(not batch.heldout for batch in batches),
    )
    async with connect(args.server, token=args.token) as client:
        session = await client.open(spec)
        for batch, features in zip(batches, backbone.features, strict=True):
            targets = np.asarray(batch.targets, dtype=np.int64)
            await session.submit([features], [1] * len(features), targets, heldout=batch.heldout)
        await session.finish()
        await session.wait_finished()
        return (await session.evaluate()).values


def _continue(args: argparse.Namespace) -> dict[str, Any]:
    train, heldout = _first(args.limit, *load_topics(LM_TRAIN, LM_HELDOUT, LM_CHARACTERS))
    backbone = _load(args, lm_head=True)
    report = asyncio.run(
        finetune_async(
            backbone,
            train,
            server=args.server,
            token=args.token,
            task="causal-lm",
            heldout=heldout,
            epochs=args.epochs,
            batch_size=LM_BATCH_SIZE,
            max_length=LM_TOKENS,
            output=args.output,
            trace=args.trace,
            on_start=lambda text: _print({"start": text}),
            on_progress=_on_progress,
        )
    )
    peak = peak_bytes()
    tuned = SideTuned.from_pretrained(backbone, args.output)
    # A side network that was not trained yet adds nothing: this is the frozen model.
    head = FrozenHead.from_bytes(export_lm_head(backbone.model))
    frozen = SideTuned(backbone, SideNetwork.from_spec(tuned.config.spec, head), tuned.config)
    batches = make_batches(
        backbone, heldout, task="causal-lm", batch_size=LM_BATCH_SIZE, max_length=LM_TOKENS, seed=0
    )
    samples = [(batch.input_ids, batch.targets) for batch in batches]
    return {
        "report": dataclasses.asdict(report),
        "peak_bytes": peak,
        "longest": LM_TOKENS,
        "before": evaluate(frozen, samples)["perplexity"],
        "after": evaluate(tuned, samples)["perplexity"],
        "prompt": LM_PROMPT,
        "text_before": frozen.generate(LM_PROMPT, max_new_tokens=LM_NEW),
        "text_after": tuned.generate(LM_PROMPT, max_new_tokens=LM_NEW),
    }


if __name__ == "__main__":
    sys.exit(main())
