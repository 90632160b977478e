"""Tests of ``mobillm certs``, up to a fine-tuning over mutual TLS with what it made."""

from __future__ import annotations

import json
import shlex
import signal
import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from mobillm.cli import main
from mobillm.cli.certs import NAMES
from tests.cli.commands import fails, start

HOSTS = ("localhost", "127.0.0.1", "::1", "train.example.org")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with certificates for this machine."""
    folder = tmp_path_factory.mktemp("certs") / "new" / "tls"
    assert main(["certs", "--out", str(folder), "--host", *HOSTS, "--days", "30"]) == 0
    return folder


def certificate(path: Path) -> x509.Certificate:
    """Read a certificate."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_what_is_in_them(files: Path) -> None:
    """P-256 keys that only their owner can read, the names asked for, one purpose each, one authority."""
    assert sorted(path.name for path in files.iterdir()) == sorted(NAMES)
    ca, server, device = (certificate(files / f"{name}.pem") for name in ("ca", "server", "device"))
    for name in ("server.key", "device.key"):
        assert (files / name).stat().st_mode & 0o777 == 0o600
        assert b"BEGIN PRIVATE KEY" in (files / name).read_bytes()
    for issued in (ca, server, device):
        key = issued.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        issued.verify_directly_issued_by(ca)
        assert (issued.not_valid_after_utc - issued.not_valid_before_utc).days == 31
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "train.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    for issued, purpose in ((server, "serverAuth"), (device, "clientAuth")):
        usage = issued.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [item._name for item in usage] == [purpose]


def test_they_pass_the_strictest_check(files: Path) -> None:
    """Python's strict X.509 checks, the default of newer versions, accept both sides."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files / "server.pem", files / "server.key")
    server.load_verify_locations(files / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    device = ssl.create_default_context(cafile=str(files / "ca.pem"))
    device.load_cert_chain(files / "device.pem", files / "device.key")
    for context in (server, device):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    pipes = [ssl.MemoryBIO() for _ in range(2)]
    near = device.wrap_bio(pipes[0], pipes[1], server_hostname="127.0.0.1")
    far = server.wrap_bio(pipes[1], pipes[0], server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert near.version() == far.version() == "TLSv1.3"
    assert far.getpeercert()


def test_nothing_is_overwritten(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that exists stays as it is, and no other one is made."""
    before = {path.name: path.read_bytes() for path in files.iterdir()}
    text = fails(capsys, "certs", "--out", str(files), "--host", "localhost", status=2)
    assert "with a ca.pem; expected a directory without one; nothing was changed" in text
    assert {path.name: path.read_bytes() for path in files.iterdir()} == before


def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A host with a port or none at all, and a validity out of range, are refused in one line."""
    out = ["certs", "--out", str(tmp_path / "x")]
    hosts = ["localhost:7707", "", "a b", "mobillm://x", "x" * 300, "a." * 127 + "a"]
    for host in [*hosts, "*", "*.a.org", "1.2.3.4.5", "300", "a.300", "a..b", "a-", "a.-b", "a.", "a\n"]:
        assert "expected a host name or an IP address" in fails(capsys, *out, "--host", host, status=2)
    for days in ("0", "3651", "x"):
        assert "argument --days" in fails(capsys, *out, "--host", "a", "--days", days, status=2)
    assert "--host" in fails(capsys, *out, status=2)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "host", ["my_server", "xn--bcher-kva.example", "bücher.example", "3com.com", "a1", "x" * 63]
)
def test_names_of_hosts(host: str, tmp_path: Path) -> None:
    """Names in use are taken, those of other alphabets in their ASCII form."""
    assert main(["certs", "--out", str(tmp_path), "--host", host]) == 0
    extensions = certificate(tmp_path / "server.pem").extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [host.encode("idna").decode()]


def test_without_cryptography(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says what to install; all others work without it."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    text = fails(capsys, "certs", "--out", str(tmp_path / "x"), "--host", "localhost")
    assert text.endswith("run: pip install cryptography")


def test_finetune_over_mutual_tls(
    model: str, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that are shown work; a device without certificate or with another one is refused."""
    folder, other = tmp_path / "tls", tmp_path / "other"
    assert main(["certs", "--out", str(other), "--host", "127.0.0.1"]) == 0
    capsys.readouterr()
    assert main(["certs", "--out", str(folder), "--host", "127.0.0.1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in shown["files"]] == list(NAMES)
    serve = shlex.split(shown["serve"].replace("0.0.0.0:7707", "127.0.0.1:0"))
    extra = ["--data-dir", str(tmp_path / "d"), "--threads", "1"]
    with start(*serve[1:], *extra) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        assert address.startswith("mobillms://127.0.0.1:")
        run = shlex.split(shown["finetune"].replace("mobillms://127.0.0.1:7707", address))[1:]
        for option, value in (("--token-file", tmp_path / "d" / "token"), ("--model", model)):
            run[run.index(option) + 1] = str(value)
        run[run.index("--data") + 1], run[run.index("--out") + 1] = data, str(tmp_path / "side")
        run += ["--side-width", "8", "--side-heads", "2", "--taps", "all", "--batch-size", "8", "--json"]
        assert main(run) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 12  # three batches, four epochs
        swapped = [part.replace(str(folder), str(other)) for part in run]
        assert "CERTIFICATE_VERIFY_FAILED" in fails(capsys, *swapped)
        at = run.index("--cert")
        assert "may ask for a certificate" in fails(capsys, *run[:at], *run[at + 4 :], "--overwrite")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
