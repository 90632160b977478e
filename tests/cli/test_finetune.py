"""Tests of ``mobillm finetune`` against a server in a process of its own."""

from __future__ import annotations

import json
import os
import shlex
import socket
from pathlib import Path

import pytest
import torch

from mobillm.cli import main
from tests.cli.commands import RunningServer, fails

SMALL = ["--side-width", "8", "--side-heads", "2", "--taps", "all", "--batch-size", "4", "--lr", "0.02"]


def _arguments(model: str, data: str, server: RunningServer, out: Path) -> list[str]:
    access = ["--server", server.address, "--token-file", str(server.token_file)]
    return ["finetune", "--model", model, "--data", data, *access, "--out", str(out), *SMALL]


def test_classification(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run tells what leaves the device, learns, saves, and names a next command that works."""
    arguments = _arguments(model, data, server, tmp_path / "side")
    trace = tmp_path / "traces" / "trace.json"
    assert main([*arguments, "--heldout", data, "--epochs", "8", "--trace", str(trace)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("What leaves this device:\n")
    assert "24 examples to train on, 24 held out; 2 classes: no, yes" in err
    assert "trained 48 steps" in out
    assert "a sample cost this device" in out
    assert json.loads(trace.read_text())
    following = out.splitlines()[-1].removeprefix("next: ")
    assert following.startswith("mobillm evaluate ")
    assert main([*shlex.split(following)[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    assert "holds a side network already" in fails(capsys, *arguments)


def test_streamed_weights(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the layers on the disk the same side network is trained; a wide limit keeps them in memory."""
    for name, options in (("whole", ["--memory-limit", "900GiB"]), ("streamed", ["--stream-weights"])):
        assert main([*_arguments(model, data, server, tmp_path / name), *options]) == 0
    assert "MiB will be needed" in capsys.readouterr().err
    weights = [(tmp_path / name / "side_model.safetensors").read_bytes() for name in ("whole", "streamed")]
    assert weights[0] == weights[1]


def test_nice(
    model: str,
    data: str,
    server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A considerate run has one thread and a low priority, and rests as long as it computes."""
    steps: list[int] = []
    monkeypatch.setattr(os, "nice", steps.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: steps.append(-count))
    arguments = [*_arguments(model, data, server, tmp_path / "side"), "--threads", "2", "--nice", "--json"]
    assert main([*arguments, "--dtype", "int8"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert steps == [10, -1]
    assert 0.6 * report["device_busy"] < report["device_rested"]
    assert "'0' is no number above 0" in fails(capsys, *arguments, "--duty", "0", status=2)


def test_adaptive_width(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with several widths, compressed, says what they are and stores them with the result."""
    options = ["--bits", "2,8", "--compression", "zstd"]
    assert main([*_arguments(model, data, server, tmp_path), *options]) == 0
    assert "packed as asym2 to asym8 and compressed: at most" in capsys.readouterr().out
    codec = json.loads((tmp_path / "side_config.json").read_text())["spec"]["codec"]
    assert codec == {"format": "asym2", "block": 64, "equalize": True, "bits": [2, 8], "compression": "zstd"}


def test_json(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json standard output is one object; a part is held out; --overwrite replaces a result."""
    arguments = [*_arguments(model, data, server, tmp_path), "--heldout", "0.25", "--json"]
    for extra in ([], ["--overwrite"]):
        assert main([*arguments, *extra]) == 0
        out, err = capsys.readouterr()
        report = json.loads(out)
        assert out.count("\n") == 1
        assert "What leaves this device:" in err
        assert (report["samples"], report["evaluation"]["samples"]) == (24, 6)
        assert (report["steps"], report["output"]) == (20, str(tmp_path))  # of four epochs


@pytest.mark.parametrize("kind", ["ladder", "tail"])
def test_causal_lm(
    kind: str, model: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A language model is trained on prompts and completions and can generate afterwards."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"q": "w5 w6", "a": "w7 w8"}\n{"q": "w9", "a": "w10 w11 w12"}\n')
    arguments = _arguments(model, str(path), server, tmp_path / "side")
    columns = ["--text-column", "q", "--pair-column", "a"]
    options = ["--batch-size", "1", "--side-kind", kind, "--taps", "all" if kind == "ladder" else "1"]
    assert main([*arguments, "--task", "causal-lm", *columns, *options]) == 0
    following = shlex.split(capsys.readouterr().out.splitlines()[-1])[1:]
    assert following[:2] == ["mobillm", "generate"]
    assert main([*following[1:-1], "w5 w6", "--max-new-tokens", "3"]) == 0


def test_bad_data(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data and options that cannot be used are refused in one line, before a model is loaded."""
    arguments = _arguments(model, data, server, tmp_path / "side")
    for extra, expected in (
        (["--text-column", "words"], "no column 'words'; its columns are text, label"),
        (["--labels", "yes,maybe"], "line 2: the label 'no' is none of 'yes', 'maybe'"),
        (["--labels", "yes"], "--labels is ['yes']; expected at least 2 names"),
        (["--task", "regression"], "line 2: the target 'no'"),
        (["--task", "causal-lm", "--label-column", "label"], "--label-column is 'label'"),
        (["--limit", "1", "--heldout", "0.5"], "--heldout is 0.5; expected a part of the 1 examples"),
        (["--heldout", "7"], "--heldout is 7.0; expected a number above 0 and below 1"),
        (["--patience", "-1"], "--patience is -1.0; expected a positive number of seconds"),
        (["--text-column", "9" * 5000], "no column '9999"),
        (["--heldout", "1.5"], "--heldout is 1.5; expected a number above 0 and below 1"),
        (["--heldout", "none.tsv"], "there is no file 'none.tsv'"),
        (["--side-heads", "3"], "--side-heads is 3; expected a divisor of side.width = 8"),
        (["--lr", "11"], "--lr is 11.0"),
        (["--bits", "auto", "--min-bits", "5", "--max-bits", "4"], "--min-bits is 5; expected at most"),
        (["--min-bits", "3"], "--min-bits is 3; expected to be given with --bits auto only"),
        (["--bits", "4", "--max-bits", "6"], "--max-bits is 6; expected to be given with --bits auto only"),
        (["--format", "f16", "--equalize"], "--format is 'f16'; expected a format with blocks, which --eq"),
        (
            ["--format", "f32", "--block", "32"],
            "--format is 'f32'; expected a format with blocks, which --bl",
        ),
    ):
        status = 2 if expected.startswith("--") else 1
        assert expected in fails(capsys, *arguments, *extra, status=status)
        assert "loading" not in capsys.readouterr().err
    assert not (tmp_path / "side").exists()


def test_bad_usage(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that no run could have are wrong usage."""
    arguments = _arguments(model, data, server, tmp_path / "side")
    for extra, expected in (
        (["--task", "translation"], "argument --task: invalid choice: 'translation'"),
        (["--limit", "0"], "argument --limit: '0' is no integer of at least 1"),
        (["--seed", str(2**63)], "is no integer from 0 to 9223372036854775807"),
        (["--seed", "9" * 5000], "9...' is no integer from 0 to"),
        (["--max-length", "1000001"], "'1000001' is no integer from 1 to 1000000"),
        (["--epochs", "10001"], "'10001' is no integer from 1 to 10000"),
        (["--threads", "1025"], "'1025' is no integer from 1 to 1024"),
        (["--limit", str(10**30)], "is above 1000000000"),
        (["--taps", "2,1"], "argument --taps: '2,1' is no choice; expected 'all', 'every:N'"),
        (["--taps", "2,2000"], "argument --taps: '2,2000' is no choice; expected layer numbers"),
        (["--compression", "gzip"], "argument --compression: invalid choice: 'gzip'"),
        (["--bits", "1"], "argument --bits: '1' is no choice; expected 2 to 8, a list of those, each once"),
        (["--bits", "4,4"], "argument --bits: '4,4' is no choice; expected 2 to 8, a list of those, each"),
        (["--bits", "4", "--format", "nf4"], "argument --format: not allowed with argument --bits"),
        (["--format", "asym4", "--bits", "auto"], "argument --bits: not allowed with argument --format"),
        (["--bits", "four"], "argument --bits: 'four' is no choice"),
        (["--format", "int4"], "argument --format: invalid choice: 'int4'"),
        (["--server", "http://x"], "argument --server: 'http://x' is no address"),
    ):
        assert expected in fails(capsys, *arguments, *extra, status=2)


def test_bad_surroundings(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong token, an absent server, a missing model and a file in the way are one line each."""
    arguments = _arguments(model, data, server, tmp_path / "side")
    wrong = tmp_path / "wrong"
    wrong.write_text("acme:not-the-secret-of-the-server\n")
    wrong.chmod(0o600)
    text = fails(capsys, *arguments, "--token-file", str(wrong))
    assert "AUTH_FAILED" in text
    assert "check --token-file" in text
    assert "token file" in fails(capsys, *arguments, "--token-file", str(tmp_path / "none"), status=2)
    assert "--tenant is 'zeta'" in fails(capsys, *arguments, "--tenant", "zeta", status=2)
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    text = fails(capsys, *arguments, "--server", f"127.0.0.1:{port}")
    assert "start a server with 'mobillm serve', or check --server" in text
    assert "there is no model at './none'" in fails(capsys, *arguments, "--model", "./none")
    text = fails(capsys, *arguments, "--taps", "2,9", status=2)
    assert "--taps is '2,9'; expected layer numbers from 0 (the embedding's output) to 3" in text
    (tmp_path / "file").write_text("")
    assert "choose another path" in fails(capsys, *arguments, "--out", str(tmp_path / "file"))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_tail(
    dtype: str,
    model: str,
    data: str,
    server: RunningServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """LoRA above the tap is trained with the layers on the disk; the next command evaluates it."""
    access = ["--server", server.address, "--token-file", str(server.token_file)]
    training = ["--data", data, "--heldout", data, "--epochs", "8", "--batch-size", "4", "--lr", "0.02"]
    kind = ["--side-kind", "tail", "--side-rank", "4", "--dtype", dtype]
    out = str(tmp_path / "lora")
    assert main(["finetune", "--model", model, *training, *access, *kind, "--out", out]) == 0
    shown = capsys.readouterr().out
    assert "after layers 1 of 3" in shown
    assert (tmp_path / "lora" / "adapter_config.json").exists()
    following = shown.splitlines()[-1].removeprefix("next: ")
    assert ("--dtype int8" in following) == (dtype == "int8")
    assert main([*shlex.split(following)[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    again = ["finetune", "--model", model, *training, *access, "--out", out]
    assert "holds a side network already" in fails(capsys, *again)


def test_a_trace_that_cannot_be_written_at_the_end(
    model: str, data: str, server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The result is saved and said to be, with the next command; then comes the error, and the status 1."""
    trace = tmp_path / "trace.json"
    trace.symlink_to("/dev/full")
    assert main([*_arguments(model, data, server, tmp_path / "side"), "--trace", str(trace)]) == 1
    out, err = capsys.readouterr()
    assert f"saved to {tmp_path / 'side'}\nnext: mobillm predict" in out
    assert err.splitlines()[-1].startswith(
        f"mobillm: error: the trace {trace} cannot be written: No space left on device"
    )
