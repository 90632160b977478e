"""One step of one method in this process, and its peak of resident memory as a JSON line.

``python -m benchmarks.memory_step METHOD MODEL BATCH SEQ [SERVER TOKEN]``; :mod:`benchmarks.memory` runs it.
Everything that a person would import and load is in the figure.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from benchmarks.harness import peak_bytes
from benchmarks.shapes import SHAPES, checkpoint, words
from mobillm.nn.quiet import quiet_loading

__all__ = ["METHODS", "main"]

RANK = 8
DEVICE_BATCHES = 2  # of the methods that stream: the second is computed while the first is sent


class Job:
    """What a method is to be run on.

    Args:
        model: name of the shape.
        batch: samples of a step.
        seq: tokens of each.
        access: the server's address and token; empty for methods without one.

    """

    def __init__(self, model: str, batch: int, seq: int, access: Sequence[str]) -> None:
        self.path = checkpoint(model)
        self.dtype, settings = SHAPES[model]
        self.vocabulary = int(settings["vocab_size"])
        self.layers = int(settings["num_hidden_layers"])
        self.hidden = int(settings["hidden_size"])
        self.batch, self.seq, self.access = batch, seq, list(access)

    def load(self, kind: Any) -> Any:
        """Load the model as transformers does by default."""
        return kind.from_pretrained(self.path, dtype=getattr(torch, self.dtype))

    def ids(self) -> torch.Tensor:
        """Return token ids [batch, seq]."""
        return torch.randint(3, self.vocabulary, (self.batch, self.seq))

    def classifier(self) -> Any:
        """Load the model with a classification head of two labels."""
        return self.load(transformers.AutoModelForSequenceClassification)

    def step(self, model: Any) -> None:
        """Take one step of AdamW on whatever is trainable."""
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        labels = torch.randint(0, 2, (self.batch,))
        model(input_ids=self.ids(), labels=labels, use_cache=False).loss.backward()
        optimizer.step()


def inference(job: Job) -> None:
    """Run the bare model forward, without LM head and cache."""
    model = job.load(transformers.AutoModel).eval()
    with torch.inference_mode():
        model(input_ids=job.ids(), use_cache=False)


def full(job: Job) -> None:
    """Train every weight."""
    job.step(job.classifier())


def lora(job: Job, checkpointing: bool = False) -> None:
    """Train LoRA on the query and value projections, through PEFT."""
    import peft

    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["q_proj", "v_proj"],
        task_type=peft.TaskType.SEQ_CLS,
    )
    model = job.classifier()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    job.step(peft.get_peft_model(model, config))


def bitfit(job: Job) -> None:
    """Train the biases (the norms where a model has no biases) and the head."""
    model = job.classifier()
    names = [name for name, _ in model.named_parameters()]
    ending = "bias" if any(name.endswith("bias") for name in names) else "norm.weight"
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(ending) or name.startswith("score"))
    job.step(model)


def lst(job: Job) -> None:
    """Train a ladder beside the model on the same machine: a tap at every layer, an eighth of the width."""
    from mobillm.nn.backbone import Backbone
    from mobillm.nn.side import SideNetwork
    from mobillm.spec import SessionSpec, SideSpec

    backbone = Backbone.from_pretrained(job.path, dtype=job.dtype, taps="all")
    width = job.hidden // 8
    spec = SessionSpec(
        task="classification",
        outputs=2,
        model=backbone.model_spec(),
        side=SideSpec(width=width, heads=8),
        batches=1,
    )
    network = SideNetwork.from_spec(spec).train()
    taps: list[torch.Tensor] = []
    backbone.forward(job.ids().tolist(), lambda index, hidden: taps.append(hidden.clone()))
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    lengths = torch.full((job.batch,), job.seq)
    loss: Any = network.loss(taps, lengths, torch.randint(0, 2, (job.batch,)))
    loss.backward()
    optimizer.step()


def mobillm(job: Job, streamed: bool = False, side: str = "ladder", dtype: str | None = None) -> None:
    """Fine-tune as ``mobillm finetune`` does, with the server in another process."""
    import mobillm as package
    from mobillm.defaults import defaults_of
    from mobillm.device.arena import share_arena

    share_arena()
    kind = package.StreamedBackbone if streamed else package.Backbone
    backbone = kind.from_pretrained(job.path, dtype=dtype or job.dtype, taps=defaults_of(side).taps)
    count = DEVICE_BATCHES * job.batch
    examples = [package.Example(words(job.seq, n, job.vocabulary), target=n % 2) for n in range(count)]
    server, token = job.access
    package.finetune(
        backbone,
        examples,
        server=server,
        token=token,
        batch_size=job.batch,
        max_length=job.seq,
        side=package.SideSpec(kind=side),
    )


METHODS: dict[str, Callable[[Job], None]] = {
    "inference": inference,
    "full": full,
    "lora": lora,
    "lora_checkpointing": lambda job: lora(job, checkpointing=True),
    "bitfit": bitfit,
    "lst": lst,
    "mobillm": mobillm,
    "mobillm_int8": lambda job: mobillm(job, dtype="int8"),
    "mobillm_streamed": lambda job: mobillm(job, streamed=True),
    "mobillm_tail": lambda job: mobillm(job, streamed=True, side="tail"),
}


def main(argv: Sequence[str]) -> int:
    """Run the method and print its figures."""
    method, model, batch, seq, *access = argv
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.monotonic()
    with quiet_loading():
        METHODS[method](Job(model, int(batch), int(seq), access))
    print(json.dumps({"peak_bytes": peak_bytes(), "seconds": round(time.monotonic() - start, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
