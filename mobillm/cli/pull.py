"""``mobillm pull``: fetch the result of a session that the device has left."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator

from ..device.pending import Pending
from ..device.pull import Pulled, pull_async
from ..errors import ConfigError
from ..options import Timeouts
from .access import add_access, device_tls, device_token
from .arguments import Subparsers, add_command, file_path
from .console import early, print_json, say
from .failure import DONE

__all__ = ["add", "run"]

_EXAMPLES = """\
  mobillm pull --out mood
  mobillm pull 1f0c5a7e --out mood
  mobillm pull 1f0c5a7e --out mood --server mobillms://gpu.example:7707 --ca ca.pem --token-file token
"""


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "pull",
        run,
        summary="fetch the result of a session that was detached",
        description="Wait until the server has trained a session that 'mobillm finetune --detach' has left, "
        "or one whose 'mobillm finetune' was ended after it had sent everything, and save its side network "
        "to --out. Needs neither the model nor the data. Ctrl-C changes nothing: the same command fetches "
        "the result later.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "session",
        nargs="?",
        default="",
        metavar="SESSION",
        help="its name, or the first digits of it (default: the one that --out waits for)",
    )
    add_access(parser)
    parser.add_argument("--out", required=True, type=file_path, metavar="DIR", help="the --out of that run")


def run(args: argparse.Namespace) -> int:
    """Wait for a result and save it."""
    pending = Pending.load(args.out)
    name = pending.session.hex()
    if not name.startswith(args.session.lower()):
        raise ConfigError("SESSION", args.session, f"{name}, which --out {args.out} waits for")
    tenant, secret = device_token(args)
    tls = device_tls(args)
    from .progress import ProgressDisplay  # needs rich

    with ProgressDisplay() as display, _how_to_go_on():
        pulled = asyncio.run(
            pull_async(
                args.out,
                server=str(args.server),
                token=secret,
                tenant=tenant,
                tls=tls,
                timeouts=Timeouts(reconnect=args.patience),
                on_progress=display.update,
            )
        )
    if args.json:
        print_json(dataclasses.asdict(pulled))
    else:
        print(_summary(pulled))
    return DONE


@contextlib.contextmanager
def _how_to_go_on() -> Iterator[None]:
    """Say on Ctrl-C that nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        say("the server trains on; the same command fetches the result later")
        raise


def _summary(pulled: Pulled) -> str:
    loss = "" if pulled.loss is None else f", mean loss {pulled.loss:.4f} in the last epoch"
    lines = [f"trained {pulled.steps} steps{early(pulled.stopped)}{loss}"]
    if pulled.evaluation is not None:
        lines.append(
            "held-out: " + ", ".join(f"{name} {value:.4g}" for name, value in pulled.evaluation.items())
        )
    return "\n".join([*lines, f"saved to {pulled.output}"])
