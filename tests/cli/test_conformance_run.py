"""Tests of mobillm.cli.conformance_run."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from mobillm.cli import main
from tests.cli.commands import RunningServer, fails

SERVER = ("conformance", "server")
CLIENT = ("conformance", "client")


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    """All cases, or those that a pattern names, without a server or a token."""
    assert main([*SERVER, "mobillm://127.0.0.1:1", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 550
    assert main([*CLIENT, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 60
    assert main([*SERVER, "mobillm://127.0.0.1:1", "--list", "--only", "V-12", "--only", "F-18.1"]) == 0
    assert capsys.readouterr().out.startswith("F-18.1 ")


def test_a_server_that_passes(
    server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table, status 0, and both files."""
    files = ["--json", str(tmp_path / "r.json"), "--junit", str(tmp_path / "r.xml")]
    access = [server.address, "--token-file", str(server.token_file)]
    assert main([*SERVER, *access, "--only", "F-18*", "--only", "O-18.1", *files]) == 0
    out = capsys.readouterr().out
    assert "skipped O-18.1: the token file has one tenant; this case needs two" in out
    assert "cases passed, 1 skipped; " in out
    assert json.loads((tmp_path / "r.json").read_text())["failed"] == 0
    assert ET.parse(tmp_path / "r.xml").getroot().get("failures") == "0"


def test_a_client_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Status 1; each failure says what came, and the statement."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    command = f"{sys.executable} -c 'print(\"oh no\")' {{address}} {{token}}"
    arguments = ["--token-file", str(token), "--client-command", command, "--only", "H-1.1"]
    assert main([*CLIENT, *arguments]) == 1
    out, err = capsys.readouterr()
    assert "FAILED H-1.1 (greeting): a whole session" in out
    assert "it ended with status 0" in out
    assert "[A-3] AUTH holds" in out
    assert "| oh no" in out
    assert "failed H-1.1" in err


def test_our_client_in_a_process(tmp_path: Path) -> None:
    """The default command runs this package's client."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    assert main([*CLIENT, "--token-file", str(token), "--only", "H-1.1", "--only", "A-6.1"]) == 0


def test_wrong_use(server: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that says what to do."""
    address = server.address
    assert "--token-file" in fails(capsys, *SERVER, address, status=2)
    token = ["--token-file", str(server.token_file)]
    assert "--only" in fails(capsys, *SERVER, address, *token, "--only", "nothing", status=2)
    assert "--ca" in fails(capsys, *SERVER, address, *token, "--ca", "x.pem", status=2)
    text = fails(capsys, *SERVER, "mobillm://127.0.0.1:1", *token)
    assert "cannot connect to mobillm://127.0.0.1:1" in text
    wrong = tmp_path / "token"
    wrong.write_text("acme:wrong\n")
    wrong.chmod(0o600)
    text = fails(capsys, *SERVER, address, "--token-file", str(wrong))
    assert text.endswith("check --token-file")
    assert "without TLS" in fails(capsys, *CLIENT, "--listen", "mobillms://127.0.0.1:0", *token, status=2)


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("/no/such/client {address}", "/no/such/client"),
        ("", "a program that is there"),
        ("client 'x", "no closing quotation"),
        ("sh {adress} {token}", "{adress}"),
        ("sh {}", "no other words in braces than {address} and {token}"),
    ],
)
def test_a_client_that_cannot_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str
) -> None:
    """It is wrong usage, and no case is run."""
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    seen = fails(capsys, *CLIENT, "--token-file", str(token), "--client-command", command, status=2)
    assert "--client-command" in seen
    assert text in seen
