"""How much accuracy does each packed format cost, and how many bytes does it take?

``python -m benchmarks.downstream --data SST-2 --json downstream.json``. SmolLM2-135M runs once over the first
3,000 training sentences and the dev sentences of SST-2 (``--data`` is the folder with ``train.tsv`` and
``dev.tsv``); its hidden states are kept in the cache. Each format then packs them as a device does, and a
ladder is trained from the packed bytes as the server does: the first epoch batch by batch, later ones from an
activation log. The weights are evaluated on unpacked hidden states, as the device uses them.

Keys: ``<format>.<plain or equalized>.accuracy`` (mean over the seeds, in %), ``.seeds``, ``.loss``,
``.below_fp16`` (points) and ``.bytes_per_sample`` (lengths, targets and equalizers included).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.harness import write_json
from mobillm.codec import pack_integers
from mobillm.device.batches import make_batches
from mobillm.device.dataset import Example, load_examples
from mobillm.device.packing import pack_targets
from mobillm.device.pipeline import TokenBatch
from mobillm.device.taps import TapPacker
from mobillm.nn.backbone import Backbone
from mobillm.nn.cache import cache_directory
from mobillm.nn.ending import common_ending
from mobillm.nn.side import SideNetwork
from mobillm.protocol import EQUALIZERS, LENGTHS, TARGETS
from mobillm.server.batch import Batch
from mobillm.server.equalizers import Equalizers
from mobillm.server.log import ActivationLog
from mobillm.server.replay import Replay
from mobillm.server.trainer import Trainer
from mobillm.spec import CodecSpec, SessionSpec

SENTENCES = 3000
EPOCHS = 4
BATCH = 32
MAX_LENGTH = 128
COLUMNS = {"accuracy": ".2f", "below_fp16": ".2f", "loss": ".3f", "bytes_per_sample": ",.0f"}

Taps = dict[tuple[int, ...], torch.Tensor]  # token ids to hidden states [taps, tokens, width]


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """One training run: accuracy on dev in %, mean loss there, and packed bytes of a sample."""

    accuracy: float
    loss: float
    size: float


class Study:
    """The data, the hidden states, and training from them."""

    def __init__(self, data: pathlib.Path) -> None:
        self.backbone = Backbone.from_pretrained("smollm2", dtype="bfloat16", taps="every:4")
        self._train = load_examples(data / "train.tsv", task="classification", limit=SENTENCES).examples
        self._ending = common_ending(example.text for example in self._train)
        self._dev = self._batches(load_examples(data / "dev.tsv", task="classification").examples, 0)
        self._taps = self._load([*self.batches(0), *self._dev])

    def batches(self, seed: int) -> list[TokenBatch]:
        """Return the training batches of a seed, in the order in which a device sends them."""
        return self._batches(self._train, seed)

    def _batches(self, examples: Sequence[Example], seed: int) -> list[TokenBatch]:
        return make_batches(
            self.backbone,
            examples,
            task="classification",
            batch_size=BATCH,
            max_length=MAX_LENGTH,
            seed=seed,
            ending=self._ending,
        )

    def _load(self, batches: Sequence[TokenBatch]) -> Taps:
        """Return the hidden states of all samples, from the cache if they are there."""
        samples = sorted(
            {tuple(ids) for batch in batches for ids in batch.input_ids}, key=lambda ids: (len(ids), ids)
        )
        digest = hashlib.sha256(repr((self.backbone.model_spec(), samples)).encode()).hexdigest()[:16]
        path = cache_directory() / f"downstream-{digest}.safetensors"
        if not path.exists():
            found: list[torch.Tensor] = []
            for start in track(range(0, len(samples), BATCH), "forward"):
                self.backbone.forward(
                    samples[start : start + BATCH], lambda _, hidden: found.append(hidden.clone())
                )
            taps = len(self.backbone.model_spec().taps)
            states = torch.stack([torch.cat(found[tap::taps]) for tap in range(taps)])
            beside = path.with_suffix(".new")
            safetensors.torch.save_file({"taps": states}, beside)
            os.replace(beside, path)
        parts: Any = safetensors.torch.load_file(path)["taps"]
        return dict(zip(samples, parts.split([len(ids) for ids in samples], 1), strict=True))

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Return the hidden states [taps, tokens, width] of a batch."""
        return torch.cat([self._taps[tuple(ids)] for ids in batch.input_ids], 1)

    def packed(self, spec: SessionSpec, batches: Sequence[TokenBatch]) -> Iterator[Batch]:
        """Pack batches as a device does; yield them as a server holds them."""
        packer = TapPacker(spec, {})
        sent: set[int] = set()
        for seq, batch in enumerate(batches, 1):
            tensors = {
                LENGTHS: pack_integers([len(ids) for ids in batch.input_ids], "lengths"),
                TARGETS: pack_targets(spec, batch.targets),
            }
            for tap, hidden in enumerate(self.hidden(batch)):
                packed = tensors[tap] = packer.pack(tap, hidden)
                if packed.equalizer is not None and tap not in sent:
                    tensors[EQUALIZERS + tap] = packed.equalizer.packed
                    sent.add(tap)
            headers = {number: tensor.header for number, tensor in tensors.items()}
            payloads = {number: bytes(tensor.payload) for number, tensor in tensors.items()}
            yield Batch(seq, len(batch.input_ids), False, headers, payloads)

    def run(self, codec: CodecSpec, seed: int) -> Result:
        """Train with one format and one seed."""
        batches = self.batches(seed)
        spec = SessionSpec(
            task="classification",
            outputs=2,
            model=self.backbone.model_spec(),
            codec=codec,
            epochs=EPOCHS,
            batches=len(batches),
            seed=seed,
        )
        equalizers = Equalizers()
        trainer = Trainer(spec, {}, equalizers=equalizers)
        size = 0
        with tempfile.TemporaryDirectory() as place:
            log = ActivationLog(pathlib.Path(place) / "log")
            for batch in self.packed(spec, batches):
                batch.check(spec)
                equalizers.check(batch)
                equalizers.add(batch)
                log.append([batch])
                size += batch.size
                trainer.step(batch)
            replay = Replay(spec, log)
            for epoch in range(2, EPOCHS + 1):
                for index in range(len(replay)):
                    trainer.step(*replay.batch(epoch, index))
            log.close()
        return self._evaluate(spec, trainer.weights(), size / SENTENCES)

    @torch.no_grad()
    def _evaluate(self, spec: SessionSpec, weights: bytes, size: float) -> Result:
        network = SideNetwork.from_spec(spec, None)
        network.load_bytes(weights)
        network.eval()
        right, loss, count = 0, 0.0, 0
        for batch in self._dev:
            targets = torch.tensor(batch.targets, dtype=torch.int64)
            lengths = torch.tensor([len(ids) for ids in batch.input_ids])
            logits = network(list(self.hidden(batch).float()), lengths)
            right += int((logits.argmax(1) == targets).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            count += len(targets)
        return Result(100 * right / count, loss / count, size)


def _figures(runs: Sequence[Result], baseline: float | None) -> dict[str, Any]:
    accuracy = statistics.mean(run.accuracy for run in runs)
    return {
        "accuracy": accuracy,
        "seeds": [run.accuracy for run in runs],
        "loss": statistics.mean(run.loss for run in runs),
        "below_fp16": 0.0 if baseline is None else baseline - accuracy,
        "bytes_per_sample": runs[0].size,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train every format with every seed, and print a table."""
    parser = argparse.ArgumentParser(prog="benchmarks.downstream", description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="SST-2")
    parser.add_argument("--json", type=pathlib.Path, metavar="F")
    parser.add_argument("--formats", default="f16,asym8,asym4,asym3,asym2", metavar="A,B,...")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    console = Console()
    study = Study(args.data)
    codecs = [CodecSpec(format=name, equalize=on) for name in args.formats.split(",") for on in (True, False)]
    codecs = [codec for codec in codecs if codec.formats[0].is_block or not codec.equalize]
    figures: dict[str, Any] = {"sentences": SENTENCES, "epochs": EPOCHS, "seeds": args.seeds}
    table = Table(title=f"SST-2, {SENTENCES} training sentences, {args.seeds} seeds")
    for column in ("format", "", "accuracy", "below fp16", "NLL", "bytes a sample"):
        table.add_column(column)
    baseline: float | None = None
    for codec in codecs:
        runs = [study.run(codec, seed) for seed in range(args.seeds)]
        values = _figures(runs, baseline)
        baseline = values["accuracy"] if baseline is None else baseline
        way = "equalized" if codec.equalize else "plain"
        console.print(f"{codec.format} {way}: {', '.join(f'{run.accuracy:.2f}' for run in runs)}")
        table.add_row(codec.format, way, *(format(values[key], style) for key, style in COLUMNS.items()))
        figures |= {f"{codec.format}.{way}.{key}": value for key, value in values.items()}
        write_json(args.json, figures)  # a run that is cut off keeps what it has
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
