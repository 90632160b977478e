"""The spec in OPEN: each field absent, of another type, just outside its range, and at its edges."""

from __future__ import annotations

import copy
from typing import Any

from ...errors import ErrorCode
from ...formats import Format
from ...protocol import FrameType, Opened
from ..case import Deviation, Draft, Run
from ..samples import spec
from ..target import Lab
from ..wire import frame
from .stimuli import Cases

__all__ = ["drafts"]

E = ErrorCode
NAN = float("nan")
DIGEST = "5b" * 32
LANGUAGE: dict[str, Any] = {"task": "causal-lm", "side": {"kind": "ladder"}}

# What is wrong with a field, by its path in the spec; ``...`` leaves it out.
_WRONG: dict[str, list[Any]] = {
    "task": [..., None, 1, "", "Classification", "generation", b"classification", ["classification"]],
    "outputs": [..., None, "2", 2.0, True, 0, 1, -1, 2**22 + 1],
    "model": [..., None, 1, "tiny", []],
    "model.name": [..., None, 1, b"x", "x" * 129],
    "model.hidden_size": [..., None, "32", 32.0, True, 0, -1, 65537],
    "model.layers": [..., None, 2.0, 0, -1, 1025],
    "model.taps": [..., None, 2, "2", [], [3], [-1], [2, 1], [1, 1], [True], [1.0], ["1"], [None],
                   [0, 1, 2, 3]],
    "side": [None, 1, "ladder", []],
    "side.kind": [None, 1, "", "Ladder", "tower"],
    "side.width": [None, 8.0, "8", 0, -1, 65537],
    "side.heads": [None, 1.0, 0, -1, 5, 97],
    "side.dropout": [None, "0.1", True, -0.1, 1.0, 1, NAN],
    "side.causal": [None, 1, "true"],
    "side.pool": [None, 0, "", "max"],
    "side.rank": [None, 8.0, "8", 0, -1, 1025],
    "optimizer": [None, 1, "adam", []],
    "optimizer.lr": [None, "0.1", True, 0, 0.0, -0.1, 10.5, NAN, float("inf")],
    "optimizer.weight_decay": [None, "0", -0.1, 10.5, NAN],
    "optimizer.schedule": [None, 1, "", "cosine"],
    "optimizer.warmup": [None, "0", -0.1, 0.6, NAN],
    "optimizer.clip": [None, "1", -1.0, NAN, float("inf")],
    "optimizer.ema": [None, "0", -0.1, 1.0, NAN],
    "codec": [None, 4, "asym4", []],
    "codec.format": [None, 20, "", "ASYM", "asym9", "i32", "int4"],
    "codec.block": [None, "64", 64.0, 0, 16, 63, 256],
    "codec.equalize": [None, 1, "true"],
    "codec.compression": [None, True, "", "ZSTD", "gzip", ["zstd"]],
    "codec.bits": [None, 4, "4", [4.0], [True], [1, 4], [4, 9], [4, 2], [4, 4], [2, 3]],
    "epochs": [None, "1", 1.0, True, 0, -1, 10001],
    "early_stopping": [None, "1", 1.0, True, -1, 10001],
    "batches": ["1", 1.0, True, 0, -1],
    "seed": [None, "0", 0.0, True, -1, 2**63],
    "head": [1, b"\x5b" * 32, DIGEST, "5b"],
    "trace": [None, 0, "false"],
    "tokens": [None, 0, "", "first", "loss"],
    "tail": [1, "llama", [], {}, {"architecture": "llama"}],
}  # fmt: skip

# Wrong only together.
_TOGETHER: dict[str, dict[str, Any]] = {
    "a tail that is not described": {"side": {"kind": "tail"}},
    "regression with two outputs": {"task": "regression"},
    "onecycle without batches": {"optimizer": {"schedule": "onecycle"}},
    "the default schedule without batches": {"optimizer": ...},
    "linear with batches nil": {"optimizer": {"schedule": "linear"}, "batches": None},
    "causal-lm without a head": LANGUAGE,
    "causal-lm of kind head": {"task": "causal-lm", "head": DIGEST},
    "causal-lm that is not causal": {
        "task": "causal-lm", "head": DIGEST, "side": {"kind": "parallel", "causal": False},
    },
    "causal-lm with a head of 63 digits": {**LANGUAGE, "head": DIGEST[1:]},
    "causal-lm with a head in capitals": {**LANGUAGE, "head": DIGEST.upper()},
    "causal-lm with a head that is no hex": {**LANGUAGE, "head": "x" * 64},
    "widths for a format that is not asym": {"codec": {"format": "nf4", "bits": [4]}},
    "heads that do not divide the width": {"side": {"kind": "ladder", "width": 10, "heads": 4}},
}  # fmt: skip

