"""``mobillm sessions``: look after the sessions of the server that runs on this machine."""

from __future__ import annotations

import argparse
import datetime
import json
import string
import textwrap
import time
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError
from .access import data_directory
from .arguments import EXIT_CODES, Parser, Subparsers, file_path
from .console import print_json
from .control import request
from .failure import DONE

__all__ = ["add", "run"]

_EXAMPLES = """\
  mobillm sessions list
  mobillm sessions show 1f0c
  mobillm sessions cancel 1f0c
  mobillm sessions export 1f0c --out side-1f0c
  mobillm sessions delete 1f0c --data-dir /var/lib/mobillm
"""
_WIDTH = 80
# Name, alignment and width of the list's columns: 80 with the two blanks between them.
_COLUMNS = (
    ("session", "<", 8),
    ("tenant", "<", 9),
    ("state", "<", 11),
    ("steps", ">", 11),
    ("epoch", ">", 9),
    ("loss", ">", 7),
    ("log", ">", 7),
    ("age", ">", 4),
)
_LOSS_WIDTH = 7
_ABBREVIATED = 10_000  # counts from here on
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "sessions",
        help="list, show, cancel, delete or export the sessions of a running server",
        prog="mobillm sessions",
        description="Look after the sessions of the server that runs on this machine. The server is asked "
        "over a socket in its data directory, which only its user can open.",
        epilog=f"examples:\n{_EXAMPLES}\n{EXIT_CODES}",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add(actions, "list", _list, "list all sessions")
    _add(actions, "show", _show, "show one session")
    _add(actions, "cancel", _cancel, "end a session for good; its files stay until it is deleted")
    delete = _add(actions, "delete", _delete, "delete a session with its log and its weights")
    delete.add_argument("--force", action="store_true", help="also one that has not ended")
    export = _add(actions, "export", _export, "write a session's weights, as they are now, and its spec")
    export.add_argument("--out", required=True, type=file_path, metavar="DIR", help="where they go")


def _add(actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> Parser:
    examples = "\n".join(line for line in _EXAMPLES.splitlines() if f"sessions {name}" in line)
    parser = actions.add_parser(
        name,
        help=summary,
        prog=f"mobillm sessions {name}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
    )
    if name != "list":
        parser.add_argument(
            "session", type=_digits, metavar="SESSION", help="its name, or the first digits of it"
        )
    parser.add_argument(
        "--data-dir",
        type=file_path,
        metavar="D",
        help="of the server (default: $XDG_DATA_HOME/mobillm or ~/.local/share/mobillm)",
    )
    parser.add_argument("--json", action="store_true", help="results as JSON, alone on standard output")
    parser.add_argument("--debug", action="store_true", help="log everything; show the traceback of an error")
    parser.set_defaults(run=run, verbose=False)
    return parser


def _digits(text: str) -> str:
    """Refuse what is not the beginning of a session's name, which all of them would have."""
    if not text or set(text) - set(string.hexdigits):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name of a session; expected the first digits of one of 'mobillm sessions list'"
        )
    return text


def run(args: argparse.Namespace) -> int:
    """Run the action that the arguments name."""
    status: int = args.run(args)
    return status


def _ask(args: argparse.Namespace, command: str, **values: Any) -> tuple[dict[str, Any], bytes]:
    if hasattr(args, "session"):
        values["session"] = args.session
    return request(args.data_dir or data_directory(), command, **values)


def _list(args: argparse.Namespace) -> int:
    answer, _ = _ask(args, "list")
    if args.json:
        print_json(answer)
        return DONE
    if not answer["sessions"]:
        print("no sessions")
        return DONE
    print(_row([name for name, _, _ in _COLUMNS]))
    for one in answer["sessions"]:
        print(_row(_cells(one)))
    if any(one["attached"] for one in answer["sessions"]):
        print("* a device is attached")
    if any(one["kept_epoch"] is not None for one in answer["sessions"]):
        print("~ stopped early; 'mobillm sessions show' has the epoch of the weights it kept")
    return DONE


