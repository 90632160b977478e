"""The fault table: what each row breaks, and how its tests went."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

__all__ = ["ROWS", "Outcome", "lines", "outcomes", "row_of"]

ROWS = {
    "1": "a connection that sends nothing",
    "2": "a handshake of one byte after another",
    "3": "a flood of half-open logins",
    "4": "other protocols; TLS at a plain port and plain at a TLS port",
    "5": "TLS 1.2",
    "6": "no device certificate, a stranger's, an expired one",
    "7": "a server with the wrong name or of an unknown authority",
    "8": "another ALPN protocol, or none",
    "9": "bytes before TLS",
    "10": "a HELLO that is too long, too deep, or no map",
    "11": "another frame than HELLO first",
    "12": "no common version",
    "13": "a version or capability taken away in the middle",
    "14": "a wrong token, an unknown tenant",
    "15": "tokens guessed by brute force",
    "16": "a recorded login, played again",
    "17": "another tenant's session",
    "18": "a wrong magic, a wrong header checksum",
    "19": "a length beyond the limit",
    "20": "a map longer than the body, reserved bits, DATA on stream 0",
    "21": "a wrong body checksum",
    "22": "a stream cut after any byte",
    "23": "any fragmentation",
    "24": "unknown types, keys and flags that may be ignored",
    "25": "unknown types and keys that may not",
    "26": "a flood of empty frames",
    "27": "frames that the state does not allow",
    "28": "a read that is cancelled inside a frame",
    "29": "malformed metadata",
    "30": "arrays in arrays, megabytes of them",
    "31": "a compressed bomb",
    "32": "a shape that contradicts its payload",
    "33": "an unknown format, a scale that is not finite",
    "34": "padding bits that are not zero",
    "35": "data that makes the loss not finite",
    "36": "parts that are missing, doubled, out of order",
    "37": "another model, another format",
    "38": "a pickle",
    "39": "a sender that ignores credit",
    "40": "credit that overflows, goes back, or is zero",
    "41": "training that stalls",
    "42": "a reader that never reads",
    "43": "writes that do not wait for the link",
    "43b": "buffers that change while they are sent",
    "44": "a flood of PING, a PONG that never comes",
    "45": "batches begun and given up, over and over",
    "46": "a storm of devices that come back",
    "47": "a tenant that floods",
    "48": "no file descriptors left",
    "49": "no memory left",
    "50": "FIN and RST at any moment",
    "51": "a half-closed connection",
    "52": "a black hole",
    "53": "delay, loss, disorder, corruption, a narrow link",
    "54": "a link that flaps",
    "55": "a device that moves to another address",
    "56": "two devices with one session",
    "57": "late frames of an attachment that was taken over",
    "58": "a lost acknowledgement",
    "59": "a batch number used again for other bytes",
    "60": "a batch number that is left out",
    "61": "SIGKILL of the server",
    "62": "a sync that fails, a full disk, a torn write",
    "63": "a damaged checkpoint, a damaged log",
    "64": "a device that dies or sleeps, a clock that jumps",
    "65": "SIGTERM, an upgrade, a newer device",
    "66": "a soak with random faults",
}

_NAME = re.compile(r"::test_row_0*(\d+b?)_")


@dataclasses.dataclass(slots=True)
class Outcome:
    """How the tests of one row went.

    Attributes:
        passed, failed, skipped: counts of tests.
        compared: how often weights were compared with those of an undisturbed run, and were equal.

    """

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    compared: int = 0

    @property
    def verdict(self) -> str:
        """PASS, FAIL, or MISSING when no test of the row was run."""
        if self.failed:
            return "FAIL"
        return "PASS" if self.passed else "MISSING"


def row_of(test: str) -> str | None:
    """Return the row that a test's id names; None when it names none."""
    found = _NAME.search(test)
    return None if found is None else found[1]


def outcomes(results: Iterable[tuple[str, str, int]]) -> dict[str, Outcome]:
    """Sum up tests by row, in the order of the table.

    Args:
        results: of each test its id, its outcome ("passed", "skipped", anything else is a failure) and
            how many weights it compared.

    """
    found = {row: Outcome() for row in ROWS}
    for test, outcome, compared in results:
        row = row_of(test)
        if row not in found:
            continue
        kind = outcome if outcome in ("passed", "skipped") else "failed"
        setattr(found[row], kind, getattr(found[row], kind) + 1)
        found[row].compared += compared
    return found


def lines(found: dict[str, Outcome]) -> list[str]:
    """Return one line for each row, and a last one that counts them."""
    text = []
    for row, outcome in found.items():
        tests = f"{outcome.passed} tests" if outcome.passed != 1 else "1 test"
        parts = [tests, f"{outcome.compared} times the same weights"]
        if outcome.skipped:
            parts.append(f"{outcome.skipped} skipped")
        text.append(f"{row:>3}  {outcome.verdict:7}  {ROWS[row]} ({', '.join(parts)})")
    good = sum(outcome.verdict == "PASS" for outcome in found.values())
    return [*text, f"{good} of {len(found)} rows PASS"]
