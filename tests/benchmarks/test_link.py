"""The relay that emulates a slow link: its schedule, its bytes, and its rate beside links below TCP."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import child, link
from benchmarks.link import AHEAD, Bucket, Relay, Shape, parse_rate, parse_seconds, relayed
from mobillm.transport import Address
from tests.conftest import Run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10mbit", 1.25e6),
        ("2.5Mbit", 312500.0),
        ("64kbit", 8000.0),
        ("8000bit", 1000.0),
        ("0", 0.0),
        ("0bit", 0.0),
    ],
)
def test_rates(text: str, rate: float) -> None:
    """Rates are written as tc writes them, in bits; the emulator counts bytes."""
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["10", "fast", "-1mbit", "10mb", "", "999bit", "101gbit", "1e9mbit", "9" * 400]
)
def test_no_rate(text: str) -> None:
    """A number without a unit could be bits or bytes: it is refused, as is what no link has."""
    with pytest.raises(argparse.ArgumentTypeError, match=r"1kbit to 100gbit, in bit, .* such as 10mbit"):
        parse_rate(text)


def test_times() -> None:
    """Milliseconds and seconds."""
    assert (parse_seconds("50ms"), parse_seconds("0.2s")) == (0.05, 0.2)
    for text in ("50", "61s"):
        with pytest.raises(argparse.ArgumentTypeError, match="0s to 60s, in ms or s such as 50ms"):
            parse_seconds(text)


def test_bucket_keeps_its_rate_when_it_is_late() -> None:
    """Pieces that are handed over late by less than the burst leave as if they had been on time."""
    bucket = Bucket(1000.0)
    source = random.Random(1)
    now = left = 100.0
    for _ in range(1000):
        left = bucket.admit(10, now + source.uniform(0.0, 0.009))
        now = left
    assert left - 100.0 == pytest.approx(10.0, rel=0.001)
    assert len(bucket.busy) == 1


def test_bucket_is_idle_between_bursts() -> None:
    """After a pause nothing is saved up but the burst, and the pause is not counted as busy."""
    bucket = Bucket(1000.0)
    assert bucket.admit(100, 5.0) == pytest.approx(5.09)
    assert bucket.admit(100, 8.0) == pytest.approx(8.09)
    assert bucket.backlog(8.04) == pytest.approx(0.05)
    assert [end - start for start, end in bucket.busy] == pytest.approx([0.09, 0.09])


def test_bucket_without_a_rate() -> None:
    """Nothing waits."""
    bucket = Bucket(0.0)
    assert bucket.admit(1 << 30, 3.0) == 3.0
    assert bucket.backlog(3.0) == 0.0


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer only after the sender's end, so that half a close has to pass."""
    writer.write(await reader.read(-1))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "shape", [Shape(), Shape(rate=4e6, rtt=0.02), Shape(rtt=0.2)], ids=["free", "slow", "far"]
)
def test_relay_passes_all_bytes_in_order(run_once: Run, shape: Shape) -> None:
    """What is sent arrives as it was, there and back, and an end passes in one direction alone."""
    data = random.Random(2).randbytes(300_000)

    async def main() -> None:
        server = await asyncio.start_server(_echo, "127.0.0.1", 0)
        target = Address(*server.sockets[0].getsockname()[:2])
        loop = asyncio.get_running_loop()
        async with Relay(target, shape) as relay:
            start = loop.time()
            reader, writer = await asyncio.open_connection(relay.address.host, relay.address.port)
            writer.write(data)
            writer.write_eof()
            assert await reader.read(-1) == data
            # Never faster than the link: both ways one after the other, and a round trip.
            least = shape.rtt + (2 * (len(data) / shape.rate - AHEAD) if shape.rate else 0.0)
            assert loop.time() - start >= least
            writer.close()
            await writer.wait_closed()
            (figures,) = relay.figures()["connections"]
            assert (figures["up"], figures["down"]) == (len(data), len(data))
            if shape.rate:
                busy = sum(end - begin for begin, end in figures["busy_up"])
                assert busy == pytest.approx(len(data) / shape.rate, rel=0.2)
        server.close()
        await server.wait_closed()

    run_once(main())


def test_relay_holds_back_a_fast_sender(run_once: Run) -> None:
    """A receiver that does not read stops the sender: the relay's memory is bounded."""

    async def main() -> None:
        stop = asyncio.Event()

        async def never_reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await stop.wait()
            writer.close()

        server = await asyncio.start_server(never_reads, "127.0.0.1", 0, limit=1 << 10)
        async with Relay(Address(*server.sockets[0].getsockname()[:2]), Shape(rate=1e6)) as relay:
            _, writer = await asyncio.open_connection(relay.address.host, relay.address.port)
            writer.write(bytes(64 << 20))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(writer.drain(), 0.3)
            up, _ = relay._directions[0]
            assert up._held <= relay.shape.line + relay.shape.piece
            writer.transport.abort()
        stop.set()
        server.close()
        await server.wait_closed()

    run_once(main())


def test_relay_as_a_process() -> None:
    """The command says where it listens, refuses what it cannot reach, and reports at its end."""
    command = [sys.executable, "-m", "benchmarks.link", "--to", "127.0.0.1:1", "--rate", "1mbit", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["address"].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10.0) as sock:
            try:
                assert sock.recv(1) == b""
            except ConnectionResetError:
                pass  # the same, seen earlier
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=10)
    assert errors == "cannot reach 127.0.0.1:1: Connection refused\n"
    assert json.loads(output)["connections"][0]["down"] == 0
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rate", "10"], "1kbit to 100gbit"),
        (["--rtt", "10"], "0s to 60s"),
        (["--to", "127.0.0.1:0"], "has the port 0"),
        (["--to", "127.0.0.1:port"], "expected HOST:PORT"),
        (["--core", "4095"], "none of this machine's cores, 0 to "),
        (["--core", "first"], "no integer from 0 to 4095"),
    ],
)
def test_what_is_wrong(capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str) -> None:
    """Each argument says what it may be."""
    with pytest.raises(SystemExit) as ended:
        link.main(["--to", "127.0.0.1:7707", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_where_it_cannot_listen(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that is taken, and a host that is not known, are one line each."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert link.main(["--to", "127.0.0.1:7707", "--listen", f"127.0.0.1:{port}"]) == 1
    assert capsys.readouterr().err == f"cannot listen at 127.0.0.1:{port}: Address already in use\n"
    assert link.main(["--to", "127.0.0.1:7707", "--listen", "nowhere.invalid:1"]) == 1
    assert capsys.readouterr().err.startswith("cannot listen at nowhere.invalid:1: ")


def test_a_link_that_ended_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever killed it, that is what is said when its figures are asked for."""
    started: list[subprocess.Popen[str]] = []
    start = child.start

    def note(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        started.append(start(arguments, **options))
        return started[0]

    monkeypatch.setattr(child, "start", note)
    with relayed(Address("127.0.0.1", 1), Shape()) as (_, stop):
        started[0].kill()
        with pytest.raises(RuntimeError, match="ended by itself, with the status -9"):
            stop()


def test_a_core_that_the_caller_is_not_on() -> None:
    """A process that is pinned to one core can put the link on another one."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        with relayed(Address("127.0.0.1", 1), Shape(), core=cores[-1]) as (_, stop):
            assert stop() == {"connections": []}
    finally:
        os.sched_setaffinity(0, cores)
