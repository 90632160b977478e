"""Where tokens are kept, and how a device gets access to a server."""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
from pathlib import Path

from ..errors import ConfigError
from ..transport import DEFAULT_PORT, Address, connect, device_context
from ..transport.tokens import DEFAULT_TENANT, parse_tokens, read_token_file
from .arguments import Parser, address, file_path

__all__ = [
    "TOKEN_FILE",
    "TOKEN_VARIABLE",
    "add_access",
    "check_server",
    "data_directory",
    "device_tls",
    "device_token",
]

TOKEN_FILE = "token"
TOKEN_VARIABLE = "MOBILLM_TOKEN"


def data_directory() -> Path:
    """Return where a server keeps its files: ``XDG_DATA_HOME`` or ``~/.local/share``, then ``mobillm``."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "mobillm"


def add_access(parser: Parser) -> None:
    """Add which server a device uses, and how it proves who it is."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server",
        type=address,
        default=Address("127.0.0.1", DEFAULT_PORT),
        metavar="ADDRESS",
        help="mobillm://HOST:PORT, or mobillms://HOST:PORT for TLS (default: %(default)s)",
    )
    group.add_argument(
        "--token-file",
        type=file_path,
        metavar="T",
        help=f"its first token is used (default: the token in {TOKEN_VARIABLE}, else the file that "
        "'mobillm serve' makes on the same machine)",
    )
    group.add_argument(
        "--tenant", metavar="NAME", help="use this tenant's token of the file (default: the first one)"
    )
    group.add_argument(
        "--ca", type=file_path, metavar="PEM", help="authority of the server's certificate, for TLS"
    )
    group.add_argument("--cert", type=file_path, metavar="PEM", help="the device's own certificate, for TLS")
    group.add_argument("--key", type=file_path, metavar="PEM", help="the private key of --cert")
    group.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds to try again after the connection was lost (default: %(default)g)",
    )


def device_token(args: argparse.Namespace) -> tuple[str, str]:
    """Return the tenant and the secret that the arguments and the environment give.

    Raises:
        ConfigError: there is no token, or none of the tenant.

    """
    variable = os.environ.get(TOKEN_VARIABLE)
    if args.token_file is not None:
        source, tokens = str(args.token_file), read_token_file(args.token_file)
    elif variable:
        source, tokens = TOKEN_VARIABLE, parse_tokens(variable, TOKEN_VARIABLE)
        if args.tenant is not None and list(tokens) == [DEFAULT_TENANT]:
            tokens = {args.tenant: tokens[DEFAULT_TENANT]}
    else:
        path = data_directory() / TOKEN_FILE
        if not path.exists():
            raise ConfigError(
                "--token-file",
                "not given, and there is no " + str(path),
                f"a copy of the server's token file, or the secret in {TOKEN_VARIABLE}",
            )
        source, tokens = str(path), read_token_file(path)
    tenant = next(iter(tokens)) if args.tenant is None else args.tenant
    if tenant not in tokens:
        raise ConfigError("--tenant", tenant, f"a tenant of {source}: {', '.join(tokens)}")
    return tenant, tokens[tenant]


def device_tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the TLS context that the arguments ask for; None for plain TCP.

    Raises:
        ConfigError: a file cannot be used, or certificates are given for an address without TLS.

    """
    server: Address = args.server
    given = [name for name in ("ca", "cert", "key") if getattr(args, name) is not None]
    if not server.tls:
        if given:
            raise ConfigError("--server", str(server), f"mobillms://..., which --{given[0]} is for")
        return None
    if (args.cert is None) != (args.key is None):
        raise ConfigError(f"--{given[-1]}", "alone", "--cert and --key together")
    return device_context(args.ca, certificate=args.cert, key=args.key)


def check_server(server: Address, tenant: str, secret: str, tls: ssl.SSLContext | None) -> None:
    """Connect and say goodbye: a wrong token is better known before a model is loaded.

    Raises:
        ConnectionClosedError: there is no server.
        HandshakeError: the server refused.
        TimeoutError: the server did not answer in time.

    """

    async def probe() -> None:
        async with connect(server, token=secret, tenant=tenant, tls=tls):
            pass

    asyncio.run(probe())
