"""Sessions for tests of server and device: numpy activations, batches, and a server to send them to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import weakref
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mobillm.codec import PackedTensor
from mobillm.device import Client, Session, connect
from mobillm.device.packing import pack_batch
from mobillm.options import Limits, Timeouts
from mobillm.protocol import derive_key
from mobillm.server import serve
from mobillm.server.batch import Batch
from mobillm.server.blobs import BlobReader
from mobillm.server.registry import Registry, SessionRecord
from mobillm.server.store import SessionStore
from mobillm.spec import CodecSpec, ModelSpec, OptimizerSpec, SessionSpec, SideSpec
from mobillm.transport import Server

__all__ = [
    "KEYS",
    "NO_BLOBS",
    "QUICK",
    "TOKEN",
    "Arrays",
    "arrays",
    "device",
    "new_store",
    "open_logs",
    "packed",
    "serving",
    "sparse",
    "spec",
    "submit",
]

TOKEN = "open sesame"
NO_BLOBS = BlobReader(pathlib.Path("none"))
KEYS = {"default": derive_key(TOKEN), "other": derive_key("other token")}
QUICK = Timeouts(connect=5.0, handshake=5.0, request=10.0, keepalive=None, drain=0.3)
WIDTH = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Arrays:
    """What a device submits."""

    taps: list[npt.NDArray[np.float32]]
    lengths: list[int]
    targets: list[int] | list[float]


def spec(**changes: Any) -> SessionSpec:
    """Return a small session: two taps of width 16, a ladder of width 8."""
    settings: dict[str, Any] = {
        "task": "classification",
        "outputs": 2,
        "model": ModelSpec(name="tiny", hidden_size=WIDTH, layers=4, taps=(2, 4)),
        "side": SideSpec(width=8, heads=2, dropout=0.1),
        "optimizer": OptimizerSpec(lr=5e-3, schedule="constant"),
        "codec": CodecSpec(format="asym4", block=32),
        "seed": 3,
    }
    return SessionSpec(**(settings | changes))


def arrays(seq: int, samples: int = 4, task: str = "classification") -> Arrays:
    """Draw the activations of a batch, whose classes can be learned; the same number gives the same ones."""
    generator = np.random.default_rng(seq)
    lengths = generator.integers(1, 6, samples).tolist()
    classes = generator.integers(0, 2, samples)
    # A pattern whose mean is 0, as a normalisation of each token would take a shift away.
    pattern = np.where(np.arange(WIDTH) % 2, 1.0, -1.0)
    sign = np.repeat(2.0 * classes - 1.0, lengths)[:, None] * pattern
    taps = [(sign + generator.standard_normal((sum(lengths), WIDTH))).astype(np.float32) for _ in range(2)]
    if task == "regression":
        return Arrays(taps, lengths, [float(value) for value in classes])
    if task == "causal-lm":
        return Arrays(taps, lengths, generator.integers(0, 2, sum(lengths)).tolist())
    return Arrays(taps, lengths, classes.tolist())


def sparse(seq: int, samples: int = 8) -> Arrays:
    """Draw the activations of a batch of whose packed taps zstd leaves about two thirds."""
    data = arrays(seq, samples * 4)
    generator = np.random.default_rng([seq, 1])
    taps = [np.where(generator.random(tap.shape) < 0.1, tap, tap[:1]) for tap in data.taps]
    return Arrays(taps, data.lengths, data.targets)


def packed(session: SessionSpec, seq: int, *, heldout: bool = False, samples: int = 4) -> Batch:
    """Return a batch as the server holds it."""
    data = arrays(seq, samples, session.task)
    return as_batch(pack_batch(session, data.taps, data.lengths, data.targets), seq, samples, heldout)


def as_batch(tensors: dict[int, PackedTensor], seq: int, samples: int, heldout: bool = False) -> Batch:
    """Return packed tensors as a batch."""
    headers = {number: tensor.header for number, tensor in tensors.items()}
    payloads: dict[int, bytes | memoryview] = {number: t.payload for number, t in tensors.items()}
    compressed = frozenset(number for number, tensor in tensors.items() if tensor.compressed)
    return Batch(seq, samples, heldout, headers, payloads, compressed)


def new_store(folder: pathlib.Path, what: SessionSpec, name: bytes = bytes(range(16))) -> SessionStore:
    """Return the files of a new session, with a registry of its own."""
    registry = Registry(folder / "registry.sqlite")
    store = SessionStore.create(folder, registry, SessionRecord(id=name, tenant="acme", spec=what))
    weakref.finalize(store, registry.close)
    return store


@contextlib.asynccontextmanager
async def serving(
    directory: pathlib.Path, *, limits: Limits | None = None, timeouts: Timeouts = QUICK, **options: Any
) -> AsyncIterator[Server]:
    """Run a server on a free port of this machine."""
    async with serve(
        "127.0.0.1:0", keys=KEYS, directory=directory, limits=limits, timeouts=timeouts, **options
    ) as server:
        yield server


def device(server: Server, **options: Any) -> connect:
    """Return a device's connect to a server."""
    settings: dict[str, Any] = {"token": TOKEN, "timeouts": QUICK}
    return connect(server.address, **(settings | options))


async def submit(session: Session, first: int, last: int, *, heldout: bool = False) -> None:
    """Submit the batches with these numbers."""
    for seq in range(first, last + 1):
        data = arrays(seq, task=session.spec.task)
        assert await session.submit(data.taps, data.lengths, data.targets, heldout=heldout) == seq


async def train(client: Client, what: SessionSpec, batches: int) -> tuple[Session, bytes]:
    """Run a whole session; return it and its weights."""
    session = await client.open(what)
    await submit(session, 1, batches)
    await session.finish()
    await session.wait_finished()
    return session, await session.pull()


def open_logs(folder: pathlib.Path) -> list[str]:
    """Return the activation logs below a folder that this process has open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.exists(link)]  # not the listing's own
    return [name for name in files if name.startswith(str(folder)) and name.endswith(".log")]
