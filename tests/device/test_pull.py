"""A device that leaves after the first pass and fetches the result later."""

from __future__ import annotations

import asyncio
import dataclasses
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import pytest

from mobillm.cli.control import request
from mobillm.device.finetune import finetune
from mobillm.device.pending import PENDING_FILE, Pending
from mobillm.device.progress import Progress, Report
from mobillm.device.pull import Pulled, pull_async
from mobillm.device.resume import SESSION_FILE
from mobillm.device.uplink import Uplink
from mobillm.errors import ConfigError, DataError, RemoteError
from mobillm.nn.backbone import Backbone
from mobillm.nn.saved import WEIGHTS_FILE
from mobillm.options import Timeouts
from mobillm.server.batch import Batch
from mobillm.server.log import ActivationLog
from mobillm.server.trainer import Trainer
from tests.conftest import Run
from tests.device.test_finetune import OPTIMIZER, SIDE
from tests.device.texts import examples
from tests.nn.tiny import tiny_model, tiny_tokenizer
from tests.processes import TOKEN, server_process
from tests.sessions import TOKEN as SERVING_TOKEN
from tests.sessions import serving

EPOCHS = 4


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """Return a tiny decoder."""
    return Backbone.from_model(tiny_model("llama"), tiny_tokenizer(), name="tiny", taps=[1, 3])


def run(backbone: Backbone, server: str, output: pathlib.Path | None, **options: Any) -> Report:
    """Fine-tune on 40 examples, 8 of them held out, in batches of 8."""
    settings: dict[str, Any] = {"epochs": EPOCHS, "heldout": examples(8, seed=1)} | options
    return finetune(
        backbone,
        examples(32),
        server=server,
        token=TOKEN,
        labels=["low", "high"],
        side=dataclasses.replace(SIDE, dropout=0.1),
        optimizer=OPTIMIZER,
        batch_size=8,
        output=output,
        **settings,
    )


def pull(output: pathlib.Path, server: str, **options: Any) -> Pulled:
    """Fetch the result of a detached run."""
    return asyncio.run(pull_async(output, server=server, token=TOKEN, **options))


