"""Fine-tune with one call: tokenize, stream, wait for training, pull and save the side network."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import logging
import pathlib
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypedDict, Unpack

from ..defaults import defaults_of, epochs_of
from ..errors import ConfigError, DataError, ErrorCode, RemoteError
from ..nn.ending import common_ending
from ..nn.heads import FrozenHead, export_lm_head
from ..nn.sidetuned import SideConfig, save_side
from ..nn.tail import TailBlobs
from ..options import Limits, Timeouts
from ..protocol import Finished
from ..spec import CodecSpec, OptimizerSpec, SessionSpec, SideSpec
from .batches import make_batches
from .blobs import Announced
from .client import Client, connect
from .dataset import Example
from .disclosure import disclosure
from .duty import Duty
from .pending import Pending, check_trained
from .pipeline import Pipeline, TokenBatch
from .progress import Progress, Report, Watch
from .resume import SESSION_FILE, Resume
from .selection import select
from .trace import Trace
from .uplink import Uplink

if TYPE_CHECKING:
    from ..nn.backbone import Backbone

__all__ = ["Options", "finetune", "finetune_async"]

logger = logging.getLogger("mobillm.device")

PROGRESS_INTERVAL = 0.2  # seconds


class Options(TypedDict, total=False):
    """Keyword arguments of :func:`finetune`, all optional.

    Attributes:
        tenant: whose token it is; ``default`` by default.
        task: ``classification`` (default), ``regression`` or ``causal-lm``.
        labels: names of the classes, in the order of their numbers; kept on the device.
        heldout: examples that are never trained on; the server evaluates on them at the end.
        side, codec: see :mod:`mobillm.spec`.
        optimizer: of the server; that of :mod:`mobillm.defaults` for the kind of side network if not given.
        tokens: which tokens are sent: ``all`` (default), ``loss`` or ``last``; see
            :class:`mobillm.SessionSpec` for what the last two need.
        epochs: passes over the data; the device computes one forward pass whatever the number. 4 if not
            given, 1 for ``causal-lm``.
        early_stopping: epochs without a lower held-out loss after which training ends; 0 trains all.
        batch_size: samples of an optimizer step; 32 if not given, 16 for a tail.
        max_length: most tokens of a sample; longer ones are cut.
        seed: of the order, the initialisation and dropout.
        output: directory for the result, which replaces one that is there; None does not save it. While the
            run is unfinished the directory remembers its session: the same call after a kill goes on where it
            stopped, and once the server has everything :func:`mobillm.device.pull.pull_async` fetches the
            result, too.
        detach: come back as soon as the server has everything on its disk, for
            :func:`mobillm.device.pull.pull_async` later; needs ``output``.
        duty: part of the time in which the device computes at most, above 0 to 1 (default).
        on_start: called once with what will leave the device, before anything does.
        on_progress: called about five times a second with a :class:`Progress`.
        trace: where to write a Chrome trace of both sides; None writes none.
        tls, timeouts, limits: of the connection, see :func:`mobillm.connect`.

    """

    tenant: str
    task: str
    labels: Sequence[str] | None
    heldout: Sequence[Example]
    side: SideSpec
    optimizer: OptimizerSpec
    codec: CodecSpec
    tokens: str
    epochs: int
    early_stopping: int
    batch_size: int
    max_length: int
    seed: int
    output: pathlib.Path | None
    detach: bool
    duty: float
    on_start: Callable[[str], None] | None
    on_progress: Callable[[Progress], None] | None
    trace: pathlib.Path | None
    tls: ssl.SSLContext | None
    timeouts: Timeouts | None
    limits: Limits | None


@dataclasses.dataclass(frozen=True, slots=True)
class _Job:
    """Everything a run needs before it connects."""

    backbone: Backbone
    spec: SessionSpec
    batches: list[TokenBatch]
    head: bytes | None
    tail: TailBlobs | None
    labels: tuple[str, ...] | None
    max_length: int
    ending: str
    pairs: bool

    @property
    def blobs(self) -> list[Iterable[bytes]]:
        """What the server may lack of the frozen weights, in the order of the spec."""
        return [() if self.head is None else (self.head,), self.tail or ()]

    @property
    def samples(self) -> int:
        return sum(len(batch.input_ids) for batch in self.batches)

    @property
    def tokens(self) -> int:
        """Tokens that are sent."""
        return sum(sum(select(self.spec, batch).lengths) for batch in self.batches)

    def digest(self) -> str:
        """Return the SHA-256 of what is to be sent, to tell whether a run is the same one again."""
        # Batches that are computed again must come out the same, so in the same arithmetic.
        found = hashlib.sha256(self.backbone.arithmetic.encode())
        for batch in self.batches:
            found.update(repr((batch.input_ids, batch.targets, batch.heldout)).encode())
        return found.hexdigest()

    @property
    def steps(self) -> int:
        return (self.spec.batches or 0) * self.spec.epochs

    @property
    def config(self) -> SideConfig:
        return SideConfig(
            spec=self.spec,
            max_length=self.max_length,
            labels=self.labels,
            ending=self.ending,
            bits=self.backbone.bits,
            pairs=self.pairs,
        )


def finetune(
    backbone: Backbone,
    dataset: Sequence[Example],
    *,
    server: str,
    token: str,
    **options: Unpack[Options],
) -> Report:
    """Fine-tune a side network on a server and save it; for programs without an event loop.

    A connection that is lost is made again, see ``Timeouts.reconnect``; nothing is lost or trained
    twice. Ctrl-C stops the compute thread at the next layer, says goodbye to the server and raises
    :exc:`KeyboardInterrupt`; the session stays on the server.

    Example::

        backbone = Backbone.from_pretrained("HuggingFaceTB/SmolLM2-135M", dtype="bfloat16")
        examples = [Example("what a day!", target=1), Example("never again", target=0)]
        mobillm.finetune(backbone, examples, server="mobillm://127.0.0.1:7707", token=token,
                         labels=["bad", "good"], epochs=4, output=pathlib.Path("mood"))

    Args:
        backbone: the frozen model; for ``causal-lm`` loaded with its LM head.
        dataset: examples to train on.
        server: ``mobillm://host:port``, or ``mobillms://host:port`` for TLS.
        token: the tenant's secret.
        options: see :class:`Options`.

    Raises:
        ConfigError: an option is out of range.
        DataError: an example cannot be used.
        ModelError: the backbone cannot run an example.
        QuantizationError: a hidden state cannot be carried by the chosen format.
        HandshakeError: the server refused the connection; the token is wrong, say.
        RemoteError: the server refused or ended the session.
        ConnectionClosed: there is no server, or the connection broke.
        TimeoutError: the server did not answer in time.

    """
    return asyncio.run(finetune_async(backbone, dataset, server=server, token=token, **options))


async def finetune_async(
    backbone: Backbone,
    dataset: Sequence[Example],
    *,
    server: str,
    token: str,
    **options: Unpack[Options],
) -> Report:
    """Do what :func:`finetune` does, in an event loop that runs already.

    Cancelling stops the compute thread at the next layer and says goodbye to the server.
    """
    start = time.monotonic()
    on_progress = options.get("on_progress") or (lambda progress: None)
    on_progress(Progress(stage="connect"))
    job = await asyncio.to_thread(_prepare, backbone, dataset, options)
    on_start = options.get("on_start")
    if on_start is not None:
        tail = 0 if job.tail is None else job.tail.size
        on_start(disclosure(job.spec, job.samples, job.tokens, head=len(job.head or b""), tail=tail))
    trace = Trace()
    limits = options.get("limits") or Limits()
    timeouts = options.get("timeouts") or Timeouts()

    async def dial() -> Client:
        return await connect(
            server,
            token=token,
            tenant=options.get("tenant", "default"),
            tls=options.get("tls"),
            timeouts=timeouts,
            limits=limits,
        )

    loop = asyncio.get_running_loop()

    def announce(number: int) -> None:
        progress = Progress(stage="upload", step=number, total_steps=len(job.spec.blobs))
        loop.call_soon_threadsafe(on_progress, progress)

    output = options.get("output")
    resume = None if output is None else Resume(output / SESSION_FILE, job.digest())
    unfinished = None if resume is None else resume.load(job.spec)
    uplink = Uplink(
        dial,
        job.spec,
        blobs=Announced(job.blobs, announce),
        session=None if unfinished is None else unfinished.session,
        equalizers=None if unfinished is None else unfinished.equalizers,
        keep=limits.queue,
        patience=timeouts.reconnect,
    )

    def remember(session: bytes) -> None:
        if resume is not None and output is not None:
            Pending.clear(output)  # of an earlier session
            resume.save(session, job.spec)

    uplink.on_session = remember
    try:
        await uplink.start()
        if uplink.received:
            logger.warning("= going on after batch %d of %d", uplink.received, len(job.batches))
        if resume is not None:
            if unfinished is not None:  # the server may know fewer of its equalizers
                resume.save(uplink.id, job.spec, uplink.session.equalizers)
            uplink.on_equalizers = functools.partial(resume.save, uplink.id, job.spec)
        pipeline = Pipeline(backbone, uplink, queue=limits.queue, trace=trace, duty=options.get("duty", 1.0))
        watch = Watch(uplink, pipeline, trace)
        watch.sent_before = sum(len(batch.input_ids) for batch in job.batches[: uplink.received])
        reporter = asyncio.create_task(_report(watch, uplink, job, on_progress))
        try:
            report = await _run(job, uplink, pipeline, watch, options, start)
        finally:
            reporter.cancel()
            await asyncio.gather(reporter, return_exceptions=True)
    except RemoteError as exc:
        if resume is not None and exc.code == ErrorCode.SCHEMA_MISMATCH:
            resume.clear()  # what was sent is refused for good, so there is nothing to go on with
        raise
    finally:
        await uplink.close()
    if resume is not None and output is not None and not report.detached:
        resume.clear()
        Pending.clear(output)
    path = options.get("trace")
    if path is not None:
        try:
            trace.write(path)
        except DataError as error:  # no reason to keep the result from whoever waited for it
            report = dataclasses.replace(report, trace_error=str(error))
    done = watch.progress("done", job.samples, job.steps)
    on_progress(dataclasses.replace(done, step=max(done.step, report.steps)))
    return report


async def _run(
    job: _Job, uplink: Uplink, pipeline: Pipeline, watch: Watch, options: Options, start: float
) -> Report:
    begun = time.monotonic()
    # A run that goes on computes only what the server does not have: batches are the same ones again.
    await pipeline.run(job.batches[uplink.received :])
    streamed = time.monotonic() - begun
    await uplink.finish()
    output = options.get("output")
    await uplink.wait_durable()
    if output is not None:  # from here on nothing but this file is needed to fetch the result
        pending = Pending(
            session=uplink.id,
            batches=len(job.batches),
            config=job.config,
            heldout=bool(options.get("heldout")),
        )
        await asyncio.to_thread(pending.save, output)
        if options.get("detach"):
            await uplink.detach()
            return _measured(job, uplink, pipeline, watch, streamed, start, None, None)
    finished = await uplink.wait_finished()
    check_trained(finished, output)
    evaluation = None
    if options.get("heldout"):
        evaluated = await uplink.evaluate()
        evaluation = {"samples": evaluated.samples, **evaluated.values}
    weights = await uplink.pull()
    if output is not None:
        await asyncio.to_thread(save_side, output, weights, job.config)
    await uplink.confirm()
    return _measured(job, uplink, pipeline, watch, streamed, start, finished, evaluation, output)


def _measured(
    job: _Job,
    uplink: Uplink,
    pipeline: Pipeline,
    watch: Watch,
    streamed: float,
    start: float,
    finished: Finished | None,
    evaluation: dict[str, float] | None,
    output: pathlib.Path | None = None,
) -> Report:
    """Return how a run went; ``finished`` is None when the device leaves before the end of training."""
    metrics = uplink.metrics
    taken = metrics.step if metrics else 0
    values = pipeline.tokens * job.spec.model.hidden_size * len(job.spec.model.taps)
    return Report(
        session=uplink.id.hex(),
        steps=taken if finished is None else finished.steps,
        loss=None if finished is None else finished.loss,
        stopped=None if finished is None else job.spec.stopped(finished.steps),
        detached=finished is None,
        samples=pipeline.samples,
        tokens=pipeline.tokens,
        seconds=time.monotonic() - start,
        stream_seconds=streamed,
        bytes_sent=uplink.bytes_sent,
        blob_bytes=uplink.blob_bytes,
        bytes_fp16=2 * values,
        device_busy=watch.device_busy,
        device_rested=pipeline.rested,
        server_busy=watch.server_busy,
        both_busy=watch.both_busy(),
        losses=uplink.losses,
        evaluation=evaluation,
        output=None if output is None else str(output),
    )


async def _report(watch: Watch, uplink: Uplink, job: _Job, on_progress: Callable[[Progress], None]) -> None:
    while True:
        await asyncio.sleep(PROGRESS_INTERVAL)
        stage = "forward" if uplink.session.sent < len(job.batches) else "train"
        if uplink.session.finished is not None:
            stage = "pull"
        on_progress(watch.progress(stage, job.samples, job.steps))


def _prepare(backbone: Backbone, dataset: Sequence[Example], options: Options) -> _Job:
    """Tokenize and fix the spec; runs in a thread."""
    if options.get("early_stopping") and not options.get("heldout"):
        raise ConfigError("early_stopping", options["early_stopping"], "0, or held-out examples with it")
    Duty(options.get("duty", 1.0))  # refused before the model computes anything
    if options.get("detach") and options.get("output") is None:
        raise ConfigError("output", None, "a directory, from which the result is fetched after detach")
    task = options.get("task", "classification")
    seed = options.get("seed", 0)
    max_length = options.get("max_length", 128)
    side = options.get("side", SideSpec())
    defaults = defaults_of(side.kind)
    batch_size = options.get("batch_size", defaults.batch_size)
    for name, value in (("batch_size", batch_size), ("max_length", max_length)):
        if value < 1:
            raise ConfigError(name, value, "at least 1")
    if not dataset:
        raise ConfigError("dataset", "empty", "at least one example")
    head = export_lm_head(backbone.model) if task == "causal-lm" else None
    tail = TailBlobs(backbone) if side.kind == "tail" else None
    outputs = _outputs(task, options.get("labels"), dataset, head)
    codec = options.get("codec", CodecSpec())
    if not backbone.causal:
        side = dataclasses.replace(side, causal=False, pool="first")
    ending, tokens = "", options.get("tokens", "all")
    if task != "causal-lm" and side.pool == "last":
        ending = common_ending(example.pair or example.text for example in dataset)

    def batches(examples: Sequence[Example], heldout: bool) -> list[TokenBatch]:
        return make_batches(
            backbone,
            examples,
            task=task,
            batch_size=batch_size,
            max_length=max_length,
            seed=seed,
            heldout=heldout,
            ending=ending,
            tokens=tokens,
        )

    train = batches(dataset, heldout=False)
    spec = SessionSpec(
        task=task,
        outputs=outputs,
        model=backbone.model_spec(),
        side=side,
        optimizer=options.get("optimizer", defaults.optimizer),
        codec=codec,
        epochs=options.get("epochs", epochs_of(task)),
        early_stopping=options.get("early_stopping", 0),
        batches=len(train),
        seed=seed,
        head=None if head is None else hashlib.sha256(head).hexdigest(),
        trace=True,
        tokens=tokens,
        tail=None if tail is None else tail.spec,
    )
    heldout = options.get("heldout")
    everything = train + (batches(heldout, heldout=True) if heldout else [])
    labels = options.get("labels")
    names = None if labels is None else tuple(labels)
    pairs = task != "causal-lm" and any(example.pair is not None for example in dataset)
    return _Job(backbone, spec, everything, head, tail, names, max_length, ending, pairs)


def _outputs(task: str, labels: Sequence[str] | None, dataset: Sequence[Example], head: bytes | None) -> int:
    if head is not None:
        return FrozenHead.from_bytes(head).vocabulary
    if task == "regression":
        return 1
    if labels is not None:
        return len(labels)
    targets = [example.target for example in dataset if example.target is not None]
    return max(2, int(max(targets, default=1)) + 1)
