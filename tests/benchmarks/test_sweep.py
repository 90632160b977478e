"""The sweep's bookkeeping: what is measured, what is not measured again, and what a failure costs."""

from __future__ import annotations

import contextlib
import csv
import json
import pathlib
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks import sweep as sweep_module
from benchmarks.sweep import BITS, RATES, Point, Results, full, quick, sweep
from benchmarks.sweep_plots import draw

POINTS = [Point(bits=bits, rate=rate) for bits in (2, 4) for rate in (2, 10)]


def figures(point: Point) -> dict[str, Any]:
    """Return made-up figures of a point."""
    where = {"device": 1.0, "link": 10.0 / point.rate, "server": 0.1, "idle": 0.0}
    return {"wall": sum(where.values()), "bytes": point.bits * 1000, "where": where, "accuracy": None}


class Bench:
    """Stands in for the model and the server.

    Attributes:
        ran: points in order.
        servers: how many were started.

    """

    def __init__(self, *, broken: tuple[str, ...] = (), stop_after: int | None = None) -> None:
        self.ran: list[str] = []
        self.servers = 0
        self._broken = broken
        self._stop_after = stop_after

    @contextlib.contextmanager
    def rigs(self) -> Iterator[Callable[[Point], dict[str, Any]]]:
        """Start a server."""
        self.servers += 1
        yield self._run

    def _run(self, point: Point) -> dict[str, Any]:
        if len(self.ran) == self._stop_after:
            raise KeyboardInterrupt
        self.ran.append(point.key)
        if point.key in self._broken:
            raise RuntimeError("the link is down")
        return figures(point)


def nobody(point: Point, error: str | None) -> None:
    """Show nothing."""


def test_a_sweep_goes_on_where_it_stopped(tmp_path: pathlib.Path) -> None:
    """Interrupted after two points, the same call measures the other two; a torn line does not count."""
    path = tmp_path / "sweep.jsonl"
    first = Bench(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        sweep(POINTS, Results(path), first.rigs, nobody)
    with path.open("a") as file:
        file.write('{"key": "' + POINTS[2].key)
    second = Bench()
    assert sweep(POINTS, Results(path), second.rigs, nobody) == 0
    assert first.ran + second.ran == [point.key for point in POINTS]
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == first.ran + second.ran
    third = Bench()
    sweep(POINTS, Results(path), third.rigs, nobody)
    assert (third.ran, third.servers) == ([], 0)


@pytest.mark.slow
def test_a_killed_sweep_goes_on(tmp_path: pathlib.Path) -> None:
    """What was measured before SIGKILL is on the disk, and is not measured again."""
    path = tmp_path / "sweep.jsonl"
    program = """
import os, pathlib, signal, sys
from benchmarks.sweep import Results, sweep
from tests.benchmarks.test_sweep import POINTS, Bench, nobody
class Killed(Bench):
    def _run(self, point):
        if len(self.ran) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._run(point)
sweep(POINTS, Results(pathlib.Path(sys.argv[1])), Killed().rigs, nobody)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(path)], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    bench = Bench()
    assert sweep(POINTS, Results(path), bench.rigs, nobody) == 0
    assert bench.ran == [POINTS[3].key]


def test_the_command_goes_on_after_ctrl_c(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C gives the status of an interruption; a failure the status 1; then the rest is drawn."""
    failing = Bench(broken=(POINTS[2].key,))
    for bench, status in ((Bench(stop_after=1), 130), (failing, 1), (Bench(), 0)):
        device = types.SimpleNamespace(run=lambda point, at, bench=bench: bench._run(point))
        monkeypatch.setattr(sweep_module, "Device", lambda device=device: device)
        monkeypatch.setattr(sweep_module, "server", contextlib.nullcontext)
        monkeypatch.setattr(sweep_module, "full", lambda: POINTS)
        assert sweep_module.main(["--out", str(tmp_path)]) == status
    assert failing.ran == [point.key for point in POINTS[1:]]
    shown = capsys.readouterr().err
    assert "4 of 4 points to measure, about" in shown
    assert f"{POINTS[2].key} failed: RuntimeError: the link is down" in shown.replace("\n", " ")
    assert "1 of 4 points to measure" in shown
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 5
    assert (tmp_path / "sweep-time.png").exists()


def test_a_failure_does_not_stop_the_rest(tmp_path: pathlib.Path) -> None:
    """It is reported and kept, the rest gets a new server, and the next call tries it again."""
    path = tmp_path / "sweep.jsonl"
    bench = Bench(broken=(POINTS[1].key,))
    seen: list[str | None] = []
    assert sweep(POINTS, Results(path), bench.rigs, lambda _, error: seen.append(error)) == 1
    assert seen == [None, "RuntimeError: the link is down", None, None]
    assert bench.servers == 2
    assert json.loads(path.read_text().splitlines()[1])["error"] == "RuntimeError: the link is down"
    again = Bench()
    assert sweep(POINTS, Results(path), again.rigs, nobody) == 0
    assert again.ran == [POINTS[1].key]


def test_table_and_pictures(tmp_path: pathlib.Path) -> None:
    """The table has a row for each known point; the pictures are there."""
    results = Results(tmp_path / "sweep.jsonl")
    sweep(POINTS[:3], results, Bench().rigs, nobody)
    results.write_csv(tmp_path / "sweep.csv", POINTS)
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert [(row["bits"], row["rate"], row["where.link"]) for row in rows] == [
        ("2", "2", "5.0"),
        ("2", "10", "1.0"),
        ("4", "2", "5.0"),
    ]
    known = [(point, results.done[point.key]) for point in POINTS[:3]]
    trained = figures(POINTS[0]) | {"accuracy": 0.8}
    drawn = draw([*known, (Point(bits=4, rate=0), trained)], tmp_path)
    assert [path.name for path in drawn] == ["sweep-time.png", "sweep-where.png", "sweep-accuracy.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_full_sweep_has_the_whole_grid() -> None:
    """Every width at every bandwidth, each point once; the quick one is estimated below a minute."""
    points = full()
    assert {(point.bits, point.rate) for point in points} >= {(b, r) for b in BITS for r in RATES}
    assert len({point.key for point in points}) == len(points)
    assert {point.tokens for point in points} == {"all", "last"}
    assert len({point.rtt for point in points}) > 2
    assert sum(point.seconds() for point in quick()) < 60.0