def test_killed_after_the_first_pass(backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """The server finishes alone, a restart between; the weights are those of the run that stayed.


    The device computes one forward for each sample, whatever the number of epochs.
    """
    computed = 0

    def count(module: object, args: object, kwargs: dict[str, Any]) -> None:
        nonlocal computed
        computed += kwargs["hidden_states"].shape[0] if "hidden_states" in kwargs else args[0].shape[0]  # type: ignore[index]

    handle = backbone._parts.layers[0].register_forward_pre_hook(count, with_kwargs=True)
    forwards = {}
    try:
        with server_process(tmp_path / "server") as server:
            stayed = run(backbone, server, tmp_path / "stayed")
            forwards["stayed"], computed = computed, 0
            run(backbone, server, tmp_path / "once", epochs=1)
            forwards["once"], computed = computed, 0
        with server_process(tmp_path / "server", kill=True) as server:
            left = run(backbone, server, tmp_path / "left", detach=True)
            forwards["left"] = computed
            assert not (tmp_path / "left" / WEIGHTS_FILE).exists()
    finally:
        handle.remove()
    assert (left.detached, left.loss, left.output) == (True, None, None)
    assert forwards == {"stayed": 40, "once": 40, "left": 40}
    seen: list[Progress] = []
    with server_process(tmp_path / "server") as server:
        pulled = pull(tmp_path / "left", server, on_progress=seen.append)
        with pytest.raises(DataError, match="no result is to be fetched for"):
            pull(tmp_path / "left", server)
    assert (pulled.session, pulled.steps) == (left.session, 4 * EPOCHS)
    assert (pulled.loss, pulled.evaluation) == (stayed.loss, stayed.evaluation)
    weights = [(tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("stayed", "left")]
    assert weights[0] == weights[1]
    for name in (PENDING_FILE, "session.json"):
        assert not (tmp_path / "left" / name).exists()


@pytest.mark.parametrize("arrived", [True, False])
def test_killed_before_the_result(
    backbone: Backbone, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    """A device that did not detach has its result fetched like one that did, even if its FINISH was lost."""

    class Killed(BaseException):
        pass

    async def killed(self: Uplink) -> None:
        raise Killed

    async def lost(self: Uplink) -> None:
        pass

    with server_process(tmp_path / "server") as server:
        stayed = run(backbone, server, tmp_path / "stayed")
        assert not (tmp_path / "stayed" / PENDING_FILE).exists()
        with monkeypatch.context() as patched:
            patched.setattr(Uplink, "wait_finished", killed)
            if not arrived:
                patched.setattr(Uplink, "finish", lost)
            with pytest.raises(Killed):
                run(backbone, server, tmp_path / "killed")
        pulled = pull(tmp_path / "killed", server, timeouts=Timeouts(reconnect=20))
    assert (pulled.loss, pulled.evaluation) == (stayed.loss, stayed.evaluation)
    weights = [(tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("stayed", "killed")]
    assert weights[0] == weights[1]


def test_a_new_run_forgets_the_old_session(
    backbone: Backbone, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is killed before it has sent everything does not wait for the result of the session before."""

    async def killed(self: Uplink) -> None:
        raise KeyboardInterrupt

    with server_process(tmp_path / "server") as server:
        run(backbone, server, tmp_path / "out", detach=True)
        (tmp_path / "out" / SESSION_FILE).unlink()
        with monkeypatch.context() as patched:
            patched.setattr(Uplink, "wait_durable", killed)
            with pytest.raises(KeyboardInterrupt):
                run(backbone, server, tmp_path / "out")
        with pytest.raises(DataError, match="again goes on with it"):
            pull(tmp_path / "out", server)


def test_a_session_that_has_lost_batches(backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """It would wait for ever, or train on less; the error says what mends it."""
    with server_process(tmp_path / "server") as server:
        run(backbone, server, tmp_path / "out", detach=True)
        more = dataclasses.replace(Pending.load(tmp_path / "out"), batches=6)
        more.save(tmp_path / "out")
        with pytest.raises(DataError, match="the server has 5 of 6 batches"):
            pull(tmp_path / "out", server)


def test_a_session_that_is_gone(backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """A server without the session refuses; what the device remembers stays."""
    with server_process(tmp_path / "one") as server:
        run(backbone, server, tmp_path / "out", detach=True)
    with server_process(tmp_path / "two") as server, pytest.raises(RemoteError, match="no such session"):
        pull(tmp_path / "out", server)
    assert Pending.load(tmp_path / "out")


def test_options_that_do_not_fit(backbone: Backbone, tmp_path: pathlib.Path) -> None:
    """Detaching needs a place for the result's description; early stopping needs held-out examples."""
    with pytest.raises(ConfigError, match="output is None; expected a directory"):
        run(backbone, "127.0.0.1:1", None, detach=True)
    with pytest.raises(ConfigError, match="early_stopping is 2; expected 0, or held-out"):
        run(backbone, "127.0.0.1:1", None, early_stopping=2, heldout=())


def test_waits_for_training(
    run_once: Run, backbone: Backbone, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Detaching waits for a slow disk; a pull before the end waits, too, and shows how far training is."""
    step, append = Trainer.step, ActivationLog.append

    def late(self: ActivationLog, batches: Sequence[Batch]) -> None:
        time.sleep(0.3)
        append(self, batches)

    monkeypatch.setattr(ActivationLog, "append", late)

    def slow(self: Trainer, *args: Any) -> Any:
        time.sleep(0.05)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", slow)
    seen: list[Progress] = []

    async def main() -> None:
        async with serving(tmp_path / "server") as server:
            where = str(server.address)
            options: dict[str, Any] = {"side": SIDE, "batch_size": 8, "epochs": 3, "detach": True}
            await asyncio.to_thread(
                finetune,
                backbone,
                examples(32),
                server=where,
                token=SERVING_TOKEN,
                output=tmp_path,
                **options,
            )
            (one,) = (await asyncio.to_thread(request, tmp_path / "server", "list"))[0]["sessions"]
            assert (one["durable"], one["last"], one["state"]) == (4, 4, "training")
            pulled = await pull_async(tmp_path, server=where, token=SERVING_TOKEN, on_progress=seen.append)
            assert (pulled.steps, pulled.evaluation) == (12, None)

    run_once(main())
    assert [progress.stage for progress in seen] == ["train"] * len(seen)
    assert seen[-1].total_steps == 12
    assert any(0 < progress.step < 12 for progress in seen)


def test_without_torch() -> None:
    """Whoever fetches a result needs no torch."""
    script = "import sys; sys.modules['torch'] = None; import mobillm.device.pull"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
