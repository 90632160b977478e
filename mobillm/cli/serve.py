"""``mobillm serve``: train the side networks of devices."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import ipaddress
import os
import signal
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import ConfigError
from ..options import Limits
from ..protocol import derive_key
from ..transport import DEFAULT_PORT, Address, server_context
from ..transport.tokens import create_token_file, read_token_file
from .access import TOKEN_FILE, data_directory
from .arguments import LIMITS, MAX_THREADS, Subparsers, add_command, address, between, half_of_cores, limit
from .console import print_json, say
from .failure import DONE, INTERRUPTED

__all__ = ["add", "run"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_EXAMPLES = """\
  mobillm serve
  mobillm serve --listen 0.0.0.0:7707 --tls-cert server.pem --tls-key server.key
  mobillm serve --listen 127.0.0.1:0 --json --device cuda
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "serve",
        run,
        summary="train the side networks of devices",
        description="Listen for devices and train their side networks. When it is ready, one line "
        "'listening on ADDRESS' appears on standard output. SIGINT and SIGTERM stop it in order, with a "
        "checkpoint of each session; started again, it goes on.",
        examples=_EXAMPLES,
        verbose=True,
    )
    parser.add_argument(
        "--listen",
        type=address,
        default=Address("127.0.0.1", DEFAULT_PORT),
        metavar="HOST:PORT",
        help=f"where to listen; port 0 takes a free one (default: 127.0.0.1:{DEFAULT_PORT})",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="sessions and activation logs (default: $XDG_DATA_HOME/mobillm or ~/.local/share/mobillm)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="T",
        help="lines TENANT:SECRET, or one bare secret; made with a random secret if it is missing "
        "(default: token in the data directory)",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="the server's certificate")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument(
        "--device-ca", type=Path, metavar="PEM", help="authority whose certificates devices must show"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine without TLS, all in plain"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to train")
    parser.add_argument(
        "--threads",
        type=between(1, MAX_THREADS),
        default=half_of_cores(),
        metavar="N",
        help="torch threads (default: half of the cores)",
    )
    parser.add_argument(
        "--limits",
        type=limit,
        action="append",
        default=[],
        metavar="NAME=N",
        help=f"change a bound, in bytes or a count; can be given again; names: {', '.join(LIMITS)}",
    )
    parser.add_argument(
        "--loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    tls = _tls(args)
    limits = Limits(**dict(args.limits))
    _check_exposure(args.listen, tls, args.insecure)
    directory = args.data_dir or data_directory()
    token_file = args.token_file or directory / TOKEN_FILE
    if create_token_file(token_file):
        say(f"made the token file {token_file}; devices on other machines need a copy")
    keys = {tenant: derive_key(secret) for tenant, secret in read_token_file(token_file).items()}
    say("loading torch ...")
    device = _prepare_torch(args.device, args.threads)
    with asyncio.Runner(loop_factory=_loop_factory(args.loop)) as runner:
        runner.run(_serve(args.listen, keys, directory, device, tls, limits, args.json))
    return DONE


async def _serve(
    where: Address,
    keys: Mapping[str, bytes],
    directory: Path,
    device: str,
    tls: ssl.SSLContext | None,
    limits: Limits,
    as_json: bool,
) -> None:
    from ..server import app  # imports torch

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        # A second signal ends the process at once: what is on the disk survives a crash, too.
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        say("stopping; again to stop at once")
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, stopping)
    async with app.serve(
        where, keys=keys, directory=directory, device=device, tls=tls, limits=limits
    ) as server:
        if as_json:
            print_json({"address": str(server.address)})
        else:
            print(f"listening on {server.address}", flush=True)
        await stop.wait()
    say("stopped")


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if (args.tls_cert is None) != (args.tls_key is None):
        given = "--tls-cert" if args.tls_key is None else "--tls-key"
        raise ConfigError(given, "alone", "--tls-cert and --tls-key together")
    if args.tls_cert is not None:
        return server_context(args.tls_cert, args.tls_key, device_ca=args.device_ca)
    if args.device_ca is not None or args.listen.tls:
        given = "--device-ca" if args.device_ca is not None else "--listen"
        raise ConfigError(given, "for TLS", "--tls-cert and --tls-key with it")
    return None


def _check_exposure(where: Address, tls: ssl.SSLContext | None, insecure: bool) -> None:
    if tls is None and not insecure and not _is_loopback(where.host):
        raise ConfigError(
            "--listen",
            f"{where.host}:{where.port} without TLS",
            "--tls-cert and --tls-key, or --insecure on a network where everyone may read all traffic",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _prepare_torch(device: str, threads: int) -> str:
    import torch

    torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("--device", "cuda", "cpu; torch sees no CUDA device here")
    return ("cuda" if available else "cpu") if device == "auto" else device


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    try:
        found: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError as error:
        raise ConfigError("--loop", "uvloop", "asyncio; uvloop is not installed here") from error
    return found
