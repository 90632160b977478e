"""What a device remembers of a session whose result it has not fetched yet."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Self

from ..errors import DataError, ModelError
from ..nn.cache import installed
from ..nn.saved import CONFIG_FILE, SideConfig
from ..protocol import Finished
from .resume import SESSION_FILE

__all__ = ["PENDING_FILE", "Pending", "check_trained"]

PENDING_FILE = "pending.json"
_ID_BYTES = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A session that has all its batches on the server's disk; the file never leaves the device.

    Attributes:
        session: its 16 bytes.
        batches: how many there are, the held-out ones included.
        config: what will be saved beside the weights.
        heldout: whether some of its batches are held out, so that the result can be evaluated.

    """

    session: bytes
    batches: int
    config: SideConfig
    heldout: bool

    @classmethod
    def load(cls, directory: pathlib.Path) -> Self:
        """Read the file that :meth:`save` has left in a directory.

        Raises:
            DataError: there is none, or it cannot be read.

        """
        path = directory / PENDING_FILE
        try:
            content = json.loads(path.read_bytes())
            session = bytes.fromhex(content["session"])
            batches, heldout = content["batches"], content["heldout"]
            whole = type(batches) is int and batches >= 1
            if len(session) != _ID_BYTES or type(heldout) is not bool or not whole:
                raise ValueError("its session, its batches or its part that is held out is none")
            config = SideConfig.from_json(json.dumps(content["config"]), str(path))
            return cls(session=session, batches=batches, config=config, heldout=heldout)
        except FileNotFoundError:
            advice = "give the --out of the run that was detached, or run 'mobillm finetune --detach' first"
            if (directory / SESSION_FILE).exists():
                advice = "its run has not sent everything; the same 'mobillm finetune' again goes on with it"
            elif (directory / CONFIG_FILE).exists():
                advice = "it holds a result already, for 'mobillm evaluate' and 'mobillm predict'"
            raise DataError(
                f"no result is to be fetched for {directory} (no {PENDING_FILE}): {advice}"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ModelError) as exc:
            raise DataError(f"{path} cannot be read ({exc}); run 'mobillm finetune' again") from exc

    def save(self, directory: pathlib.Path) -> None:
        """Write the file; it is whole or absent.

        Raises:
            DataError: it cannot be written.

        """
        content = {
            "session": self.session.hex(),
            "batches": self.batches,
            "heldout": self.heldout,
            "config": json.loads(self.config.to_json()),
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with installed(directory / PENDING_FILE) as file:
                file.write_text(json.dumps(content, indent=1) + "\n")
        except OSError as exc:
            raise DataError(f"{directory} cannot be written: {exc.strerror}; choose another --out") from exc

    def check(self, directory: pathlib.Path) -> None:
        """Check that this is still what a directory waits for.

        Raises:
            DataError: it is not; a new run has begun there, or another call has fetched the result.

        """
        if self.load(directory).session != self.session:
            name = self.session.hex()
            raise DataError(f"{directory} waits for another session by now; {name} stays on the server")

    @staticmethod
    def clear(directory: pathlib.Path) -> None:
        """Forget the session."""
        (directory / PENDING_FILE).unlink(missing_ok=True)


def check_trained(finished: Finished, directory: pathlib.Path | None) -> None:
    """Refuse a result that is of no use.

    Args:
        finished: how training ended.
        directory: forgets the session then, so that a new one can be tried; None for none.

    Raises:
        ModelError: no step of the last epoch had a finite loss.

    """
    if finished.loss is not None or not finished.steps:
        return
    if directory is not None:
        Pending.clear(directory)
        (directory / SESSION_FILE).unlink(missing_ok=True)
    raise ModelError(
        "no step of the last epoch had a finite loss, so nothing useful was trained; "
        "lower the learning rate, or scale the targets of a regression"
    )
