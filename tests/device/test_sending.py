"""Batches on their way: what goes over a connection depends on what that one can do."""

from __future__ import annotations

import dataclasses
import pathlib

import pytest

from mobillm.device import Client
from mobillm.device.packing import pack_batch
from mobillm.device.uplink import Uplink
from mobillm.protocol import TARGETS, Data, Message
from tests.conftest import Run
from tests.sessions import device, serving, sparse, spec

PLAIN = spec(epochs=2, batches=3)
COMPRESSING = dataclasses.replace(PLAIN, codec=dataclasses.replace(PLAIN.codec, compression="zstd"))


def test_kept_batches_go_to_a_server_without_it(run_once: Run, tmp_path: pathlib.Path) -> None:
    """[X-19] [Z-13] What was compressed before a loss goes as it is over a connection without zstd."""

    async def main() -> None:
        async with serving(tmp_path / "a") as server, device(server) as client:
            session = await client.open(PLAIN)
            for seq in range(1, 5):
                data = sparse(seq)
                await session.submit(data.taps, data.lengths, data.targets, heldout=seq == 4)
            await session.finish()
            await session.wait_finished()
            expected = await session.pull(), dict((await session.evaluate()).values)
        async with serving(tmp_path / "b") as server:

            async def dial() -> Client:
                found = await device(server)
                if dials:
                    found.connection.endpoint.caps = ()
                dials.append(found)
                return found

            dials: list[Client] = []
            uplink = Uplink(dial, COMPRESSING, keep=1 << 20, patience=20.0)
            await uplink.start()
            for seq in range(1, 5):
                data = sparse(seq)
                batch = await uplink.begin(len(data.lengths), heldout=seq == 4)
                packer = uplink.session.packer
                packed = pack_batch(uplink.spec, data.taps, data.lengths, data.targets, packer)
                for number, tensor in packed.items():
                    assert tensor.compressed is (number < TARGETS)
                    if (seq, number) == (2, 1):
                        uplink.session.connection.abort()
                    await uplink.send(batch, number, tensor)
                await uplink.commit(batch)
            assert (uplink.losses, len(dials)) == (1, 2)
            assert not uplink.session.compresses
            await uplink.finish()
            await uplink.wait_finished()
            assert (await uplink.pull(), dict((await uplink.evaluate()).values)) == expected
            await uplink.close()

    run_once(main())


def test_the_first_part_says_it(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[Z-1] [Z-3] [D-75] The first part holds the size of the frame, in which later ones follow."""

    async def main() -> None:
        async with serving(tmp_path) as server, device(server) as client:
            session = await client.open(COMPRESSING)
            data = sparse(1)
            packed = pack_batch(COMPRESSING, data.taps, data.lengths, data.targets, session.packer)[0]
            parts: list[Data] = []

            async def note(message: Message) -> None:
                assert isinstance(message, Data)
                parts.append(message)

            limits = client.connection.endpoint.limits
            client.connection.endpoint.limits = dataclasses.replace(limits, chunk=1024)
            monkeypatch.setattr(session, "send", note)
            long = dataclasses.replace(packed, payload=memoryview(bytes(2500)))
            await session.begin(1).send(0, dataclasses.replace(long, equalizer=None))
            assert [(part.offset, part.zstd) for part in parts] == [(0, 2500), (1024, None), (2048, None)]
            assert parts[0].header() == packed.header

    run_once(main())
