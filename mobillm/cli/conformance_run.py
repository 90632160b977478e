"""``mobillm conformance``, its arguments read: run the cases, show and write the results."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shlex
import shutil
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..conformance import (
    Case,
    Deviation,
    Lab,
    Result,
    Target,
    Visit,
    client_suite,
    command_drive,
    failure,
    junit,
    run_cases,
    select,
    server_suite,
    summary,
    table,
    to_json,
)
from ..conformance.statements import load
from ..errors import ConfigError, ConnectionClosedError
from ..transport import Address, device_context
from ..transport.tokens import read_token_file
from .console import say
from .failure import DONE, FAILED

__all__ = ["run_client", "run_server"]

_PLACEHOLDER = re.compile(r"\{\w*\}")


def run_server(args: argparse.Namespace) -> int:
    """Test the server that the arguments name."""
    cases = _chosen(args, server_suite())
    if args.list:
        return _list(cases)
    target = Target(args.address, tuple(_tokens(args).items()), _tls(args))

    async def work(done: Callable[[Result], None]) -> list[Result]:
        await _probe(target)
        return await run_cases(cases, lambda: Lab(target), jobs=args.jobs, done=done)

    return _report(args, f"the server {target.address}", len(cases), work)


def run_client(args: argparse.Namespace) -> int:
    """Test the client that the arguments name."""
    cases = _chosen(args, client_suite())
    if args.list:
        return _list(cases)
    token = next(iter(_tokens(args).values()))
    listen: Address = args.listen
    if listen.tls:
        raise ConfigError("--listen", str(listen), "HOST:PORT; clients are tested without TLS")
    _check_command(args.client_command)
    # One port can be listened on by one case at a time.
    jobs = args.jobs if listen.port == 0 else 1

    def visit() -> Visit:
        made = Visit(
            command_drive(args.client_command, lambda line: made.log.add(f"| {line}")), listen, token
        )
        return made

    async def work(done: Callable[[Result], None]) -> list[Result]:
        return await run_cases(cases, visit, jobs=jobs, done=done)

    return _report(args, f"the client {args.client_command}", len(cases), work)


def _check_command(command: str) -> None:
    """See before the first case that the command can be run."""
    flag = "--client-command"
    try:
        words = shlex.split(command)
    except ValueError as exc:
        raise ConfigError(flag, command, f"a command as in a shell ({str(exc).lower()})") from None
    unknown = set(_PLACEHOLDER.findall(command)) - {"{address}", "{token}"}
    if unknown:
        raise ConfigError(flag, min(unknown), "no other words in braces than {address} and {token}")
    if not words or shutil.which(words[0]) is None:
        program = words[0] if words else ""
        raise ConfigError(flag, program, "a program that is there and can be run")


def _chosen(args: argparse.Namespace, cases: Sequence[Case[Any]]) -> list[Case[Any]]:
    chosen = select(cases, args.only)
    if not chosen:
        raise ConfigError("--only", args.only[0], "an area, a case or a statement that --list shows")
    return chosen


def _tokens(args: argparse.Namespace) -> dict[str, str]:
    if args.token_file is None:
        raise ConfigError("--token-file", "not given", "the server's token file, or one for the client")
    return read_token_file(args.token_file)


def _list(cases: Sequence[Case[Any]]) -> int:
    for case in cases:
        print(f"{case.id:8} {case.area:10} {', '.join(case.statements):24} {case.title}")
    return DONE


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if not args.address.tls:
        if args.ca is not None:
            raise ConfigError("--ca", str(args.ca), "an address mobillms://..., which it is for")
        return None
    return device_context(args.ca)


async def _probe(target: Target) -> None:
    """See that a plain handshake works: without it no case could say anything."""
    lab = Lab(target)
    try:
        await lab.open()
    except Deviation as exc:
        text = str(exc)
        if text.startswith("cannot connect"):
            raise ConnectionClosedError(
                None, f"{text}; check the address, and that a server runs there"
            ) from exc
        raise ConnectionClosedError(
            None, f"a plain handshake with {target.address} does not work: {text}; check --token-file"
        ) from exc
    finally:
        await lab.close()


def _report(
    args: argparse.Namespace,
    subject: str,
    count: int,
    work: Callable[[Callable[[Result], None]], Any],
) -> int:
    with _progress(count) as done:
        results: list[Result] = asyncio.run(work(done))
    statements = load()
    if args.json is not None:
        args.json.write_text(to_json(results, statements, subject), encoding="utf-8")
    if args.junit is not None:
        args.junit.write_text(junit(results, statements, subject), encoding="utf-8")
    for result in results:
        if result.deviation is not None:
            print(failure(result, statements) + "\n")
    print(table(results))
    for result in results:
        if result.skipped is not None:
            print(f"skipped {result.case.id}: {result.skipped}")
    print(summary(results))
    return FAILED if any(result.deviation is not None for result in results) else DONE


@contextlib.contextmanager
def _progress(count: int) -> Iterator[Callable[[Result], None]]:
    """Show a bar on a terminal; elsewhere each failure as it comes."""
    if not sys.stderr.isatty():
        yield lambda result: None if result.deviation is None else say(f"failed {result.case.id}")
        return
    # Loaded only where there is something to draw.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("no failures", total=count)
        failed = 0

        def done(result: Result) -> None:
            nonlocal failed
            failed += result.deviation is not None
            bar.update(task, advance=1, description=f"{failed} failed" if failed else "no failures")

        yield done