def _cells(one: dict[str, Any]) -> list[str]:
    return [
        one["session"],
        _plain(one["tenant"] or "-"),
        one["state"] + ("" if one["kept_epoch"] is None else "~") + (" *" if one["attached"] else ""),
        _part(one["steps"], one["total_steps"]),
        _part(one["epoch"], one["epochs"]),
        "-" if one["loss"] is None else _loss(one["loss"]),
        "-" if one["log_bytes"] is None else _bytes(one["log_bytes"]),
        "-" if one["created"] is None else _age(time.time() - one["created"]),
    ]


def _row(cells: list[str]) -> str:
    """Return a line of the list; names that are too long lose their end, numbers always fit."""
    line = "  ".join(
        f"{text[:width]:{align}{width}}" for text, (_, align, width) in zip(cells, _COLUMNS, strict=True)
    )
    return line.rstrip()


def _show(args: argparse.Namespace) -> int:
    answer, _ = _ask(args, "show")
    return _print(answer, args)


def _cancel(args: argparse.Namespace) -> int:
    answer, _ = _ask(args, "cancel")
    return _tell(answer, args, "cancelled")


def _delete(args: argparse.Namespace) -> int:
    answer, _ = _ask(args, "delete", force=args.force)
    return _tell(answer, args, "deleted")


def _export(args: argparse.Namespace) -> int:
    weights, about = args.out / "side_model.safetensors", args.out / "session.json"
    for path in (weights, about):
        if path.exists():
            raise ConfigError("--out", str(args.out), f"a directory without {path.name}")
    answer, data = _ask(args, "export")
    args.out.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(data)
    about.write_text(json.dumps(answer, indent=1) + "\n")
    return _tell(answer | {"output": str(args.out)}, args, f"exported to {args.out}")


def _tell(answer: dict[str, Any], args: argparse.Namespace, what: str) -> int:
    if args.json:
        print_json(answer)
    else:
        print(f"session {answer['session']} {what}")
    return DONE


def _print(answer: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        print_json(answer)
        return DONE
    shown = {name: value for name, value in answer.items() if name != "spec"}
    for name in ("created", "ended"):
        if shown[name] is not None:
            shown[name] = datetime.datetime.fromtimestamp(shown[name]).strftime("%Y-%m-%d %H:%M:%S")
    for name, value in answer["spec"].items():
        parts = value.items() if isinstance(value, dict) else ()
        shown[f"spec {name}"] = ", ".join(f"{key} {item}" for key, item in parts) or value
    for name, value in shown.items():
        text = _plain("-" if value is None else str(value))
        print(
            textwrap.fill(
                text, _WIDTH, initial_indent=f"{name.replace('_', ' '):<20}", subsequent_indent=" " * 20
            )
        )
    return DONE


def _plain(text: str) -> str:
    """Return text of a device without what a terminal would act on."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _part(done: int | None, total: int | None) -> str:
    return f"{_count(done)}/{_count(total)}"


def _count(count: int | None) -> str:
    """Return a count in at most five characters."""
    if count is None:
        return "-"
    return str(count) if count < _ABBREVIATED else _short(count, ("", "k", "M", "G", "T"))


def _bytes(count: int) -> str:
    return _short(count, (" B", " kB", " MB", " GB", " TB"))


def _short(count: float, units: tuple[str, ...]) -> str:
    """Return a number with three digits and a unit."""
    for unit in units:
        if float(f"{count:.3g}") < 1000 or unit == units[-1]:
            break
        count /= 1000
    return f"{count:.3g}{unit}"


def _loss(value: float) -> str:
    texts = (f"{value:.{digits}f}" for digits in (4, 3, 2, 1))
    return next((text for text in texts if len(text) <= _LOSS_WIDTH), f"{value:.1e}")


def _age(seconds: float) -> str:
    for unit, size in (("d", _DAY), ("h", _HOUR), ("m", _MINUTE)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"
