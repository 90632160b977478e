"""What an operator is shown of a session: figures and states, never contents of tensors."""

from __future__ import annotations

from typing import Any

from .session import Session

__all__ = ["STATES", "state_of", "summarise", "unreadable"]

STATES = ("receiving", "training", "finished", "cancelled", "failed")


def state_of(session: Session) -> str:
    """Return the one word for where a session stands.

    Returns:
        ``receiving`` (batches still come), ``training`` (the device has sent its last one), ``finished``,
        ``cancelled``, or ``failed`` (``failure`` says why; the device's next attachment tries again).

    """
    if session.record.cancelled:
        return "cancelled"
    if session.failed:
        return "failed"
    if session.finished is not None:
        return "finished"
    return "receiving" if session.last is None else "training"


def summarise(session: Session, *, attached: bool) -> dict[str, Any]:
    """Return a session's figures as plain values for JSON.

    Args:
        session: the session.
        attached: whether a device is attached to it.

    """
    spec, record = session.spec, session.record
    stopped = None if session.finished is None else spec.stopped(session.finished.steps)
    total = None if spec.batches is None else spec.batches * spec.epochs
    return {
        "session": session.id.hex(),
        "tenant": session.tenant,
        "state": state_of(session),
        "failure": session.failure,
        "attached": attached,
        "task": spec.task,
        "model": spec.model.name,
        "side": spec.side.kind,
        "created": record.created,
        "ended": record.ended,
        "received": session.received,
        "durable": session.durable,
        "applied": session.applied,
        "last": session.last,
        "steps": _steps(session),
        "total_steps": total,
        "epoch": _epoch(session) if stopped is None else stopped[0],
        "kept_epoch": None if stopped is None else stopped[1],
        "epochs": spec.epochs,
        "loss": _loss(session),
        "queue_batches": session.waiting,
        "queue_bytes": session.held,
        "log_bytes": session.stored,
        "attachments": record.epoch,
    }


def _steps(session: Session) -> int | None:
    """Return the optimizer steps taken; None while neither the network is loaded nor the session finished."""
    if session.training is not None:
        return session.training.status.steps
    return None if session.finished is None else session.finished.steps


def _epoch(session: Session) -> int | None:
    """Return the epoch of the last step, from 1; None as for the steps."""
    if session.training is not None:
        return session.training.status.progress.epoch
    return None if session.finished is None else session.spec.epochs


def _loss(session: Session) -> float | None:
    """Return the mean loss of the present epoch, or of the last one; None before its first step."""
    if session.training is None or session.finished is not None:
        return None if session.finished is None else session.finished.loss
    return session.training.status.progress.mean


def unreadable(session: bytes, failure: str) -> dict[str, Any]:
    """Return the figures of :func:`summarise` for a session of which only its name can be read."""
    names = "tenant task model side created ended received durable applied last steps total_steps epoch"
    more = "kept_epoch epochs loss queue_batches queue_bytes log_bytes attachments"
    known = {"session": session.hex(), "state": "failed", "failure": failure, "attached": False}
    return known | dict.fromkeys([*names.split(), *more.split()])
