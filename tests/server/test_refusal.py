"""Refusals say when to come back."""

from __future__ import annotations

import pytest

from mobillm.errors import ConfigError, DamageError, ErrorCode, ModelError, StorageError
from mobillm.options import Timeouts
from mobillm.server.refusal import plain, plain_spec, refusal, storage
from mobillm.spec import SessionSpec
from tests.helpers import make_spec

PASSING = ("QUOTA", "CALM", "SERVER_BUSY", "DRAINING", "STORAGE_FULL", "INTERNAL")


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
def test_retry_after(code: ErrorCode) -> None:
    """[E-10] [E-4] What may pass by itself names a time, all other codes none."""
    again = refusal(1, code, "no").retry_after
    assert (again is not None and again > 0) == (code.name in PASSING)
    patience = Timeouts().reconnect
    assert patience is not None
    assert again is None or again < patience  # or no device would come again


def test_the_rest() -> None:
    """Stream and batch are those given; a long text is cut; a given time counts."""
    error = refusal(3, ErrorCode.QUOTA, "x" * 600, seq=7, retry_after=2.5)
    assert (error.stream, error.seq, len(error.text), error.retry_after) == (3, 7, 512, 2.5)


def test_storage() -> None:
    """[E-4] A full disk is tried again, damage is not; no path is told."""
    assert storage(StorageError("/a: full"), bytes(16), "no") == (ErrorCode.STORAGE_FULL, "no", True)
    code, text, again = storage(DamageError("/a is damaged"), bytes(16), "no")
    assert (code, again, "/a" in text) == (ErrorCode.INTERNAL, False, False)
    assert f"session {bytes(16).hex()}" in text
    assert refusal(1, code, text, again=again).retry_after is None


def test_plain_texts() -> None:
    """Texts for a peer have no words of Python, and end before they are long."""
    assert plain(ModelError("the head is another one's")) == "the head is another one's"
    assert plain(ConfigError("tap 0", "missing", "2 taps")) == "tap 0 is missing; expected 2 taps"
    assert plain(ConfigError("x", None, "a map")) == "x is absent; expected a map"
    assert plain(ConfigError("x", False, "true")) == "x is false; expected true"
    assert (
        plain(ConfigError("x", list(range(100)), "y")) == f"x is {str(list(range(100)))[:61]}...; expected y"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"task": "peer text"},
            "task is something else; expected one of causal-lm, classification, regression",
        ),
        ({"task": ...}, "spec.task is absent; expected a value; the field is required"),
        ({"epochs": "peer text"}, "spec.epochs is something else; expected an integer"),
        ({"epochs": 0}, "epochs is 0; expected 1 to 10000"),
        ({"head": "peer text"}, "head is something else; expected nothing for classification"),
        (
            {"!peer text": 1},
            "spec is something else; expected fields this version knows where they begin with !",
        ),
    ],
)
def test_a_spec_is_not_repeated(changes: dict[str, object], text: str) -> None:
    """[M-7] Numbers come back, texts do not."""
    values = {key: value for key, value in (make_spec().to_map() | changes).items() if value is not ...}
    with pytest.raises(ConfigError) as caught:
        SessionSpec.from_map(values)
    assert plain_spec(caught.value) == text
