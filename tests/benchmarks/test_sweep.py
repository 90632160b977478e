"""The sweep's bookkeeping: what is measured, what is not measured again, and what a failure costs."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
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
from benchmarks.sweep import sweep
from benchmarks.sweep_plots import draw
from benchmarks.sweep_points import BITS, QUICK_SIZES, RATES, Estimate, Point, full, quick
from benchmarks.sweep_results import Results, SweepError, claimed

POINTS = [Point(bits=bits, rate=rate) for bits in (2, 4) for rate in (2, 10)]


def figures(point: Point) -> dict[str, Any]:
    """Return made-up figures of a point."""
    link = 10.0 / point.rate if point.rate else 0.0
    where = {"device": 1.0, "link": link, "server": 0.1, "idle": 0.0}
    return {
        "wall": sum(where.values()),
        "bytes": point.bits * 1000,
        "busy": {"device": 1.0, "link": link, "disk": 0.1, "server": 0.2},
        "waits": {"room": 0.0, "credit": 0.0, "link": 0.0},
        "where": where,
        "critical": "link",
        "loss": 0.5,
        "accuracy": None,
    }


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


def device(monkeypatch: pytest.MonkeyPatch, bench: Bench, speed: float = 800.0) -> None:
    """Put a bench in the place of the model and the server."""
    model = types.SimpleNamespace(run=lambda point, at: bench._run(point), speed=speed)
    monkeypatch.setattr(sweep_module, "Device", lambda: model)
    monkeypatch.setattr(sweep_module, "server", contextlib.nullcontext)


def command(*arguments: str) -> int | str | None:
    """Return the status with which the program ends."""
    try:
        return sweep_module.main(arguments)
    except SystemExit as end:
        return end.code


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
from benchmarks.sweep import sweep
from benchmarks.sweep_results import Results
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
        device(monkeypatch, bench)
        monkeypatch.setattr(sweep_module, "full", lambda: POINTS)
        assert command("--out", str(tmp_path)) == status
    assert failing.ran == [point.key for point in POINTS[1:]]
    shown = capsys.readouterr().err
    assert "4 of 4 points to measure, about" in shown
    assert "interrupted; the same command goes on where it stopped" in shown
    assert f"{POINTS[2].key} failed: the link is down" in shown.replace("\n", " ")
    assert "1 of 4 points to measure" in shown
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 5
    assert (tmp_path / "sweep-time.png").exists()


def test_a_failure_does_not_stop_the_rest(tmp_path: pathlib.Path) -> None:
    """It is reported and kept, the rest gets a new server, and the next call tries it again."""
    path = tmp_path / "sweep.jsonl"
    bench = Bench(broken=(POINTS[1].key,))
    seen: list[str | None] = []
    assert sweep(POINTS, Results(path), bench.rigs, lambda _, error: seen.append(error)) == 1
    assert seen == [None, "the link is down", None, None]
    assert bench.servers == 2
    assert json.loads(path.read_text().splitlines()[1])["error"] == "the link is down"
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
    assert Estimate(800.0).seconds(quick()) < 60.0
    sizes = [{point.key for point in quick(size)} for size in QUICK_SIZES]
    assert len(set.union(*sizes)) == sum(map(len, sizes))


def test_a_slow_machine_has_fewer_messages(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quick sweep takes about a minute there, too; begun, it goes on with the size that it had."""
    first = Bench(stop_after=2)
    device(monkeypatch, first, speed=100.0)
    assert command("--quick", "--out", str(tmp_path)) == 130
    size = int(first.ran[0].split("/")[6])
    assert size < QUICK_SIZES[0]
    assert 20.0 < Estimate(100.0).seconds(quick(size)) < 90.0
    second = Bench()
    device(monkeypatch, second, speed=800.0)
    assert command("--quick", "--out", str(tmp_path)) == 0
    assert first.ran + second.ran == [point.key for point in quick(size)]
    assert f"2 of {len(second.ran)}, about " in capsys.readouterr().err


def test_the_estimate_is_put_right_by_what_is_done() -> None:
    """Points that take four times as long as thought say so of the rest."""
    estimate = Estimate(200.0)
    thought = estimate.seconds(POINTS)
    assert estimate.seconds(POINTS) > Estimate(800.0).seconds(POINTS)
    estimate.note(POINTS[0], 4 * estimate.seconds(POINTS[:1]))
    assert estimate.seconds(POINTS) == pytest.approx(4 * thought)


