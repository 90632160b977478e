"""``mobillm conformance``: hold a server or a client against the specification of the protocol."""

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
from .arguments import EXIT_CODES, Parser, Subparsers, address, at_least, file_path
from .console import say
from .failure import DONE, FAILED

__all__ = ["add", "run"]

_SERVER_EXAMPLES = """\
  mobillm conformance server mobillm://127.0.0.1:7707 --token-file tokens
  mobillm conformance server mobillms://host:7707 --token-file tokens --ca ca.pem --junit report.xml
  mobillm conformance server mobillm://127.0.0.1:7707 --token-file tokens --only credit --only 'F-1*'
"""
_CLIENT_EXAMPLES = """\
  mobillm conformance client --listen 127.0.0.1:0 --token-file tokens
  mobillm conformance client --token-file tokens --client-command './client {address} {token}'
"""
_PLACEHOLDER = re.compile(r"\{\w*\}")
_PATTERNS = "run these cases only: an area, an id or a statement, with * and ?; can be given again"
_OWN_CLIENT = f"{sys.executable} -m mobillm.cli.conformance_client {{address}} {{token}}"


def add(subparsers: Subparsers) -> None:
    """Add the command with its two subjects."""
    parser = subparsers.add_parser(
        "conformance",
        help="test a server or a client against the protocol",
        prog="mobillm conformance",
        description="Test a running server, or a client that connects here, against every numbered "
        "statement of the wire protocol that can be seen from outside.",
        epilog=f"examples:\n{_SERVER_EXAMPLES}{_CLIENT_EXAMPLES}\n{EXIT_CODES}",
    )
    subjects = parser.add_subparsers(title="subjects", metavar="SUBJECT", dest="subject", required=True)
    server = _subject(
        subjects,
        "server",
        _run_server,
        "Connect to a running server and test it. Each case uses connections and sessions of its own, "
        "which stay on the server: use one whose data can be deleted. Cases that the server has no room for "
        "are skipped; all run with a token file of two tenants and a server that lets one address fail to "
        "log in often, such as 'mobillm serve --limits failed_logins=1000 --limits sessions=10000'.",
        _SERVER_EXAMPLES,
        jobs=6,
    )
    server.add_argument(
        "address", type=address, metavar="ADDRESS", help="mobillm://HOST:PORT or mobillms://..."
    )
    server.add_argument(
        "--ca", type=file_path, metavar="PEM", help="authority of the server's certificate, for TLS"
    )
    client = _subject(
        subjects,
        "client",
        _run_client,
        "Listen, run a client once for each case, and test what it does. The client opens one session, "
        "sends at least two batches and FINISH, waits for FINISHED, pulls the weights, leaves and says "
        "goodbye. It ends with status 0 if all went well and with another one otherwise, and does not "
        "connect twice.",
        _CLIENT_EXAMPLES,
        jobs=8,
    )
    client.add_argument(
        "--listen",
        type=address,
        default=Address("127.0.0.1", 0),
        metavar="HOST:PORT",
        help="where to listen; port 0 takes a free one for each case (default: 127.0.0.1:0)",
    )
    client.add_argument(
        "--client-command",
        default=_OWN_CLIENT,
        metavar="COMMAND",
        help="runs the client; {address} and {token} are replaced (default: MobiLLM's own)",
    )


def _subject(
    subjects: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    description: str,
    examples: str,
    *,
    jobs: int,
) -> Parser:
    parser = subjects.add_parser(
        name,
        help=f"test a {name}",
        prog=f"mobillm conformance {name}",
        description=description,
        epilog=f"examples:\n{examples}\n{EXIT_CODES}",
    )
    parser.add_argument(
        "--token-file",
        type=file_path,
        metavar="T",
        help="lines TENANT:SECRET; required unless --list is given",
    )
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help=_PATTERNS)
    parser.add_argument("--list", action="store_true", help="list the cases and run none")
    parser.add_argument("--json", type=file_path, metavar="F", help="write all results to this file as JSON")
    parser.add_argument(
        "--junit", type=file_path, metavar="F", help="write all results to this file as JUnit XML"
    )
    parser.add_argument(
        "--jobs", type=at_least(1), default=jobs, metavar="N", help="cases at once (default: %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="log everything; show the traceback of an error")
    parser.set_defaults(run=run, verbose=False)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the subject that the arguments name."""
    status: int = args.run(args)
    return status


def _run_server(args: argparse.Namespace) -> int:
    cases = _chosen(args, server_suite())
    if args.list:
        return _list(cases)
    target = Target(args.address, tuple(_tokens(args).items()), _tls(args))

    async def work(done: Callable[[Result], None]) -> list[Result]:
        await _probe(target)
        return await run_cases(cases, lambda: Lab(target), jobs=args.jobs, done=done)

    return _report(args, f"the server {target.address}", len(cases), work)


def _run_client(args: argparse.Namespace) -> int:
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
