"""``mobillm serve``: train the side networks of devices."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import ipaddress
import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..options import Limits
from ..protocol import derive_key
from ..transport import DEFAULT_PORT, Address, server_context
from ..transport.tokens import create_token_file, read_token_file
from .access import TOKEN_FILE, data_directory
from .arguments import (
    LIMITS,
    MAX_THREADS,
    Subparsers,
    add_command,
    address,
    amount,
    between,
    file_path,
    half_of_cores,
    limit,
)
from .console import configure_logging, print_json
from .failure import DONE, INTERRUPTED
from .settings import Setting, add_settings, resolve

if TYPE_CHECKING:
    from ..server.engine import Engine
    from ..server.meter import Meter

__all__ = ["add", "run"]

logger = logging.getLogger("mobillm.cli")

MAX_GROUP = 64
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PREFIX = "MOBILLM_SERVE_"
# Ray reads it when it is imported. Without it a Ray that is meant for this machine alone takes 127.0.0.1 for
# the machine's address on the network, and listens there.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

SETTINGS = (
    Setting(
        name="listen",
        read=address,
        default=Address("127.0.0.1", DEFAULT_PORT),
        metavar="HOST:PORT",
        help="where to listen; port 0 takes a free one",
        shown=f"127.0.0.1:{DEFAULT_PORT}",
    ),
    Setting(
        name="data-dir",
        read=file_path,
        metavar="D",
        help="sessions and activation logs",
        shown="$XDG_DATA_HOME/mobillm or ~/.local/share/mobillm",
    ),
    Setting(
        name="token-file",
        read=file_path,
        metavar="T",
        help="lines TENANT:SECRET, or one bare secret, that of the tenant default; made with a random secret "
        "if it is missing",
        shown="token in the data directory",
    ),
    Setting(name="tls-cert", read=file_path, metavar="PEM", help="the server's certificate"),
    Setting(name="tls-key", read=file_path, metavar="PEM", help="its private key"),
    Setting(
        name="device-ca", read=file_path, metavar="PEM", help="authority whose certificates devices must show"
    ),
    Setting(name="insecure", read=bool, help="listen beyond this machine without TLS, all in plain"),
    Setting(
        name="engine",
        choices=("local", "ray"),
        default="local",
        help="train in this process, or each session in an actor of a Ray cluster",
    ),
    Setting(
        name="ray-address",
        metavar="HOST:PORT",
        help="head of the cluster; its nodes must see the data directory under the same path",
        shown="a Ray of its own on this machine",
    ),
    Setting(
        name="ray-cpus", read=amount, default=1.0, metavar="N", help="CPUs that Ray sets aside for a session"
    ),
    Setting(
        name="ray-gpus",
        read=amount,
        default=0.0,
        metavar="N",
        help="GPUs that it sets aside; with any, sessions train on CUDA",
        shown="0",
    ),
    Setting(
        name="device", choices=("auto", "cpu", "cuda"), default="auto", help="where the local engine trains"
    ),
    Setting(
        name="threads",
        read=between(1, MAX_THREADS),
        default=half_of_cores(),
        metavar="N",
        help="torch threads",
        shown="half of the cores",
    ),
    Setting(
        name="group",
        read=between(1, MAX_GROUP),
        default=1,
        metavar="N",
        help="sessions of one shape whose steps are taken together where that is faster; above 1 the last "
        "bits of a result depend on who trains at the same moment",
    ),
    Setting(name="loop", choices=("uvloop", "asyncio"), default="uvloop", help="event loop"),
    Setting(
        name="keep",
        read=bool,
        help="keep the activation log of a finished session when the device has the result",
    ),
    Setting(
        name="limits",
        read=limit,
        default=[],
        metavar="NAME=N",
        help="change a bound, in bytes or a count; can be given again (commas in the environment, "
        f"a table in the file); names: {', '.join(LIMITS)}",
        many=True,
    ),
    Setting(
        name="metrics",
        read=address,
        metavar="HOST:PORT",
        help="serve Prometheus metrics (/metrics) and a health check (/healthz) over HTTP, without a "
        "password: keep it inside",
    ),
    Setting(
        name="tensorboard", read=file_path, metavar="D", help="draw each session's curves into this directory"
    ),
    Setting(name="log", choices=("text", "json"), default="text", help="the log's lines, on standard error"),
)

_EXAMPLES = """\
  mobillm serve
  mobillm serve --listen 0.0.0.0:7707 --tls-cert server.pem --tls-key server.key
  mobillm serve --listen 127.0.0.1:0 --json --device cuda
  mobillm serve --engine ray --ray-address 10.0.0.5:6379 --data-dir /mnt/shared/mobillm
  mobillm serve --config server.toml --metrics 127.0.0.1:9707 --log json
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
    add_settings(parser, SETTINGS, PREFIX)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    args = resolve(args, SETTINGS, PREFIX, os.environ)
    if args.log == "json":
        configure_logging(debug=args.debug, verbose=True, as_json=True)
    tls = _tls(args)
    limits = Limits(**dict(args.limits))
    _check_exposure(args.listen, tls, args.insecure)
    directory = args.data_dir or data_directory()
    _check_directory(directory)
    token_file = args.token_file or directory / TOKEN_FILE
    if create_token_file(token_file):
        logger.info("made the token file %s; devices on other machines need a copy", token_file)
    keys = {tenant: derive_key(secret) for tenant, secret in read_token_file(token_file).items()}
    logger.info("loading torch ...")
    device = _prepare_torch(args.device, args.threads)
    with asyncio.Runner(loop_factory=_loop_factory(args.loop)) as runner:
        runner.run(_serve(args, keys, directory, device, tls, limits))
    if args.engine == "ray":
        # All is closed and on the disk. Threads that Ray leaves behind abort the process when the interpreter
        # ends before them, and a server that has stopped in order would look like one that has crashed.
        logging.shutdown()
        sys.stdout.flush()
        os._exit(DONE)
    return DONE


