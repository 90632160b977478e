"""FINISH, EVAL and PULL: what they are answered with, in which order, and the file of weights."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from ...errors import ErrorCode
from ...protocol import Evaluated, Finished, FrameType, Weights
from ..case import Busy, Deviation, Draft
from ..samples import tiny_batch
from ..target import Lab, Stream
from .stimuli import Cases

__all__ = ["drafts"]

E = ErrorCode
T = FrameType


def drafts() -> Cases:
    """Return the cases."""
    return [*_finish(), *_eval(), *_pull()]


def _finish() -> Cases:
    cases: Cases = [
        Draft("O-25", f"FINISH naming batch {seq} of {sent}", functools.partial(_wrong_finish, sent, seq))
        for sent, seq in ((0, 1), (0, 2**63 - 1), (1, 0), (1, 2), (2, 1), (3, 99))
    ]
    for sent, epochs in ((0, 1), (1, 1), (2, 1), (3, 2), (2, 4)):
        title = f"FINISHED after {epochs} epochs of {sent} batches"
        cases.append(Draft("O-7 D-32", title, functools.partial(_finished, sent, epochs)))
    return [
        *cases,
        Draft("O-24", "FINISH again from a later attachment", _again),
        Draft("O-28 O-26 D-27", "OPENED and FINISHED of a session that is over", _over),
        Draft("O-26 S-1", "DATA on a session that OPENED called finished", _data_when_over),
        Draft("O-27", "FINISHED for an attachment that did not send FINISH", _by_another),
        Draft("O-6 S-1", "DATA after FINISH", _data_after),
        Draft("D-33", "FINISHED without a loss when nothing was trained", _no_loss),
    ]


async def _trained(lab: Lab, batches: int, **changes: Any) -> Stream:
    stream = await lab.attach(**changes)
    await stream.submit(*(tiny_batch(seq) for seq in range(1, batches + 1)))
    await stream.acked(received=batches)
    return stream


async def _wrong_finish(sent: int, seq: int, lab: Lab) -> None:
    stream = await _trained(lab, sent)
    await stream.control(T.FINISH, seq=seq)
    await stream.failed(E.SCHEMA_MISMATCH)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    await back.submit(tiny_batch(sent + 1))
    await back.acked(applied=sent + 1)


async def _finished(sent: int, epochs: int, lab: Lab) -> None:
    stream = await _trained(lab, sent, epochs=epochs)
    await stream.control(T.FINISH, seq=sent)
    finished = await stream.peer.expect(Finished, stream=1)
    if finished.steps != sent * epochs:
        raise Deviation(f"expected FINISHED after {sent * epochs} steps; it says {finished.steps}")
    if sent and finished.loss is None:
        raise Deviation("expected FINISHED with a loss; it has none")


async def _no_loss(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1, heldout=True))
    await stream.acked(received=1)
    await stream.control(T.FINISH, seq=1)
    finished = await stream.peer.expect(Finished, stream=1)
    if finished.loss is not None or finished.steps:
        raise Deviation("expected FINISHED of 0 steps without a loss; it says otherwise")


async def _again(lab: Lab) -> None:
    stream = await _trained(lab, 2, epochs=2)
    await stream.control(T.FINISH, seq=2)
    await stream.detach()
    back = await lab.resume(stream.opened.session, stream.peer)
    if not back.opened.finished:
        await back.control(T.FINISH, seq=2)
    finished = await back.peer.expect(Finished, stream=1)
    if finished.steps != 4:
        raise Deviation(f"expected FINISHED after 4 steps; it says {finished.steps}")


async def _completed(lab: Lab) -> Stream:
    stream = await _trained(lab, 1)
    await stream.control(T.FINISH, seq=1)
    await stream.peer.expect(Finished, stream=1)
    return stream


async def _over(lab: Lab) -> None:
    stream = await _completed(lab)
    for _ in range(2):
        back = await lab.finished(stream.opened.session, steps=1)
        if not back.opened.finished:
            raise Deviation("expected OPENED to say finished; it does not")


async def _data_when_over(lab: Lab) -> None:
    stream = await _completed(lab)
    back = await lab.finished(stream.opened.session, steps=1)
    await back.peer.send(tiny_batch(2).data()[0])
    await back.peer.refused(E.PROTOCOL)


async def _by_another(lab: Lab) -> None:
    stream = await _trained(lab, 2, epochs=50)
    await stream.control(T.FINISH, seq=2)
    await stream.detach()
    await lab.finished(stream.opened.session, steps=100)


async def _data_after(lab: Lab) -> None:
    stream = await _trained(lab, 1)
    await stream.control(T.FINISH, seq=1)
    await stream.peer.send(tiny_batch(2).data()[0])
    await stream.peer.refused(E.PROTOCOL)


def _eval() -> Cases:
    cases: Cases = [
        Draft("O-8 B-12 D-35", f"EVAL with {count} batches held out", functools.partial(_evaluated, count))
        for count in (0, 1, 3)
    ]
    return [
        *cases,
        Draft("O-32 O-8", "EVAL before any batch", _early_eval),
        Draft("O-32 O-8", "EVAL after FINISH", _late_eval),
        Draft(
            "O-31", "five EVALs in one segment are answered five times", functools.partial(_many, T.EVAL, 5)
        ),
        Draft("O-33", "thirty requests at once are answered, or end the stream with CALM", _flood),
        Draft("B-12 D-34", "EVAL does not train", _eval_is_passive),
    ]


async def _evaluated(count: int, lab: Lab) -> None:
    stream = await lab.attach()
    batches = [tiny_batch(seq, heldout=True) for seq in range(1, count + 1)]
    await stream.submit(*batches, tiny_batch(count + 1))
    await stream.acked(durable=count + 1, applied=count + 1)
    await stream.control(T.EVAL)
    answer = await stream.peer.expect(Evaluated, stream=1)
    if answer.samples != 2 * count:
        raise Deviation(f"expected {2 * count} samples; EVALUATED says {answer.samples}")
    if count and not {"loss", "accuracy"} <= set(answer.values):
        raise Deviation(f"expected values with loss and accuracy; got {sorted(answer.values)}")
    if answer.steps != 1:
        raise Deviation(f"expected 1 step; EVALUATED says {answer.steps}")


async def _early_eval(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.control(T.EVAL)
    answer = await stream.peer.expect(Evaluated, stream=1)
    if answer.samples or answer.steps:
        raise Deviation("expected EVALUATED of 0 samples after 0 steps; it says otherwise")


async def _late_eval(lab: Lab) -> None:
    stream = await _completed(lab)
    await stream.control(T.EVAL)
    await stream.peer.expect(Evaluated, stream=1)
    await _pulled(stream)


async def _many(kind: FrameType, count: int, lab: Lab) -> None:
    stream = await _trained(lab, 1)
    for _ in range(count):
        await stream.control(kind)
    for _ in range(count):
        if kind is T.EVAL:
            await stream.peer.expect(Evaluated, stream=1)
        else:
            await _file(stream)
    await stream.peer.alive()


async def _flood(lab: Lab) -> None:
    stream = await _trained(lab, 1)
    for _ in range(30):
        await stream.control(T.EVAL)
    for _ in range(30):
        try:
            await stream.peer.expect(Evaluated, stream=1)
        except Busy:
            break
        except Deviation as exc:
            if "ERROR stream 1 code CALM" not in str(exc):
                raise
            break
    await stream.peer.alive()


async def _eval_is_passive(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.submit(tiny_batch(1, heldout=True), tiny_batch(2))
    await stream.acked(applied=2)
    before = await _pulled(stream)
    for _ in range(3):
        await stream.control(T.EVAL)
        await stream.peer.expect(Evaluated, stream=1)
    if await _pulled(stream) != before:
        raise Deviation("expected the same weights before and after EVAL; they differ")


async def _file(stream: Stream) -> tuple[int, bytes]:
    """Read one file of weights; return the steps behind it and its content."""
    content = b""
    first: Weights | None = None
    while first is None or len(content) < first.total:
        part = await stream.peer.expect(Weights, stream=stream.number)
        first = first or part
        if part.offset != len(content):
            raise Deviation(f"expected WEIGHTS at offset {len(content)}; got {part.offset}")
        if (part.digest, part.total, part.steps) != (first.digest, first.total, first.steps):
            raise Deviation("expected the same digest, total and steps in all parts; they differ")
        content += bytes(part.payload)
    if hashlib.sha256(content).digest() != first.digest:
        raise Deviation("expected weights that have their digest; their SHA-256 is another one [W-1]")
    return first.steps, content


async def _pulled(stream: Stream) -> bytes:
    await stream.control(T.PULL)
    return (await _file(stream))[1]


def _pull() -> Cases:
    return [
        Draft("O-30 W-1", "PULL is answered by one whole file that has its digest", _pull_digest),
        Draft("W-5 Y-7", "the weights are a safetensors file", _safetensors),
        Draft("O-32 O-30", "PULL before any batch", _early_pull),
        Draft("O-31 W-8", "three PULLs in one segment", functools.partial(_many, T.PULL, 3)),
        Draft("O-30 D-40", "PULL states the steps behind the weights", _pull_steps),
        Draft(
            "O-32 X-1", "the weights of a finished session are the same for each attachment", _same_weights
        ),
        Draft("L-4 W-1", "weights that need several frames", _large_weights),
        Draft("X-5 X-10", "equal sessions have equal weights", _equal_sessions),
    ]


async def _pull_digest(lab: Lab) -> None:
    await _pulled(await _trained(lab, 2))


async def _safetensors(lab: Lab) -> None:
    content = await _pulled(await _trained(lab, 1))
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise Deviation("expected a safetensors file; its header cannot be read") from None
    if not ends or max(ends) != len(content) - 8 - size:
        raise Deviation("expected a safetensors file; its header does not describe its length")


async def _early_pull(lab: Lab) -> None:
    stream = await lab.attach()
    await stream.control(T.PULL)
    steps, _ = await _file(stream)
    if steps:
        raise Deviation(f"expected weights after 0 steps; got {steps}")


async def _pull_steps(lab: Lab) -> None:
    stream = await lab.attach()
    for seq in (1, 2):
        await stream.submit(tiny_batch(seq))
        await stream.acked(applied=seq)
        await stream.control(T.PULL)
        steps, _ = await _file(stream)
        if steps != seq:
            raise Deviation(f"expected weights after {seq} steps; got {steps}")


async def _same_weights(lab: Lab) -> None:
    stream = await _completed(lab)
    weights = await _pulled(stream)
    back = await lab.finished(stream.opened.session, steps=1)
    if await _pulled(back) != weights:
        raise Deviation("expected the same weights after attaching again; they differ")


async def _large_weights(lab: Lab) -> None:
    # A head of 32 x 100,000 numbers: about 13 MB, in more than one frame of at most 4 MiB.
    stream = await lab.attach(outputs=100_000)
    content = await _pulled(stream)
    if len(content) < 4 * 1024 * 1024:
        raise Deviation(f"expected weights of more than 4 MiB; got {len(content)} bytes")


async def _equal_sessions(lab: Lab) -> None:
    files = []
    for _ in range(2):
        stream = await _trained(lab, 3, epochs=2)
        await stream.control(T.FINISH, seq=3)
        await stream.peer.expect(Finished, stream=1)
        files.append(await _pulled(stream))
    if files[0] != files[1]:
        raise Deviation("expected equal weights of equal sessions; they differ")
