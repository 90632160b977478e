"""Metrics as Prometheus reads them, against what really happened."""

from __future__ import annotations

import asyncio
import pathlib
import re
import shutil
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mobillm.device import Session
from mobillm.errors import ErrorCode, HandshakeError, RemoteError, StorageError
from mobillm.options import Limits
from mobillm.protocol import Detach
from mobillm.server.checkpoints import Checkpoints
from mobillm.server.gateway import _reason
from mobillm.server.log import ActivationLog
from mobillm.server.metrics import PrometheusMeter
from mobillm.transport import Address
from tests.conftest import Run
from tests.server.raw import raw
from tests.sessions import device, packed, serving, spec, submit, train

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "operating.md"


def get(meter: PrometheusMeter, path: str = "/metrics") -> str:
    """Return what the endpoint answers."""
    assert meter.monitor is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{meter.monitor.address.port}{path}", timeout=5) as answer:
        text: str = answer.read().decode()
    return text


async def scrape(meter: PrometheusMeter) -> dict[str, float]:
    """Return all samples by name, with a label's value behind a colon."""
    families = text_string_to_metric_families(await asyncio.to_thread(get, meter))
    return {
        ":".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def size_of_log(directory: pathlib.Path, session: Session) -> int:
    """Return the bytes of a session's records, without the room that is allocated ahead of them."""
    copy = directory / "copy.log"
    shutil.copy(directory / "sessions" / session.id.hex() / "activations.log", copy)
    log = ActivationLog(copy)
    log.close()
    return log.size


def test_what_happened_is_counted(run: Run, tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """A session, a device that comes back, a batch that is refused: each is counted where it belongs."""

    async def main() -> None:
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        async with serving(tmp_path, meter=meter) as server:
            async with device(server) as client:
                session, _ = await train(client, spec(batches=3, epochs=2), 3)
                other = await client.open(spec())
                await submit(other, 1, 2)
                await other.wait_applied()
                found = await scrape(meter)
                size = sum(size_of_log(tmp_path, one) for one in (session, other))
                expected = {
                    "connections": 1, "connections_opened_total": 1, "sessions:finished": 1,
                    "sessions:receiving": 1, "sessions:failed": 0, "sessions_attached": 2,
                    "batches_received_total": 5, "batches_durable_total": 5, "steps_total": 8,
                    "batch_latency_seconds_count:apply": 8, "batch_latency_seconds_count:receive": 5,
                    "checkpoint_duration_seconds_count": 1, "queue_batches": 0, "queue_bytes": 0,
                    "ack_durable_lag_batches": 0, "log_bytes": size, "session_resumes_total": 0,
                    "replayed_batches_total": 0, "checkpoint_failures_total": 0, "auth_failures_total": 0,
                    "memory_limit_bytes": Limits().memory,
                }  # fmt: skip
                assert {name: found[f"mobillm_{name}"] for name in expected} == expected
                assert 0 < found["mobillm_batch_bytes_total"] < size
                assert found["mobillm_checkpoint_size_bytes"] > 0
                assert 0 < found["mobillm_memory_claimed_bytes"] <= 2 * Limits().queue
                await client.attach(other.id, other.spec)
            async with device(server) as client:
                await client.attach(other.id, other.spec)
                found = await scrape(meter)
                assert found["mobillm_session_resumes_total"] == 2
                assert found["mobillm_connections_closed_total:ok"] == 1
                assert found["mobillm_received_bytes_total"] > found["mobillm_batch_bytes_total"]
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        for path in (tmp_path / "sessions" / other.id.hex()).glob("checkpoint-*"):
            path.unlink()
        async with serving(tmp_path, meter=meter) as server, device(server) as client:
            await (await client.attach(other.id, other.spec)).wait_applied(2)
            assert (await scrape(meter))["mobillm_replayed_batches_total"] == 2

    run(main())


def test_refused_and_repeated_batches(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A batch beyond the share is rejected by the name of its error; a failed checkpoint counts."""

    async def main() -> None:
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        limits = Limits(stored=16 * 1024)
        async with serving(tmp_path, meter=meter, limits=limits) as server, device(server) as client:
            session = await client.open(spec())
            with pytest.raises(RemoteError, match="QUOTA"):
                await submit(session, 1, 200)
            assert (await scrape(meter))["mobillm_batches_rejected_total:QUOTA"] >= 1

    run_once(main())


def test_failed_logins_are_counted(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A wrong token counts once, whoever it was."""

    async def main() -> None:
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        async with serving(tmp_path, meter=meter) as server:
            with pytest.raises(HandshakeError):
                await device(server, token="wrong")
            found = await scrape(meter)
            assert found["mobillm_auth_failures_total"] == 1
            assert found["mobillm_connections_opened_total"] == 0

    run_once(main())


def test_batches_out_of_turn(run_once: Run, tmp_path: pathlib.Path) -> None:
    """A batch before its turn is a gap, one that came before a duplicate; neither counts as received."""

    async def main() -> None:
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        async with serving(tmp_path, meter=meter) as server, raw(server) as peer:
            await peer.opened(spec())
            for seq in (2, 1, 1):
                await peer.batch(packed(spec(), seq))
            peer.connection.post(Detach(stream=1))
            await peer.get(Detach)  # all that came before it was acted on
            found = await scrape(meter)
            counts = ("sequence_gaps_total", "batches_duplicate_total", "batches_received_total")
            assert [found[f"mobillm_{name}"] for name in counts] == [1, 1, 1]

    run_once(main())


def test_a_checkpoint_that_fails(
    run_once: Run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and the session shows as failed."""

    def full(*_: object) -> None:
        raise StorageError("no space left on device")

    monkeypatch.setattr(Checkpoints, "save", full)

    async def main() -> None:
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        async with serving(tmp_path, meter=meter) as server, device(server) as client:
            with pytest.raises(RemoteError, match="STORAGE_FULL"):
                await train(client, spec(batches=1), 1)
            found = await scrape(meter)
            assert found["mobillm_checkpoint_failures_total"] == 1
            assert found["mobillm_sessions:failed"] == 1

    run_once(main())


def test_every_metric_is_documented(run_once: Run, tmp_path: pathlib.Path) -> None:
    """The table has every metric with its type, and no other; names follow Prometheus's rules."""

    async def main() -> str:
        meter = PrometheusMeter(Address("127.0.0.1", 0))
        async with serving(tmp_path, meter=meter):
            return await asyncio.to_thread(get, meter)

    families = list(text_string_to_metric_families(run_once(main())))
    exposed = {
        family.name + ("_total" if family.type == "counter" else ""): family.type for family in families
    }
    rows = re.findall(r"^\| `(mobillm_\w+)` \| (\w+) \| .+ \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert dict(rows) == exposed
    for family in families:
        assert family.documentation
        assert re.fullmatch(r"mobillm_[a-z_]+", family.name)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_labels_are_bounded() -> None:
    """A peer can send any code; the reasons are few all the same."""
    assert _reason(None) == "lost"
    assert _reason(ErrorCode.CALM) == "calm"
    assert {_reason(code) for code in range(1000, 2000)} == {"other"}
