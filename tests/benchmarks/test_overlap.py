"""The overlap benchmark on a model that costs nothing: its figures are there and make sense."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import threading
from collections.abc import Callable, Iterator

import pytest
from rich.console import Console

from benchmarks import overlap
from benchmarks.link import Shape
from benchmarks.overlap import POINTS, Bench, Point, link_point
from benchmarks.rig import Server, token_batches
from mobillm.nn.backbone import Backbone
from mobillm.server import serve
from tests.nn.tiny import tiny_model, tiny_tokenizer
from tests.sessions import KEYS, QUICK, TOKEN


@pytest.fixture
def at(tmp_path: pathlib.Path) -> Iterator[Server]:
    """Run a server in a thread of this process."""
    ready = threading.Event()
    found: list[Server] = []
    stops: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with serve("127.0.0.1:0", keys=KEYS, directory=tmp_path, timeouts=QUICK) as server:
            found.append(Server(server.address, TOKEN, tmp_path))
            stops.append(lambda: loop.call_soon_threadsafe(stop.set))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10.0)
    try:
        yield found[0]
    finally:
        stops[0]()
        thread.join()


@pytest.fixture
def backbone() -> Backbone:
    """Return a tiny decoder."""
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps="all")


def test_batches_of_one_shape() -> None:
    """As many batches, samples and tokens as asked for, in order; few tokens are used again."""
    batches = token_batches(range(100), size=4, tokens=18, count=3)
    assert [token for batch in batches for sample in batch.input_ids for token in sample] == [
        number % 100 for number in range(4 * 18 * 3)
    ]
    assert [len(batch.input_ids) for batch in batches] == [4, 4, 4]
    assert {len(sample) for batch in batches for sample in batch.input_ids} == {18}
    assert {len(batch.targets) for batch in batches} == {4}


def test_a_point_with_and_without_overlap(at: Server, backbone: Backbone) -> None:
    """A link that is slower than the device is busy nearly all the time; without overlap it takes longer."""
    bench = Bench(at, Console(quiet=True), backbone)
    point = Point(taps="all", format="f32", shape=Shape(rate=2e5, rtt=0.02), size=4, count=6)
    run = bench.run(point)
    assert run.link_busy is not None
    assert run.goodput is not None
    assert 0.5 < run.goodput < run.link_busy <= 1.0
    # Nothing can be faster than the rate.
    assert run.wall >= run.packed / 2e5 - 0.1
    assert sum(run.where.values()) == pytest.approx(run.wall)
    assert bench.run(point, serial=True).wall > run.wall
    assert bench.bare(point) > 0.0


def test_the_figures_of_all_points(at: Server, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operating point has its efficiency, its critical stage, and its time without overlap."""
    small = {name: dataclasses.replace(point, taps="all", size=2, count=6) for name, point in POINTS.items()}
    small["link_bound"] = dataclasses.replace(small["link_bound"], shape=Shape(rate=3e4, rtt=0.01))
    monkeypatch.setattr(overlap, "POINTS", small)
    found = Bench(at, Console(quiet=True), backbone).efficiency(quick=True)
    assert set(found["efficiency"]) == {"device_bound", "link_bound", "server_bound"}
    # Where nothing holds six tiny batches up, all may be durable at once: then no time is left to be busy in.
    assert all(0.0 <= value <= 1.0 for value in found["efficiency"].values())
    assert found["efficiency"]["link_bound"] > 0.0
    assert all(value > 0.0 for value in found["serial_over_pipelined"].values())
    assert found["stages"]["link_bound"]["critical"] == "link"
    rounds = found["rounds"]["device_bound"]
    assert len(rounds["efficiency"]) == 1
    assert found["device_over_bare"] == pytest.approx(
        rounds["batch_seconds"][0] / rounds["bare_forward_seconds"][0]
    )


def test_link_points_outrun_the_link() -> None:
    """A device of 700 tokens a second makes at least twice what the link carries."""
    for megabits in (2, 10, 100):
        point = link_point(megabits, 50)
        layers = 30 if point.taps == "all" else 8
        value = 4.5 / 8 if point.format == "asym4" else 4.0
        assert 700 * layers * 576 * value >= 2 * point.shape.rate
