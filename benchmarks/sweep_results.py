"""What a sweep knows: a file of JSON lines that only grows, in a directory that one sweep writes to."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from benchmarks.sweep_points import Point

__all__ = ["Results", "SweepError", "claimed", "flat"]

LOCK = "sweep.lock"
LARGEST = 1e12  # of any figure
STAGES = ("device", "link", "disk", "server")
PARTS = {
    "busy": STAGES,
    "waits": ("room", "credit", "link"),
    "where": ("device", "link", "server", "idle"),
}
FAILED, USAGE = 1, 2


class SweepError(Exception):
    """A sweep cannot begin or go on.

    Attributes:
        status: of the program at its end.

    """

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


@contextlib.contextmanager
def claimed(folder: pathlib.Path) -> Iterator[None]:
    """Make a directory, and keep it to this process for the time of the block.

    Raises:
        SweepError: it cannot be made or written to, or another process has it.

    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / LOCK).open("wb", buffering=0))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(b"locked while a sweep writes here\n")  # fails on a full disk
        except BlockingIOError:
            raise SweepError(
                f"another sweep writes to {folder}; wait for its end, or give another --out"
            ) from None
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise SweepError(
                f"nothing can be written to --out {folder}: {error.strerror}", FAILED if full else USAGE
            ) from error
        yield


class Results:
    """What is known of the points.

    Args:
        path: the file; a line that a kill cut in two is dropped.

    Attributes:
        done: figures of each point that was measured, by its key.

    Raises:
        SweepError: another line is none of a sweep.

    """

    def __init__(self, path: pathlib.Path) -> None:
        self.done: dict[str, dict[str, Any]] = {}
        self._path = path
        if not path.exists():
            return
        data = path.read_bytes()
        *lines, last = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                self._take(line)
            except ValueError as error:
                raise SweepError(
                    f"{path} line {number} is no result ({error}); "
                    "delete the line to measure that point again"
                ) from error
        if not last:
            return
        try:
            self._take(last)
        except ValueError:
            os.truncate(path, len(data) - len(last))
        else:
            self._append("")

    def _take(self, line: bytes) -> None:
        record = _parse(line)
        if "figures" in record:
            self.done[record["key"]] = record["figures"]

    def add(self, point: Point, *, figures: dict[str, Any] | None = None, error: str | None = None) -> None:
        """Note how a point went; it is on the disk when this returns.

        Raises:
            SweepError: it cannot be written.

        """
        record: dict[str, Any] = {"key": point.key, "point": dataclasses.asdict(point)}
        record |= {"error": error} if figures is None else {"figures": figures}
        self._append(json.dumps(record))
        if figures is not None:
            self.done[point.key] = figures

    def _append(self, line: str) -> None:
        try:
            with self._path.open("a") as file:
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SweepError(f"{self._path} cannot be written: {error.strerror}") from error

    def write_csv(self, path: pathlib.Path, points: Sequence[Point]) -> None:
        """Write the points that are known as a table."""
        rows = [dataclasses.asdict(p) | flat(self.done[p.key]) for p in points if p.key in self.done]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["bits"])
            writer.writeheader()
            writer.writerows(rows)


def flat(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures with the keys of maps in them joined by dots."""
    found: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            found[key] = value
    return found


def _parse(line: bytes) -> dict[str, Any]:
    """Read a line.

    Raises:
        ValueError: it is not one that :meth:`Results.add` writes.

    """
    try:
        record = json.loads(line.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        raise ValueError("it names no point")
    if "figures" in record:
        _check(record["figures"])
    elif not isinstance(record.get("error"), str):
        raise ValueError("it has neither figures nor an error")
    return record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _check(figures: object) -> None:
    if not isinstance(figures, dict):
        raise ValueError("its figures are no map")
    for name in ("wall", "bytes"):
        _number(name, figures.get(name))
    if not figures["wall"]:
        raise ValueError("wall is 0")
    for name, keys in PARTS.items():
        part = figures.get(name)
        if not isinstance(part, dict) or set(part) != set(keys):
            raise ValueError(f"{name} is no map of {', '.join(keys)}")
        for key, value in part.items():
            _number(f"{name}.{key}", value)
    if figures.get("critical") not in STAGES:
        raise ValueError(f"critical is none of {', '.join(STAGES)}")
    for name in ("loss", "accuracy"):
        if name not in figures:
            raise ValueError(f"{name} is missing")
        if figures[name] is not None:
            _number(name, figures[name])


def _number(name: str, value: object) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < LARGEST
    if not good:
        raise ValueError(f"{name} is {str(value)[:40]}, no number from 0 to {LARGEST:g}")