def test_a_grid_of_ones_own(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths and rates that were named, and nothing else; what is no width or rate is wrong usage."""
    bench = Bench()
    device(monkeypatch, bench)
    assert command("--bits", "4,2", "--rates", "2.5,20", "--out", str(tmp_path)) == 0
    assert bench.ran == [Point(bits=bits, rate=rate).key for bits in (2, 4) for rate in (2.5, 20)]
    for wrong in (["--bits", "5"], ["--bits", "4,4"], ["--rates", "0"], ["--rates", "x"], ["--rates", "nan"]):
        assert command(*wrong, "--out", str(tmp_path)) == 2
    assert command("--quick", "--bits", "4", "--out", str(tmp_path)) == 2


def test_where_nothing_can_be_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known before the model is loaded, in one line that names the directory."""
    monkeypatch.setattr(sweep_module, "Device", None)
    file = tmp_path / "file"
    file.touch()
    for place, reason in ((file, "File exists"), (file / "below", "Not a directory")):
        assert command("--out", str(place)) == 2
        assert capsys.readouterr().err == (
            f"benchmarks.sweep: error: nothing can be written to --out {place}: {reason}\n"
        )
    (tmp_path / "sweep.lock").symlink_to("/dev/full")
    assert command("--out", str(tmp_path)) == 1
    assert f"--out {tmp_path}: No space left on device\n" in capsys.readouterr().err


def test_a_disk_that_becomes_full(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The point is not said to have failed: the sweep ends with one line."""
    device(monkeypatch, Bench())

    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    assert command("--out", str(tmp_path)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last == f"benchmarks.sweep: error: {tmp_path}/sweep.jsonl cannot be written: No space left on device"
    )


def test_two_sweeps_do_not_share_a_directory(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one is refused; after the first one's end it is not."""
    with claimed(tmp_path):
        assert command("--out", str(tmp_path)) == 1
        assert "error: another sweep writes to" in capsys.readouterr().err
    with claimed(tmp_path):
        pass


def line(**changes: Any) -> bytes:
    """Return a line of results with changed figures."""
    return json.dumps({"key": "k", "figures": figures(POINTS[0]) | changes}).encode()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (b'{"key": "k", "fig', "Unterminated string"),
        (b"\xff\xfe", "codec"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "names no point"),
        (b'{"key": "k"}', "neither figures nor an error"),
        (b'{"key": "k", "figures": null}', "figures are no map"),
        (b'{"key": "k", "figures": {}}', "wall is None"),
        (line(wall="abc"), "wall is abc, no number"),
        (line(wall=1e308), r"wall is 1e\+308, no number"),
        (line(wall=0), "wall is 0"),
        (line(wall=float("nan")), "NaN is no number"),
        (line(where={"device": 1.0}), "where is no map of device, link, server, idle"),
        (line(busy={"device": 1, "link": None, "disk": 1, "server": 1}), "busy.link is None"),
        (line(critical="luck"), "critical is none of"),
        (line(accuracy="good"), "accuracy is good"),
    ],
)
def test_a_broken_line_is_named(tmp_path: pathlib.Path, broken: bytes, reason: str) -> None:
    """Its number is said and what to do, and the file stays as it is."""
    path = tmp_path / "sweep.jsonl"
    data = line() + b"\n\n" + broken + b"\n" + line() + b"\n" + b'{"half'
    path.write_bytes(data)
    with pytest.raises(
        SweepError, match=rf"sweep\.jsonl line 3 is no result \(.*{reason}.*\); delete the line"
    ):
        Results(path)
    assert path.read_bytes() == data


def test_a_last_line_without_its_end_counts(tmp_path: pathlib.Path) -> None:
    """An editor may have left it out; what comes next begins a line of its own."""
    path = tmp_path / "sweep.jsonl"
    path.write_bytes(line())
    results = Results(path)
    assert set(results.done) == {"k"}
    results.add(POINTS[0], figures=figures(POINTS[0]))
    assert set(Results(path).done) == {"k", POINTS[0].key}
