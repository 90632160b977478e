"""A session's equalizers: one for each tap, from its batch on, also after a restart."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest

from mobillm.codec import unpack_torch
from mobillm.device.packing import pack_batch
from mobillm.device.taps import TapPacker
from mobillm.errors import ConfigError, ErrorCode, RemoteError
from mobillm.protocol import EQUALIZERS, TensorHeader
from mobillm.server.batch import Batch
from mobillm.server.equalizers import Equalizers
from mobillm.server.log import ActivationLog
from mobillm.server.replay import Replay
from mobillm.server.trainer import Trainer
from mobillm.spec import CodecSpec
from tests.conftest import Run
from tests.sessions import arrays, as_batch, device, serving, spec

SAMPLES = 24


def batches(count: int, what: Any = None) -> list[Batch]:
    """Return the first batches of a session, as a server holds them; the first brings the equalizers."""
    what = what or spec()
    packer = TapPacker(what, {})
    found = []
    for seq in range(1, count + 1):
        data = arrays(seq, SAMPLES)
        tensors = pack_batch(what, data.taps, data.lengths, data.targets, packer)
        if seq == 1:
            for tap in range(2):
                equalizer = tensors[tap].equalizer
                assert equalizer is not None
                tensors[EQUALIZERS + tap] = equalizer.packed
        found.append(as_batch(tensors, seq, SAMPLES))
    return found


def test_they_come_once() -> None:
    """[B-37] [B-38] The batch that brings them passes, later ones name them; a second one is refused."""
    equalizers = Equalizers()
    first, second = batches(2)
    with pytest.raises(
        ConfigError, match=r"tap 0 is 'equalized by [0-9a-f]{8}'; expected its equalizer first"
    ):
        equalizers.check(second)
    equalizers.check(first)
    equalizers.add(first)
    equalizers.check(second)
    with pytest.raises(ConfigError, match="the equalizer of tap 0 is 'sent again'"):
        equalizers.check(first)
    changed = dataclasses.replace(second.headers[1], equalizer=7)
    with pytest.raises(ConfigError, match="tap 1 is 'equalized by 00000007'"):
        equalizers.check(dataclasses.replace(second, headers={**second.headers, 1: changed}))


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf, np.nan])
def test_factors_are_positive_and_finite(value: float) -> None:
    """[B-37] Factors that would make zeros or NaN are refused."""
    (batch,) = batches(1)
    factors = np.ones(16, np.float16)
    factors[5] = value
    payloads = {**batch.payloads, EQUALIZERS: factors.tobytes()}
    with pytest.raises(ConfigError, match=r"equalizer\[5\].*a positive number"):
        Equalizers().check(dataclasses.replace(batch, payloads=payloads))


def test_only_where_the_spec_allows_it() -> None:
    """[B-36] [B-38] Equalized taps and equalizers are refused where codec.equalize is false."""
    (batch,) = batches(1)
    batch.check(spec())
    plain = spec(codec=CodecSpec(format="asym4", block=32, equalize=False))
    with pytest.raises(ConfigError, match="superfluous"):
        batch.check(plain)
    headers = {number: header for number, header in batch.headers.items() if number < EQUALIZERS}
    with pytest.raises(ConfigError, match="tap 0 is 'equalized'"):
        dataclasses.replace(batch, headers=headers).check(plain)
    headers = {**batch.headers, EQUALIZERS: TensorHeader(batch.headers[EQUALIZERS].format, 0, (8,))}
    with pytest.raises(ConfigError, match=r"the equalizer of tap 0 is \[8\]"):
        dataclasses.replace(batch, headers=headers).check(spec())


def test_the_log_gives_them_back(tmp_path: pathlib.Path) -> None:
    """[X-18] Reading the log again gives the same taps, in the first epoch and in later ones."""
    sent = batches(3)
    log = ActivationLog(tmp_path / "log")
    log.append(sent)
    log.close()
    log = ActivationLog(tmp_path / "log")
    assert [entry.equalizers for entry in log.entries] == [True, False, False]
    equalizers = Equalizers()
    equalizers.load(log)
    for entry, batch in zip(log.entries, sent, strict=True):
        found = log.read(entry)
        assert found.headers == batch.headers
        x = arrays(entry.seq, SAMPLES).taps[0]
        factors = equalizers.of(0, found.headers[0])
        y = unpack_torch(found.headers[0], found.payloads[0], "cpu", factors).numpy()
        assert np.abs(y - x).mean() < 0.15 * np.abs(x).mean()
    (part,) = Replay(spec(), log).batch(2, 0)
    assert EQUALIZERS not in part.headers
    assert part.headers[0].equalizer == sent[0].headers[0].equalizer
    part.check(spec())
    log.close()


def test_parts_are_one_step() -> None:
    """Equalized and plain samples of one batch give one step, the same as when all were read as floats."""
    what = spec(codec=CodecSpec(format="asym8", block=32), side=dataclasses.replace(spec().side, dropout=0.0))
    first, second = batches(2, what)
    data = arrays(2, SAMPLES)
    plain = as_batch(pack_batch(what, data.taps, data.lengths, data.targets), 2, SAMPLES)
    losses = []
    for other in (second, plain):
        equalizers = Equalizers()
        equalizers.add(first)
        trainer = Trainer(what, {}, equalizers=equalizers)
        taps, lengths, _ = trainer.unpack([first, other])
        x = np.concatenate([arrays(1, SAMPLES).taps[1], data.taps[1]])
        assert lengths.tolist() == arrays(1, SAMPLES).lengths + data.lengths
        assert np.abs(taps[1].numpy() - x).max() < 0.02
        trainer.step(first, other)
        loss = trainer.step(first, other)  # the first one does not depend on the taps
        assert loss is not None
        losses.append(loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]


def test_a_session_over_restarts(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[B-36] [B-38] [X-18] Server and device restart: the same factors go on, others are refused."""
    what = spec(batches=4, epochs=2)

    async def whole(directory: pathlib.Path) -> bytes:
        async with serving(directory) as server, device(server) as client:
            session = await client.open(what)
            for seq in range(1, 5):
                data = arrays(seq, SAMPLES)
                await session.submit(data.taps, data.lengths, data.targets)
            await session.finish()
            await session.wait_finished()
            return await session.pull()

    async def main() -> None:
        expected = await whole(tmp_path / "a")
        async with serving(tmp_path / "b") as server, device(server) as client:
            session = await client.open(what)
            for seq in (1, 2):
                data = arrays(seq, SAMPLES)
                await session.submit(data.taps, data.lengths, data.targets)
            assert {tap: item[0] for tap, item in session.equalizers.items()} == {0: 1, 1: 1}
            await session.wait_durable()
            equalizers = session.equalizers
        async with serving(tmp_path / "b") as server, device(server) as client:
            back = await client.attach(session.id, what, equalizers={})
            data = arrays(3, SAMPLES)
            await back.submit(data.taps, data.lengths, data.targets)  # calibrated anew
            with pytest.raises(RemoteError, match="sent again") as caught:
                await back.wait_durable()
            assert caught.value.code == ErrorCode.SCHEMA_MISMATCH
        async with serving(tmp_path / "b") as server, device(server) as client:
            back = await client.attach(session.id, what, equalizers=equalizers)
            for seq in (3, 4):
                data = arrays(seq, SAMPLES)
                await back.submit(data.taps, data.lengths, data.targets)
            await back.finish()
            await back.wait_finished()
            assert await back.pull() == expected

    run_once(main())