# At the edges of the ranges, and every word of each vocabulary.
_RIGHT: dict[str, list[Any]] = {
    "outputs": [2, 3, 1000],
    "model.name": ["", "ä" * 128],
    "model.hidden_size": [1, 33],
    "model.layers": [1024],
    "model.taps": [[0], [1], [0, 1, 2]],
    "side.kind": ["ladder", "parallel", "head"],
    "side.dropout": [0, 0.0, 0.999],
    "side.causal": [True, False],
    "side.pool": ["last", "first", "mean"],
    "optimizer.lr": [10, 1e-9],
    "optimizer.weight_decay": [0, 10],
    "optimizer.warmup": [0, 0.5],
    "optimizer.clip": [0, 1e9],
    "optimizer.ema": [0, 0.999],
    "codec.format": [fmt.name.lower() for fmt in Format if fmt is not Format.I32],
    "codec.block": [32, 64, 128],
    "codec.equalize": [True, False],
    "codec.compression": ["none"],
    "codec.bits": [[], [4], [2, 3, 4, 5, 6, 7, 8]],
    "epochs": [1, 10000],
    "early_stopping": [0, 10000],
    "batches": [None, 1, 2**40],
    "seed": [0, 2**63 - 1],
    "head": [None],
    "trace": [True, False],
    "tokens": ["all", "last"],
    "tail": [None],
}

# Where a text of ours is wrong, and may come back in the server's.
CANARY = "canary 7f3a"
_REFLECTING = (
    "task", "outputs", "model", "model.name", "model.taps", "side.kind", "side.pool", "optimizer.lr",
    "optimizer.schedule", "codec.format", "codec.bits", "head", "tokens", f"!{CANARY}", f"side.!{CANARY}",
)  # fmt: skip


def drafts() -> Cases:
    """Return the cases."""
    cases: Cases = []
    for path, values in _WRONG.items():
        for value in values:
            changed = _changed(path, value)
            cases.append(Draft("O-16", f"{path} {_named(value)}", _refused(changed)))
    for title, changes in _TOGETHER.items():
        cases.append(Draft("O-16", title, _refused(spec(**changes))))
    for path, values in _RIGHT.items():
        for value in values:
            cases.append(
                Draft("O-2 D-19", f"{path} {_named(value)} is fine", _accepted(_changed(path, value)))
            )
    small = {"width": 8, "heads": 2}
    combined: dict[str, dict[str, Any]] = {
        "regression": {"task": "regression", "outputs": 1},
        "onecycle with batches": {"optimizer": {"schedule": "onecycle"}, "batches": 4},
        "linear with batches": {"optimizer": {"schedule": "linear"}, "batches": 4},
        "a ladder of one head": {"side": {"kind": "ladder", "width": 7, "heads": 1}},
        "a bottleneck of 8": {"side": {"kind": "parallel", **small}},
        "defaults only": {"side": ..., "codec": ...},
        "unknown keys at every level": {
            "grease": [1, {"x": None}],
            "side": {"kind": "head", "grease": 1},
            "codec": {"grease": None},
        },
    }
    for title, changes in combined.items():
        ids = "V-9" if "unknown" in title else "O-2 D-19"
        cases.append(Draft(ids, f"a spec with {title}", _accepted(spec(**changes))))
    for path in ("!new", "model.!new", "side.!new", "optimizer.!new", "codec.!new"):
        cases.append(Draft("V-9", f"the critical key {path} in the spec", _refused(_changed(path, 1))))
    cases.append(Draft("O-16", "an empty spec", _refused({})))
    for path in _REFLECTING:
        cases.append(
            Draft("M-7", f"{path.replace(CANARY, 'text')} of the spec is not repeated", _silent(path))
        )
    return cases


def _changed(path: str, value: Any) -> dict[str, Any]:
    values = copy.deepcopy(spec())
    *parents, name = path.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return values


def _named(value: Any) -> str:
    if value is ...:
        return "absent"
    text = "nil" if value is None else repr(value)
    return text if len(text) <= 24 else f"{text[:20]}..."


def _refused(values: dict[str, Any]) -> Run[Lab]:
    """See the session refused, the connection alive, and the stream's number free again."""

    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(frame(FrameType.OPEN, {"spec": values}, stream=1))
        await peer.refused_on(1, E.SCHEMA_MISMATCH)
        await lab.attach(peer)

    return run


def _silent(path: str) -> Run[Lab]:
    """See the session refused without a word of the spec."""
    wrong = CANARY * 12 if path == "model.name" else CANARY

    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(frame(FrameType.OPEN, {"spec": _changed(path, wrong)}, stream=1))
        refusal = await peer.refused_on(1, E.SCHEMA_MISMATCH)
        if CANARY in refusal.text:
            raise Deviation("expected a text without anything of ours; the refusal repeats it")

    return run


def _accepted(values: dict[str, Any]) -> Run[Lab]:
    async def run(lab: Lab) -> None:
        peer = await lab.open()
        await peer.send(frame(FrameType.OPEN, {"spec": values}, stream=1))
        await peer.expect(Opened, stream=1)
        await peer.alive()

    return run
