"""``mobillm certs``: certificates for TLS between a server and its devices, without an authority at hand."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import ipaddress
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, MobiLLMError
from ..transport import DEFAULT_PORT, Address
from .arguments import Subparsers, add_command, between, file_path
from .console import print_json
from .failure import DONE

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["add", "run"]

LONGEST = 3650  # days
NAMES = ("ca.pem", "server.pem", "server.key", "device.pem", "device.key")

# RFC 1123, section 2.1, and the underscore of names inside a network; only addresses end with a number.
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*(?![0-9]+$){_LABEL}", re.IGNORECASE)

# Clocks of devices may be behind ours.
BACKDATED = datetime.timedelta(days=1)

_EXAMPLES = """\
  mobillm certs --out tls --host 192.168.1.20
  mobillm certs --out tls --host train.example.org 10.0.0.5 --days 90
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "certs",
        run,
        summary="make certificates for TLS",
        description="Make an authority, a certificate of the server and one that all devices share, and show "
        "the commands that use them: devices trust this server only, and the server these devices only. The "
        "authority's own key is not kept, so nobody can make further certificates; run the command again, "
        "in another directory, to replace all of them.",
        examples=_EXAMPLES,
    )
    parser.add_argument("--out", type=file_path, required=True, metavar="DIR", help="where to put the files")
    parser.add_argument(
        "--host",
        nargs="+",
        required=True,
        metavar="NAME_OR_IP",
        help="how devices address the server; every name and address that they use",
    )
    parser.add_argument(
        "--days",
        type=between(1, LONGEST),
        default=365,
        metavar="N",
        help="how long they are valid (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Make the files and show what to do with them."""
    files = _make(args.host, args.days)
    _write(args.out, files)
    serve, finetune = _commands(args.out, args.host[0])
    if args.json:
        print_json({"files": [str(args.out / name) for name in NAMES], "serve": serve, "finetune": finetune})
    else:
        print(f"made {', '.join(NAMES)} in {args.out}; valid for {args.days} days")
        print("devices need copies of ca.pem, device.pem and device.key; keep the .key files secret")
        print(f"server: {serve}\ndevice: {finetune}")
    return DONE


def _commands(folder: Path, host: str) -> tuple[str, str]:
    ca, server, server_key, device, device_key = (str(folder / name) for name in NAMES)
    tls = ["--tls-cert", server, "--tls-key", server_key, "--device-ca", ca]
    serve = ["mobillm", "serve", "--listen", f"0.0.0.0:{DEFAULT_PORT}", *tls]
    access = ["--server", str(Address(host, DEFAULT_PORT, True)), "--token-file", "token"]
    shown = ["--ca", ca, "--cert", device, "--key", device_key]
    what = ["--model", "smollm2", "--data", "train.tsv", "--out", "mood"]
    return shlex.join(serve), shlex.join(["mobillm", "finetune", *access, *shown, *what])


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files or, if one of them exists, none."""
    for name in files:
        if (folder / name).exists():
            raise ConfigError(
                "out", f"{folder} with a {name}", "a directory without one; nothing was changed"
            )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in files.items():
        mode = 0o600 if name.endswith(".key") else 0o644
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


@dataclasses.dataclass(frozen=True, slots=True)
class _Authority:
    """Who signs, and for how long."""

    key: EllipticCurvePrivateKey
    name: x509.Name
    days: int


def _make(hosts: Sequence[str], days: int) -> dict[str, bytes]:
    """Return the content of each file."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding
        from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
    except ImportError as error:
        text = "this command needs the package cryptography; run: pip install cryptography"
        raise MobiLLMError(text) from error
    identities = [_identity(host) for host in hosts]
    authority = _Authority(ec.generate_private_key(ec.SECP256R1()), _name("MobiLLM authority"), days)
    ca = _sign(authority, authority.key, authority.name, [(_constraints(), True), (_usage(ca=True), True)])
    files = {"ca.pem": ca.public_bytes(Encoding.PEM)}
    for role, purpose, names in (
        ("server", Usage.SERVER_AUTH, identities),
        ("device", Usage.CLIENT_AUTH, [x509.DNSName("device")]),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(ca=False), True),
            (x509.ExtendedKeyUsage([purpose]), False),
            (x509.SubjectAlternativeName(names), False),
        ]
        certificate = _sign(authority, key, _name(f"MobiLLM {role}"), extensions)
        files[f"{role}.pem"] = certificate.public_bytes(Encoding.PEM)
        files[f"{role}.key"] = _private(key)
    return files


def _identity(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        ascii_name = host.encode("idna").decode("ascii")
    except UnicodeError:
        ascii_name = ""
    if not _HOST.fullmatch(ascii_name):
        raise ConfigError("host", host, "a host name or an IP address, without a port or *")
    return x509.DNSName(ascii_name)


def _name(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _constraints() -> x509.BasicConstraints:
    from cryptography import x509

    return x509.BasicConstraints(ca=True, path_length=0)


def _usage(*, ca: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(
    authority: _Authority,
    key: EllipticCurvePrivateKey,
    name: x509.Name,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    """Return a certificate of a key, with extensions and whether each is critical (RFC 5280)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(authority.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=authority.days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(authority.key, hashes.SHA256())


def _private(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
