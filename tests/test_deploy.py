"""What a server is installed with: the systemd unit is run, the container file checked."""

from __future__ import annotations

import argparse
import configparser
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib

import pytest

from benchmarks.soak import ALLOCATOR
from mobillm.cli import main
from mobillm.cli.serve import PREFIX, SETTINGS
from mobillm.cli.settings import resolve

ROOT = pathlib.Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "mobillm.service"
BOUND = 60.0  # seconds


def service() -> configparser.SectionProxy:
    """Return the unit's section of the service."""
    unit = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    return unit["Service"]


def instructions() -> list[tuple[str, str]]:
    """Return the container file's instructions, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def variables() -> dict[str, str]:
    """Return the environment that the container file sets."""
    return dict(value.split("=", 1) for name, value in instructions() if name == "ENV")


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def settings(environment: dict[str, str], config: pathlib.Path | None = None) -> argparse.Namespace:
    """Return what the server would be set to."""
    empty = argparse.Namespace(config=config, **{setting.field: None for setting in SETTINGS})
    return resolve(empty, SETTINGS, PREFIX, environment)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_accepts_the_unit(tmp_path: pathlib.Path) -> None:
    """No line of it is unknown or malformed."""
    command = shlex.split(service()["ExecStart"])[0]
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(command, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, timeout=BOUND
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_starts_a_server_and_stops_it(tmp_path: pathlib.Path) -> None:
    """Its command runs with the file beside it, is healthy as the container asks, and ends on SIGTERM."""
    section = service()
    assert main(["certs", "--out", str(tmp_path / "tls"), "--host", "127.0.0.1"]) == 0
    metrics = free_port()
    config = tmp_path / "server.toml"
    text = (DEPLOY / "server.toml").read_text()
    for old, new in (
        ("0.0.0.0:7707", "127.0.0.1:0"),
        ("127.0.0.1:9707", f"127.0.0.1:{metrics}"),
        ("/etc/mobillm", str(tmp_path / "tls")),
    ):
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    program, *arguments = shlex.split(section["ExecStart"])
    assert pathlib.Path(program).name == "mobillm"
    assert arguments[-1] == "/etc/mobillm/server.toml"
    values = section["Environment"].replace("%S", str(tmp_path / "state")).split()
    environment = dict(value.split("=", 1) for value in values)
    assert environment["GLIBC_TUNABLES"] == variables()["GLIBC_TUNABLES"] == ALLOCATOR["GLIBC_TUNABLES"]
    with subprocess.Popen(
        [sys.executable, "-m", "mobillm", *arguments[:-1], str(config)],
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on mobillms://127.0.0.1:")
            assert (tmp_path / "state" / "mobillm" / "registry.sqlite").exists()
            health = next(value for key, value in instructions() if key == "HEALTHCHECK")
            _, *check = json.loads(health[health.index("[") :])
            check = [part.replace("9707", str(metrics)) for part in check]
            assert subprocess.run([sys.executable, *check], timeout=BOUND).returncode == 0
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=BOUND)
        finally:
            process.kill()
    assert process.returncode == 0, log
    assert json.loads(log.splitlines()[-1])["message"] == "stopped"


def test_the_container_copies_what_there_is() -> None:
    """Sources of COPY exist; what pip installs is of this project and constrained by its file."""
    for name, value in instructions():
        if name == "COPY":
            for source in value.split()[:-1]:
                assert (ROOT / source).exists(), source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    run = " ".join(value for name, value in instructions() if name == "RUN")
    found = re.search(r"--constraint (\S+) '\.\[([\w,]+)\]'", run)
    assert found is not None
    assert (ROOT / found[1]).exists()
    assert set(found[2].split(",")) <= set(project["optional-dependencies"])
    assert re.search(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    image = next(value for name, value in instructions() if name == "FROM")
    assert (
        f"Programming Language :: Python :: {image.split(':')[1].removesuffix('-slim')}"
        in (project["classifiers"])
    )


def test_the_container_runs_the_command_with_settings_that_exist() -> None:
    """Its entry point is the project's, for a user of its own; each variable is a setting."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_name = dict(instructions())
    program, command = json.loads(by_name["ENTRYPOINT"])
    assert program in project["scripts"]
    assert command == "serve"
    assert f" {by_name['USER']} " in f" {by_name['RUN']} "
    found = settings(variables())
    assert str(found.data_dir) == by_name["VOLUME"]
    assert str(found.listen.port) == by_name["EXPOSE"]
    assert by_name["STOPSIGNAL"] == "SIGTERM"
    assert f"http://{found.metrics.host}:{found.metrics.port}/healthz" in by_name["HEALTHCHECK"]


def test_the_configuration_has_settings_that_exist() -> None:
    """The file that the unit names is read as the server reads it."""
    found = settings({}, DEPLOY / "server.toml")
    assert found.listen.port == 7707
    assert dict(found.limits) == {"memory": 1 << 30, "sessions": 16}
