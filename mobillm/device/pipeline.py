"""The device's pipeline: a compute thread, a queue bounded in bytes, a writer on the event loop.

The compute thread runs the backbone forward. The moment a tapped layer is done, its hidden state is
quantized, packed, compressed if the session does that, and handed over; it is on the wire while the next
layer computes. When the link or the server is slower, the queue fills up and the compute thread waits.

A backbone that takes several batches at once (``Backbone.span``) gives their taps layer by layer; those of
later batches are kept, packed, until the batches before them have ended.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..codec import PackedTensor, pack_integers
from ..protocol import LENGTHS, TARGETS, tensor_name
from .duty import Duty
from .handover import Handover, HandoverClosed
from .packing import pack_targets
from .selection import Selection, select
from .trace import Trace
from .uplink import KeptBatch, Uplink
from .width import INTERVAL, WidthController

if TYPE_CHECKING:
    from torch import Tensor

    from ..nn.backbone import Backbone

__all__ = ["Pipeline", "TokenBatch"]

SHORTEST_WAIT = 1e-3  # seconds; what is shorter is not noted


@dataclasses.dataclass(frozen=True, slots=True)
class TokenBatch:
    """One batch before the forward pass; it never leaves the device.

    Attributes:
        input_ids: token ids of each sample.
        targets: one for each sample, or for each token when the task is ``causal-lm``.
        heldout: keep it for evaluation, never train on it.

    """

    input_ids: Sequence[Sequence[int]]
    targets: Sequence[float]
    heldout: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Begin:
    samples: int
    heldout: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    number: int
    packed: PackedTensor


@dataclasses.dataclass(frozen=True, slots=True)
class _Commit:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class _End:
    pass


_Item = _Begin | _Tensor | _Commit | _End


class Pipeline:
    """Send batches through a backbone into a session.

    Args:
        backbone: the frozen model.
        uplink: where the activations go.
        queue: bytes that may wait between compute and network.
        trace: where timings are noted.
        duty: part of the time in which the thread computes at most; it rests after a tap, and before the
            next layer.

    Attributes:
        samples, tokens: what has gone through the forward pass.
        busy: (start, end) in seconds of the monotonic clock in which the compute thread computed.
        waited: seconds in which it waited for room in the queue.
        rested: seconds in which it rested as the duty asks.
        width: chooses the width of each tap; None where the spec names one format.

    """

    def __init__(
        self, backbone: Backbone, uplink: Uplink, *, queue: int, trace: Trace, duty: float = 1.0
    ) -> None:
        self.samples = 0
        self.tokens = 0
        self.busy: list[tuple[float, float]] = []
        self.waited = 0.0
        self.rested = 0.0
        self.width = WidthController(uplink.spec) if uplink.spec.codec.bits else None
        self._backbone = backbone
        self._uplink = uplink
        self._trace = trace
        self._duty = Duty(duty)
        self._handover: Handover[_Item] = Handover(queue)
        self._packer = uplink.session.packer
        self._since = 0.0  # when the compute thread last began to compute
        self._seq = uplink.received  # number of the batch under way in the compute thread

    @property
    def held(self) -> int:
        """Bytes of tensors that wait for the network."""
        return self._handover.held

    async def run(self, batches: Iterable[TokenBatch]) -> None:
        """Send all batches; returns when the last one has been sent whole.

        Cancelling stops the compute thread at the next tap and gives the open batch up.

        Raises:
            QuantizationError: a hidden state holds a value that the format cannot carry.
            ModelError: the backbone cannot run a batch.
            RemoteError: the server ended the session.
            ConnectionClosed: the connection is gone.

        """
        with concurrent.futures.ThreadPoolExecutor(1, "mobillm-compute") as executor:
            loop = asyncio.get_running_loop()
            compute = loop.run_in_executor(executor, self._compute, batches)
            writer = loop.create_task(self._write())
            meter = loop.create_task(self._measure())
            try:
                await asyncio.wait((compute, writer), return_when=asyncio.FIRST_EXCEPTION)
            finally:
                meter.cancel()
                writer_failed = writer.done() and not writer.cancelled() and writer.exception()
                if writer_failed or not (writer.done() and compute.done()):
                    self._handover.close()
                    writer.cancel()
                # The thread ends at the next tap; the executor must not be joined on the loop before.
                results = await asyncio.gather(compute, writer, meter, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, HandoverClosed):
                raise result

    # In the compute thread.

    def _compute(self, batches: Iterable[TokenBatch]) -> None:
        for group in _groups(batches, self._backbone.span):
            self._forward(group)
        self._handover.put(_End(), 0)

    def _forward(self, group: Sequence[TokenBatch]) -> None:
        """Run a group through the backbone; its batches are handed over one after the other."""
        start = self._since = time.monotonic()
        waited = self.waited
        chosen = [select(self._uplink.spec, batch) for batch in group]
        first, last = self._seq + 1, len(self._uplink.spec.model.taps) - 1
        waiting: list[list[tuple[int, PackedTensor]]] = [[] for _ in group]

        def hand_over(number: int, index: int, hidden: Tensor) -> None:
            packed = self._pack(index, hidden, chosen[number])
            if first + number > self._seq:
                waiting[number].append((index, packed))  # the batches before it have not ended
                return
            self._put_tensor(index, packed)
            if index == last:
                self._commit(group[number])
                if number + 1 < len(group):
                    self._begin(group[number + 1], chosen[number + 1])
                    for item in waiting[number + 1]:
                        self._put_tensor(*item)
                    waiting[number + 1].clear()

        def on_tap(number: int, index: int, hidden: Tensor) -> None:
            hand_over(number, index, hidden)
            self._rest()

        self._begin(group[0], chosen[0])
        self._backbone.forward_all([batch.input_ids for batch in group], on_tap)
        end = time.monotonic()
        self.busy.append((self._since, end))
        self._duty.idle(end - self._since, 0.0)
        self._trace.add("device", "compute", "forward", start, end - start, self._seq)
        if self.width is not None:
            sent = sum(sum(one.lengths) for one in chosen)
            self.width.computed(end - start - (self.waited - waited), sent, last + 1)

    def _begin(self, batch: TokenBatch, chosen: Selection) -> None:
        self._seq += 1
        self._put(_Begin(len(batch.input_ids), batch.heldout), 0)
        self._put_tensor(LENGTHS, pack_integers(chosen.lengths, tensor_name(LENGTHS)))
        self._put_tensor(TARGETS, pack_targets(self._uplink.spec, chosen.targets))

    def _commit(self, batch: TokenBatch) -> None:
        self._put(_Commit(), 0)
        self.samples += len(batch.input_ids)
        self.tokens += sum(map(len, batch.input_ids))

    def _pack(self, index: int, hidden: Tensor, chosen: Selection) -> PackedTensor:
        start = time.monotonic()
        if chosen.rows is not None:
            hidden = hidden[chosen.rows]
        fmt = None if self.width is None else self.width.choose(self.held)
        packed = self._packer.pack(index, hidden, fmt)
        if self.width is not None:
            self.width.packed(packed.header.size, packed.payload.nbytes)
        self._trace.add("device", "compute", "quantize", start, time.monotonic() - start, self._seq)
        return packed

    def _put_tensor(self, number: int, packed: PackedTensor) -> None:
        self._put(_Tensor(number, packed), packed.payload.nbytes)

    def _put(self, item: _Item, size: int) -> None:
        start = time.monotonic()
        self._handover.put(item, size)
        end = time.monotonic()
        if end - start > SHORTEST_WAIT:
            self.waited += end - start
            self._idle("wait", start, end)

    def _rest(self) -> None:
        start = time.monotonic()
        owed = self._duty.owed(start - self._since)
        if owed > SHORTEST_WAIT:
            self._handover.pause(owed)
            end = time.monotonic()
            self.rested += end - start
            self._idle("rest", start, end)

    def _idle(self, name: str, start: float, end: float) -> None:
        """Note that nothing was computed: it ends one interval of computing and begins another."""
        self.busy.append((self._since, start))
        self._duty.idle(start - self._since, end - start)
        self._since = end
        self._trace.add("device", "compute", name, start, end - start, self._seq)

    # On the event loop.

    async def _measure(self) -> None:
        while self.width is not None:
            connection = self._uplink.session.connection
            self.width.measure(time.monotonic(), connection.bytes_sent, connection.unsent)
            await asyncio.sleep(INTERVAL)

    async def _write(self) -> None:
        batch: KeptBatch | None = None
        try:
            while not isinstance(item := await self._handover.get(), _End):
                batch = await self._write_item(item, batch)
        except BaseException:
            self._uplink.abort()
            raise

    async def _write_item(self, item: _Item, batch: KeptBatch | None) -> KeptBatch | None:
        start = time.monotonic()
        if isinstance(item, _Begin):
            batch = await self._uplink.begin(item.samples, heldout=item.heldout)
            self._note("keep", start, time.monotonic() - start, batch.seq)
            return batch
        assert batch is not None  # _Begin comes first
        if isinstance(item, _Tensor):
            connection = self._uplink.session.connection
            waited = connection.credit_wait
            await self._uplink.send(batch, item.number, item.packed)
            end = time.monotonic()
            self._trace.add("device", "send", "send", start, end - start, batch.seq)
            waited = connection.credit_wait - waited
            self._note("credit", end - waited, waited, batch.seq)
            return batch
        await self._uplink.commit(batch)
        return None

    def _note(self, name: str, start: float, seconds: float, batch: int) -> None:
        """Note a wait of the writer, if it was one."""
        if seconds > SHORTEST_WAIT:
            self._trace.add("device", "send", name, start, seconds, batch)


def _groups(batches: Iterable[TokenBatch], span: int) -> Iterator[list[TokenBatch]]:
    """Cut batches into groups that end where they have ``span`` tokens or more."""
    group: list[TokenBatch] = []
    tokens = 0
    for batch in batches:
        group.append(batch)
        tokens += sum(map(len, batch.input_ids))
        if tokens >= span:
            yield group
            group, tokens = [], 0
    if group:
        yield group
