"""Tests of ``mobillm serve``."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.cli.commands import fails, start


def test_prints_one_line_and_stops_on_sigint(tmp_path: Path) -> None:
    """The address comes as JSON, a token file is made and named, SIGINT ends it with status 0."""
    arguments = ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "d"), "--json", "--threads", "1"]
    with start("serve", *arguments, "--loop", "asyncio", "--device", "cpu") as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        port = int(address.removeprefix("mobillm://127.0.0.1:"))
        socket.create_connection(("127.0.0.1", port), 5).close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), err
    assert f"made the token file {tmp_path / 'd' / 'token'}" in err
    assert (tmp_path / "d" / "token").stat().st_mode & 0o777 == 0o600
    assert "Traceback" not in err


def test_configured_by_a_file(tmp_path: Path) -> None:
    """Metrics, health and a log in JSON, all from a file; an unfinished start leaves no line that is none."""
    config = tmp_path / "server.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\ndata-dir = "{tmp_path / "d"}"\nmetrics = "127.0.0.1:0"\nlog = "json"\n'
        f'threads = 1\ngroup = 4\ntensorboard = "{tmp_path / "curves"}"\n'
    )
    with start("serve", "--config", str(config), "--device", "cpu") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("listening on mobillm://127.0.0.1:")
        lines: list[str] = []
        while "metrics at" not in "".join(lines):
            lines.append(process.stderr.readline())
        found = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", lines[-1])
        assert found is not None
        for path, expected in (("metrics", "mobillm_sessions_attached 0.0"), ("healthz", "ok")):
            with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/{path}", timeout=5) as answer:
                assert expected in answer.read().decode()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), err
    messages = [json.loads(line)["message"] for line in [*lines, *err.splitlines()]]
    assert messages[-2:] == ["stopping; again to stop at once", "stopped"]


def test_address_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A taken port is one line that says what to do, with both event loops."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--listen", where, "--data-dir", str(tmp_path / "d"), "--token-file", str(token)]
        for loop in ("uvloop", "asyncio"):
            text = fails(capsys, "serve", *arguments, "--loop", loop)
            assert "the address of --listen is in use; stop the other server, or choose another port" in text


def test_metrics_address_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The option that asked for the taken port is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        arguments = ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "d"), "--metrics", where]
        text = fails(capsys, "serve", *arguments, status=2)
    assert (
        f"--metrics is '{where}'; expected an address where this machine can listen (Address already" in text
    )


def test_curves_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file in the directory's place stops the start, in one line."""
    place = tmp_path / "curves"
    place.write_text("")
    arguments = ["--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "d"), "--tensorboard", str(place)]
    assert f"{place}: File exists; a file is where a directory is needed" in fails(
        capsys, "serve", *arguments
    )


def test_exposure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listening beyond the machine without TLS needs --insecure; half a certificate is refused."""
    for listen in ("0.0.0.0:0", "[::]:0", "example.org:7707"):
        text = fails(capsys, "serve", "--data-dir", str(tmp_path), "--listen", listen, status=2)
        assert "without TLS; expected --tls-cert and --tls-key, or --insecure" in text
    pem = str(tmp_path / "x.pem")
    assert "--tls-cert and --tls-key together" in fails(capsys, "serve", "--tls-key", pem, status=2)
    assert "--tls-cert and --tls-key with it" in fails(capsys, "serve", "--device-ca", pem, status=2)
    text = fails(capsys, "serve", "--listen", "mobillms://127.0.0.1:0", status=2)
    assert "--tls-cert and --tls-key with it" in text
    assert "tls certificate" in fails(capsys, "serve", "--tls-cert", pem, "--tls-key", pem, status=2)
    assert not (tmp_path / "token").exists()


def test_limits_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bound outside its own range is named, with the range; nothing is made."""
    text = fails(capsys, "serve", "--data-dir", str(tmp_path / "d"), "--limits", "frame=1", status=2)
    assert "limits.frame is 1; expected an integer from 16384 to 4194304" in text
    assert not (tmp_path / "d").exists()


def test_bad_data_directory(bound_by_permissions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be the data directory is named as such, not the file that would be made in it."""
    file = bound_by_permissions / "file"
    file.write_text("")
    closed = bound_by_permissions / "closed"
    closed.mkdir(mode=0o500)
    for place, expected in ((file, "(File exists)"), (closed, "(permission denied)")):
        text = fails(capsys, "serve", "--data-dir", str(place), status=2)
        assert text.startswith(f"--data-dir is '{place}'; expected a directory")
        assert expected in text


def test_bad_token_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A token file without tokens stops the start before anything listens."""
    token = tmp_path / "token"
    token.write_text("# none\n")
    token.chmod(0o600)
    arguments = ["--data-dir", str(tmp_path / "d"), "--token-file", str(token)]
    assert "expected a line TENANT:SECRET" in fails(capsys, "serve", *arguments, status=2)


def test_no_such_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CUDA that is not there is refused before anything listens."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    arguments = ["--data-dir", str(tmp_path / "d"), "--token-file", str(token), "--device", "cuda"]
    assert "--device is 'cuda'; expected cpu" in fails(capsys, "serve", *arguments, status=2)


def test_unknown_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that cannot be found is named, with its option."""

    def absent(*_args: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", absent)
    arguments = [
        "--data-dir",
        str(tmp_path),
        "--listen",
        "nowhere.invalid:0",
        "--insecure",
        "--loop",
        "asyncio",
    ]
    text = fails(capsys, "serve", *arguments)
    assert "the host 'nowhere.invalid' of --listen cannot be found" in text
    assert text.endswith("check the name and the network")


def test_group_is_of_the_local_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Actors train alone; a number out of range is refused too."""
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    arguments = ["--data-dir", str(tmp_path / "d"), "--token-file", str(token), "--device", "cpu"]
    text = fails(capsys, "serve", *arguments, "--engine", "ray", "--group", "8", status=2)
    assert "--group is 8; expected 1 with --engine ray" in text
    assert "--group" in fails(capsys, "serve", *arguments, "--group", "65", status=2)


def test_ray_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these is told with what to do: no package, an address without the engine, nobody there."""
    arguments = ["--data-dir", str(tmp_path / "d"), "--listen", "127.0.0.1:0", "--device", "cpu"]
    assert "--engine ray with it" in fails(capsys, "serve", *arguments, "--ray-address", "a:1", status=2)
    ray = [*arguments, "--engine", "ray", "--threads", "1"]
    assert "no Ray cluster answers at 127.0.0.1:1" in fails(
        capsys, "serve", *ray, "--ray-address", "127.0.0.1:1"
    )
    monkeypatch.delitem(sys.modules, "mobillm.server.engine_ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'mobillm[ray]'" in fails(capsys, "serve", *ray, status=2)
