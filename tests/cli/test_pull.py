"""Tests of ``mobillm pull`` and ``mobillm finetune --detach``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from mobillm.cli import main
from mobillm.device.uplink import Uplink
from tests.cli.commands import RunningServer, fails
from tests.cli.test_finetune import _arguments


def test_detach_and_pull(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that a detached run names fetches the result, for people and for programs."""
    for extra in ([], ["--json"]):
        out = tmp_path / f"side{len(extra)}"
        arguments = _arguments(model, data, server, out)
        options = ["--epochs", "3", "--heldout", "0.25", "--early-stopping", "3", "--detach"]
        assert main([*arguments, *options]) == 0
        following = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("next: "))
        assert following[:2] == ["mobillm", "pull"]
        assert not (out / "side_model.safetensors").exists()
        text = fails(capsys, "pull", "ffff" * 9, *following[3:], status=2)
        assert f"expected {following[2]}, which --out {out} waits for" in text
        assert f"'mobillm pull --out {out}' fetches it" in fails(
            capsys, "predict", "--model", model, "--side", str(out), "w5"
        )
        shorter = [word for word in following[1:] if word != following[2] or not extra]
        assert main([*shorter, *extra]) == 0  # the session's name can be left out
        text = capsys.readouterr().out
        if extra:
            assert json.loads(text)["evaluation"]["samples"] == 6
        else:
            assert "trained 15 steps, mean loss" in text
            assert text.endswith(f"saved to {out}\n")
        assert main(["predict", "--model", model, "--side", str(out), "w5 w30"]) == 0
        capsys.readouterr()
        text = fails(capsys, *following[1:])
        assert "no result is to be fetched for" in text
        assert "it holds a result already" in text


class Interrupted:
    """An uplink's step at which someone presses Ctrl-C."""

    async def __call__(self, *args: object) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["wait_durable", "wait_finished"])
def test_ctrl_c_says_how_to_go_on(
    model: str,
    data: str,
    server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Before the server has everything the same command goes on; after that, pulling will do."""
    out = tmp_path / "side"
    arguments = _arguments(model, data, server, out)
    pull = ["pull", *arguments[arguments.index("--server") : arguments.index("--out") + 2]]
    with monkeypatch.context() as patched:
        patched.setattr(Uplink, step, Interrupted())
        assert main(arguments) == 130
    said = capsys.readouterr().err
    if step == "wait_durable":
        assert "the same command again goes on with it" in said
        assert "again goes on with it" in fails(capsys, *pull)
        return
    assert f"or 'mobillm pull --out {out}', fetches the result later" in said
    with monkeypatch.context() as patched:
        patched.setattr(Uplink, step, Interrupted())
        assert main(pull) == 130
    assert "the same command fetches the result later" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "done: 24/24 samples" in capsys.readouterr().err  # which the earlier run has sent


def test_a_session_that_the_server_has_lost(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error says which file keeps the device from starting anew."""
    out = tmp_path / "side"
    arguments = _arguments(model, data, server, out)
    assert main([*arguments, "--detach"]) == 0
    kept = out / "session.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"session": "00" * 16}))
    capsys.readouterr()
    assert main(arguments) == 1
    assert f"the session of {kept} is gone; delete that file" in capsys.readouterr().err


def test_early_stopping_needs_a_heldout_part(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option alone is refused before anything is loaded."""
    text = fails(capsys, *_arguments(model, data, server, tmp_path), "--early-stopping", "2", status=2)
    assert text == "--early-stopping is 2; expected 0, or --heldout with it"