def _meter(args: argparse.Namespace) -> Meter:
    """Return what counts and draws, as far as it was asked for; both need packages that few servers have."""
    from ..server.meter import Meter  # imports torch

    meter = Meter()
    if args.metrics is not None:
        from ..server.metrics import PrometheusMeter

        meter = PrometheusMeter(args.metrics)
    if args.tensorboard is not None:
        from ..server.curves import Curves

        meter.curves = Curves(args.tensorboard)
    return meter


def _engine(args: argparse.Namespace) -> Engine | None:
    """Return the engine that was asked for; None trains in this process."""
    if args.engine == "local":
        if args.ray_address is not None:
            raise ConfigError("--ray-address", args.ray_address, "--engine ray with it")
        return None
    if args.group > 1:
        raise ConfigError("--group", args.group, "1 with --engine ray, where each session has its own actor")
    if args.ray_address is None or _is_loopback(args.ray_address.rpartition(":")[0]):
        os.environ.setdefault(LOOPBACK, "0")
    try:
        from ..server.engine_ray import RayEngine
    except ImportError as exc:
        raise ConfigError("--engine", "ray", "local; or run pip install 'mobillm[ray]' first") from exc
    return RayEngine(args.ray_address, cpus=args.ray_cpus, gpus=args.ray_gpus, threads=args.threads)


async def _serve(
    args: argparse.Namespace,
    keys: Mapping[str, bytes],
    directory: Path,
    device: str,
    tls: ssl.SSLContext | None,
    limits: Limits,
) -> None:
    from ..server import app  # imports torch

    options: Any = {"tls": tls, "limits": limits, "keep": args.keep, "meter": _meter(args)}
    options |= {"engine": _engine(args), "group": args.group}

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stopping() -> None:
        # A second signal ends the process at once: what is on the disk survives a crash, too.
        for number in SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, lambda *_: os._exit(INTERRUPTED))
        logger.info("stopping; again to stop at once")
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, stopping)
    async with app.serve(args.listen, keys=keys, directory=directory, device=device, **options) as server:
        if args.json:
            print_json({"address": str(server.address)})
        else:
            print(f"listening on {server.address}", flush=True)
        await stop.wait()
    logger.info("stopped")


def _check_directory(directory: Path) -> None:
    """Make the data directory, or say what is wrong with it, before anything else is looked for in it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError("data_dir", str(directory), f"a directory ({exc.strerror})") from exc
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError("data_dir", str(directory), "a directory of your own (permission denied)")


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
