"""What a fine-tuning run will need on the device: memory, traffic and time, before it is started."""

from __future__ import annotations

import dataclasses
import math

from ..errors import ConfigError
from ..formats import Format, row_size

__all__ = ["Demand", "Job", "ModelFigures", "choose", "predict"]

KEPT_BATCHES = (
    2  # packed batches that wait for the network and for the server's disk, on a link that keeps up
)
LOOSE = 1.5  # what malloc keeps resident, by what is in use, of everything but weights and code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """What a prediction needs to know about a model on this machine.

    Attributes:
        layers: number of layers.
        hidden_size: width of the taps.
        inner_size: width of the widest inner state of a layer, the MLP's.
        itemsize: bytes of a value of the hidden states.
        weight_bytes: all weights without LM head.
        layer_bytes: weights of the largest layer.
        outside_bytes: weights outside the layers that a streamed model holds, so without the embedding.
        base_bytes: resident memory of the process with everything imported and no weights.
        part: tokens that are run at once.
        layer_seconds: of one layer for one token.
        workspace_bytes: in which weights are expanded to the type of computing.
        streamable: whether the layers may stay on the disk, which quantized ones cannot.
        sent_bytes: of the largest layer as a server gets it for a tail, in bf16.

    """

    layers: int
    hidden_size: int
    inner_size: int
    itemsize: int
    weight_bytes: int
    layer_bytes: int
    outside_bytes: int
    base_bytes: int
    part: int
    layer_seconds: float
    workspace_bytes: int = 0
    streamable: bool = True
    sent_bytes: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be run.

    Attributes:
        samples: of the one pass.
        length: mean tokens of a sample.
        batch: samples of a step.
        taps: tapped layers, ascending.
        format, block: how taps are packed.
        streamed: whether the layers stay on the disk.
        tail: whether the server gets the layers above the last tap.

    """

    samples: int
    length: int
    batch: int
    taps: tuple[int, ...]
    format: str = "asym4"
    block: int = 64
    streamed: bool = False
    tail: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a job needs.

    Attributes:
        memory_bytes: peak of resident memory.
        weights_bytes, work_bytes, packed_bytes: its parts beside code: weights, hidden and inner states, and
            packed taps that wait.
        traffic_bytes: activations to be sent.
        upload_bytes: layers that are sent before them, unless the server has them from an earlier run.
        token_bytes: activations of one token.
        compute_seconds: of the device.
        link_seconds: of the link; 0 when its rate is not known.
        upload_seconds: of the link for the layers, before anything else.

    """

    memory_bytes: int
    weights_bytes: int
    work_bytes: int
    packed_bytes: int
    traffic_bytes: int
    upload_bytes: int
    token_bytes: int
    compute_seconds: float
    link_seconds: float
    upload_seconds: float

    @property
    def seconds(self) -> float:
        """The slower of computing and sending, which overlap; without the layers."""
        return max(self.compute_seconds, self.link_seconds)


def predict(model: ModelFigures, job: Job, link: float | None = None, span: int = 0) -> Demand:
    """Predict what a job needs.

    Args:
        model: figures of the model on this machine.
        job: what is to be run.
        link: bytes per second; None when it is not known.
        span: tokens that a streamed backbone takes through a layer together.

    """
    tokens = job.batch * job.length
    together = max(tokens, math.ceil(span / tokens) * tokens) if job.streamed else tokens
    part = min(model.part, tokens)
    depth = max(1, job.taps[-1])
    weights = 2 * model.layer_bytes + model.outside_bytes if job.streamed else model.weight_bytes
    if not model.streamable:  # quantized: layers above the last tap are not loaded
        weights -= (model.layers - depth) * model.layer_bytes
    weights += model.workspace_bytes
    # Hidden states before and after a layer, one tap put together and in fp32; in a part: seven states of
    # the hidden width (norm, q, k, v, attention, output, sum) and three of the inner width.
    hidden = 3 * together * model.hidden_size * model.itemsize + tokens * model.hidden_size * 4
    inner = part * (7 * model.hidden_size + 3 * model.inner_size) * model.itemsize
    token_bytes = len(job.taps) * row_size(Format.parse(job.format), job.block, model.hidden_size)
    packed = KEPT_BATCHES * max(tokens, together) * token_bytes
    work = int(LOOSE * (hidden + inner))
    traffic = job.samples * job.length * token_bytes
    upload = (model.layers - job.taps[-1]) * model.sent_bytes if job.tail else 0
    # A layer that is sent is there twice, as tensors and as a file, before any batch is computed.
    peak = max(work + packed, 2 * model.sent_bytes if job.tail else 0)
    return Demand(
        memory_bytes=model.base_bytes + weights + peak,
        weights_bytes=weights,
        work_bytes=work,
        packed_bytes=packed,
        traffic_bytes=traffic,
        upload_bytes=upload,
        token_bytes=token_bytes,
        compute_seconds=job.samples * job.length * depth * model.layer_seconds,
        link_seconds=0.0 if link is None else traffic / link,
        upload_seconds=0.0 if link is None else upload / link,
    )


def choose(
    model: ModelFigures, job: Job, *, memory_limit: int | None, link: float | None, span: int
) -> tuple[Job, Demand, list[str]]:
    """Change a job until it fits the memory and the link keeps up, as little as possible.

    In this order: layers to the disk, smaller batches; then fewer bits.

    Args:
        model: figures of the model on this machine.
        job: what is wanted.
        memory_limit: bytes; None is no limit.
        link: bytes per second; None when it is not known.
        span: as in :func:`predict`.

    Returns:
        the job, what it needs, and a sentence for each change.

    Raises:
        ConfigError: nothing fits the memory limit.

    """
    reasons: list[str] = []

    def demand() -> Demand:
        return predict(model, job, link, span)

    def fits() -> bool:
        return memory_limit is None or demand().memory_bytes <= memory_limit

    if not fits() and not job.streamed and model.streamable:
        need = demand().memory_bytes
        job = dataclasses.replace(job, streamed=True)
        reasons.append(
            f"stream the weights: with all layers in memory it needs {need / 2**20:,.0f} MiB, above the limit"
        )
    wanted = job.batch
    while not fits() and job.batch > 1:
        job = dataclasses.replace(job, batch=job.batch // 2)
    if job.batch != wanted:
        reasons.append(f"batches of {job.batch} instead of {wanted} samples, to stay below the limit")
    if not fits():
        raise ConfigError(
            "memory_limit",
            f"{(memory_limit or 0) / 2**20:,.0f} MiB",
            f"at least {demand().memory_bytes / 2**20:,.0f} MiB, for single samples"
            f"{' with streamed weights' if job.streamed else ''}; "
            f"{model.base_bytes / 2**20:,.0f} MiB of it are Python, torch and transformers",
        )
    for fmt in ("asym3", "asym2"):
        found = demand()
        if (
            found.link_seconds <= found.compute_seconds
            or Format.parse(job.format).bits <= Format.parse(fmt).bits
        ):
            continue
        job = dataclasses.replace(job, format=fmt)
        reasons.append(
            f"{fmt}: the link needs {found.link_seconds:,.0f} s for what is computed in "
            f"{found.compute_seconds:,.0f} s"
        )
    if demand().upload_seconds > demand().seconds and job.taps[-1] < model.layers - 1:
        reasons.append(
            "sending the layers above the tap is most of the first run; "
            "a higher tap sends fewer, such as --taps 1/2"
        )
    if demand().link_seconds > demand().compute_seconds:
        fewer = "shorter samples send less" if job.tail else "fewer taps send less, such as --taps every:8"
        reasons.append(f"the link is still the slower part; {fewer}")
    return job, demand(), reasons
