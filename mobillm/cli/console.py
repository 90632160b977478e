"""What a person and a program read: notices on standard error, results on standard output."""

from __future__ import annotations

import datetime
import json
import logging
import math
import re
import sys
from typing import Any

__all__ = ["configure_logging", "early", "print_json", "say"]


def say(text: str) -> None:
    """Show a notice at once, on standard error."""
    print(text, file=sys.stderr, flush=True)


def early(stopped: tuple[int, int] | None) -> str:
    """Return what follows the steps of a run, from :meth:`SessionSpec.stopped`; nothing if it went on."""
    if stopped is None:
        return ""
    return f" (stopped early after epoch {stopped[0]}, with the weights of epoch {stopped[1]})"


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on one line of standard output; numbers that JSON lacks become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# As the server's log names a session.
_SESSION = re.compile(r"session ([0-9a-f]{32})")


class _Notices(logging.Handler):
    """Writes to whatever standard error is at that moment: a progress display replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


class _JsonLines(logging.Formatter):
    """One JSON object a line; a line that concerns a session names it in the field ``session``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        text = record.getMessage()
        values = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": text,
        }
        session = _SESSION.search(text)
        if session is not None:
            values["session"] = session[1]
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def configure_logging(*, debug: bool, verbose: bool, as_json: bool = False) -> None:
    """Send the package's log to standard error.

    Args:
        debug: everything, with the name of the logger.
        verbose: what happens, with the time; else warnings only.
        as_json: one JSON object a line.

    """
    handler = _Notices()
    if as_json:
        handler.setFormatter(_JsonLines())
    elif debug:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    elif verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("mobillm")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
