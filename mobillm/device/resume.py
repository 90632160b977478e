"""What a device remembers of an unfinished run, so that a run that was killed can go on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..codec import Equalizer
from ..errors import DataError
from ..spec import SessionSpec

__all__ = ["SESSION_FILE", "Resume", "Unfinished"]

SESSION_FILE = "session.json"  # beside the result while it is not there yet
_ID_BYTES = 16
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclasses.dataclass(frozen=True, slots=True)
class Unfinished:
    """A session that can go on.

    Attributes:
        session: its id.
        equalizers: those that were sent in it, see :attr:`mobillm.Session.equalizers`.

    """

    session: bytes
    equalizers: Mapping[int, tuple[int, Equalizer]]


@dataclasses.dataclass(frozen=True, slots=True)
class Resume:
    """A small file beside the result: the session's id, spec and equalizers, and the digest of its data.

    Args:
        path: the file; it never leaves the device.
        data: digest of the token batches, in hex.

    """

    path: pathlib.Path
    data: str

    def load(self, spec: SessionSpec) -> Unfinished | None:
        """Return the unfinished session; None when there is none.

        Args:
            spec: what is to be trained now.

        Raises:
            DataError: the file cannot be read, or the unfinished session was another one.

        """
        try:
            content = json.loads(self.path.read_bytes())
            session = bytes.fromhex(content["session"])
            if len(session) != _ID_BYTES:
                raise ValueError(f"the session's id has {len(session)} bytes, expected {_ID_BYTES}")
            found = SessionSpec.from_map(content["spec"])
            equalizers = {
                int(tap): (int(seq), _equalizer(int(tap), factors, found))
                for tap, (seq, factors) in content["equalizers"].items()
            }
        except FileNotFoundError:
            return None
        except _DAMAGED as exc:
            raise DataError(f"{self.path} cannot be read ({exc}); delete it to start anew") from exc
        different = _different(found.to_map(), spec.to_map())
        if different or content.get("data") != self.data:
            raise DataError(
                f"{self.path} is of an unfinished session with other "
                f"{', '.join(different) or 'data'}; repeat what it was started with to go on, or delete "
                "the file to start anew ('mobillm sessions "
                f"cancel {session.hex()}' ends the session on its server)"
            )
        return Unfinished(session, equalizers)

    def save(
        self,
        session: bytes,
        spec: SessionSpec,
        equalizers: Mapping[int, tuple[int, Equalizer]] = types.MappingProxyType({}),
    ) -> None:
        """Remember a session; the file is whole or absent.

        Raises:
            DataError: the file cannot be written.

        """
        content = json.dumps(
            {
                "session": session.hex(),
                "data": self.data,
                "spec": spec.to_map(),
                "equalizers": {
                    tap: [seq, equalizer.packed.payload.hex()] for tap, (seq, equalizer) in equalizers.items()
                },
            }
        )
        beside = self.path.with_name(self.path.name + ".new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(content)
            os.replace(beside, self.path)
        except OSError as exc:
            raise DataError(f"{self.path} cannot be written: {exc.strerror}; choose another --out") from exc

    def clear(self) -> None:
        """Forget the session."""
        self.path.unlink(missing_ok=True)


def _different(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Name the fields in which two specs differ, in dots."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _different(old, new, f"{where}{name}.")
        elif old != new:
            found.append(where + name)
    return found


def _equalizer(tap: int, factors: str, spec: SessionSpec) -> Equalizer:
    """Read the factors of a tap from their hex digits."""
    if not 0 <= tap < len(spec.model.taps):
        raise ValueError(f"equalizer of tap {tap}, expected 0 to {len(spec.model.taps) - 1}")
    found = Equalizer(np.frombuffer(bytes.fromhex(factors), "<f2").astype(np.float16))
    if found.factors.size != spec.model.hidden_size:
        raise ValueError(f"{found.factors.size} factors of tap {tap}, expected {spec.model.hidden_size}")
    return found
