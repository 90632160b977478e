"""``mobillm trace``: what a trace of a run says, as figures and as a picture."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable

from ..device.recording import load_trace
from ..device.timeline import STAGES, Bubble, Summary, summarize
from ..errors import ConfigError
from .arguments import EXIT_CODES, Parser, Subparsers, file_path
from .console import print_json, say
from .failure import DONE

__all__ = ["add", "run"]

_EXAMPLES = """\
  mobillm finetune --model smollm2 --data train.tsv --out mood --trace trace.json
  mobillm trace summary trace.json
  mobillm trace plot trace.json --out trace.png --start 20 --seconds 6
"""
_MEANING = {
    "device": "the forward pass",
    "link": "the network",
    "disk": "the server's disk",
    "server": "training",
    "credit": "the server's memory (training is behind)",
    "own": "itself: no other stage held it up",
}
_SHOWN = 5  # bubbles


def add(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "trace",
        help="say where the time of a traced run went, or draw it",
        prog="mobillm trace",
        description="Read a Chrome trace that 'mobillm finetune --trace' or 'mobillm demo --trace' wrote. "
        "https://ui.perfetto.dev opens it, too.",
        epilog=f"examples:\n{_EXAMPLES}\n{EXIT_CODES}",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add(
        actions, "summary", _summary, "print the critical stage, its efficiency, its bubbles and their causes"
    )
    plot = _add(actions, "plot", _plot, "draw the timeline of both sides")
    plot.add_argument(
        "--out",
        type=file_path,
        metavar="FILE",
        help=".png, .svg or .pdf (default: FILE with the ending .png)",
    )
    plot.add_argument(
        "--start", type=_seconds, metavar="S", help="first second (default: of the steady state)"
    )
    plot.add_argument(
        "--seconds", type=_seconds, default=8.0, metavar="S", help="how many (default: %(default)s)"
    )


def _add(actions: Subparsers, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> Parser:
    examples = "\n".join(line for line in _EXAMPLES.splitlines() if f"trace {name}" in line)
    parser = actions.add_parser(
        name,
        help=summary,
        prog=f"mobillm trace {name}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
    )
    parser.add_argument("file", type=file_path, metavar="FILE", help="the trace")
    parser.add_argument("--json", action="store_true", help="results as JSON, alone on standard output")
    parser.add_argument("--debug", action="store_true", help="log everything; show the traceback of an error")
    parser.set_defaults(run=run, verbose=False)
    return parser


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the action that the arguments name."""
    status: int = args.run(args)
    return status


def _summary(args: argparse.Namespace) -> int:
    found = summarize(load_trace(args.file))
    if args.json:
        print_json(dataclasses.asdict(found))
    else:
        print("\n".join(_lines(found)))
    return DONE


def _lines(found: Summary) -> list[str]:
    wall = found.end - found.start
    lines = [f"steady state: {wall:.2f} s of {found.total:.2f} s, {found.batches} batches trained on"]
    lines += [f"  {name:<7} {found.busy[name]:6.1%} busy" for name in STAGES]
    lines.append(f"critical stage: {found.critical}; pipeline efficiency {found.efficiency:.3f}")
    if found.bubbles:
        lost = sum(bubble.duration for bubble in found.bubbles)
        lines.append(f"it waited {lost:.3f} s in {len(found.bubbles)} bubbles, for")
        ordered = sorted(found.causes.items(), key=lambda item: -item[1])
        lines += [f"  {seconds:8.3f} s {_MEANING[cause]}" for cause, seconds in ordered]
        lines.append("the longest:")
        lines += [f"  {_describe(bubble)}" for bubble in found.bubbles[:_SHOWN]]
    if found.clock_error is not None:
        lines.append(f"the two clocks agree within {found.clock_error * 1e3:.2f} ms")
    return lines


def _describe(bubble: Bubble) -> str:
    cause = max(bubble.causes, key=lambda name: bubble.causes[name], default="own")
    where = f"before batch {bubble.batch}" if bubble.batch else "at the end"
    return f"{bubble.duration:.3f} s at {bubble.start:.2f} s {where}: {_MEANING[cause]}"


def _plot(args: argparse.Namespace) -> int:
    timeline = load_trace(args.file)
    out = args.out or args.file.with_suffix(".png")
    if out.suffix not in (".png", ".svg", ".pdf"):
        raise ConfigError("out", str(out), "a name that ends in .png, .svg or .pdf")
    if out.exists() and out.samefile(args.file):
        raise ConfigError("out", str(out), "another file than the trace, which it would overwrite")
    start = summarize(timeline).start if args.start is None else args.start
    end = max((span.end for span in timeline.spans), default=0.0)
    if start >= end:
        raise ConfigError("start", start, f"a second before the end of the trace, {end:.2f}")
    say("loading matplotlib ...")
    from .trace_plot import draw

    draw(timeline, out, start=start, seconds=args.seconds)
    if args.json:
        print_json({"picture": str(out)})
    else:
        print(f"drawn: {out}")
    return DONE
