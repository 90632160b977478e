"""``mobillm conformance``: hold a server or a client against the specification of the protocol."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from ..transport import Address
from .arguments import EXIT_CODES, Parser, Subparsers, address, at_least, file_path

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


# The cases are loaded only where they are run: each command would be a tenth of a second slower to start.


def _run_server(args: argparse.Namespace) -> int:
    from .conformance_run import run_server

    return run_server(args)


def _run_client(args: argparse.Namespace) -> int:
    from .conformance_run import run_client

    return run_client(args)
