"""Tests of notices and results."""

from __future__ import annotations

import datetime
import json
import logging

import pytest

from mobillm.cli.console import configure_logging, early, print_json, say


def test_json_is_one_valid_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that JSON lacks become null, text stays readable."""
    print_json({"a": float("nan"), "b": [1, float("inf")], "c": {"d": "é\n"}, "e": 0.5})
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {"a": None, "b": [1, None], "c": {"d": "é\n"}, "e": 0.5}
    assert "é" in out


@pytest.mark.parametrize(
    ("debug", "verbose", "count"), [(False, False, 1), (False, True, 2), (True, False, 3)]
)
def test_logging(debug: bool, verbose: bool, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The log goes to standard error, as much of it as was asked for, once however often it is set up."""
    for _ in range(2):
        configure_logging(debug=debug, verbose=verbose)
    logger = logging.getLogger("mobillm.test")
    logger.warning("w")
    logger.info("i")
    logger.debug("d")
    say("notice")
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", count + 1)


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is one object; a session that it names is a field; a traceback stays on its line."""
    configure_logging(debug=False, verbose=True, as_json=True)
    logger = logging.getLogger("mobillm.test")
    logger.info('= session %s opened,\nby "é"', "0f" * 16)
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["session"] == "0f" * 16
    assert first["message"].endswith('opened,\nby "é"')
    assert (first["level"], first["logger"]) == ("info", "mobillm.test")
    assert datetime.datetime.fromisoformat(first["time"]).utcoffset() == datetime.timedelta(0)
    assert "session" not in second
    assert "ValueError: why" in second["traceback"]


def test_early() -> None:
    """Only a run that stopped early has anything to add."""
    assert early(None) == ""
    assert early((3, 1)) == " (stopped early after epoch 3, with the weights of epoch 1)"
