"""Tests of the shared arguments."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mobillm.cli import main
from mobillm.cli.arguments import address, amount, at_least, between, file_path, limit
from mobillm.transport import Address
from tests.cli.commands import fails


def test_at_least() -> None:
    """Integers below the bound, and what is no integer, are refused with the bound."""
    assert at_least(2)("2") == 2
    for text in ("1", "2.5", "x", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="no integer of at least 2"):
            at_least(2)(text)


def test_amount() -> None:
    """Parts of one are allowed; less than nothing, infinity and words are not."""
    assert [amount(text) for text in ("0", "0.25", "1024")] == [0.0, 0.25, 1024.0]
    for text in ("-1", "1025", "inf", "nan", "much", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is no number from 0 to 1024"):
            amount(text)


def test_between() -> None:
    """Integers outside the range, and what is no integer, are refused with the range."""
    assert [between(0, 9)(text) for text in ("0", "9")] == [0, 9]
    for text in ("-1", "10", "2.5", "", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="no integer from 0 to 9") as caught:
            between(0, 9)(text)
        assert len(str(caught.value)) < 100
    with pytest.raises(argparse.ArgumentTypeError, match="is above 1000000000"):
        at_least(1)(str(10**30))


def test_limit() -> None:
    """A name of the limits with an integer; anything else is refused with the names there are."""
    assert limit("failed_logins=1000") == ("failed_logins", 1000)
    for text in ("failed_logins", "failed_logins=", "failed_logins=x", "=1", "logins=1", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not NAME=INTEGER; names: frame, chunk, "):
            limit(text)


def test_address() -> None:
    """Addresses with and without a scheme are read; others are refused with the forms."""
    assert address("h:1") == Address("h", 1)
    assert address("mobillms://h") == Address("h", 7707, tls=True)
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected HOST:PORT, mobillm://"):
        address("http://h:1")
    with pytest.raises(argparse.ArgumentTypeError, match="'7707' is no address; expected HOST:PORT"):
        address("7707")


def test_file_path() -> None:
    """The empty path, which stands for the working directory, is refused; its own name is not."""
    assert [file_path(text) for text in ("a/b", ".", " ")] == [Path("a/b"), Path(), Path(" ")]
    with pytest.raises(argparse.ArgumentTypeError, match="'' is no path"):
        file_path("")


@pytest.mark.parametrize(
    "command",
    [
        ["certs", "--host", "h", "--out="],
        ["sessions", "export", "1f", "--out="],
        ["sessions", "list", "--data-dir="],
        ["finetune", "--model", "m", "--data", "d", "--out="],
        ["finetune", "--model", "m", "--data", "d", "--out", "o", "--trace="],
        ["pull", "1f", "--out="],
        ["demo", "--out="],
        ["conformance", "client", "--junit="],
        ["serve", "--data-dir="],
        ["serve", "--tensorboard="],
        ["trace", "plot", "t", "--out="],
        ["predict", "--model", "m", "--side="],
        ["evaluate", "--model", "m", "--side=", "--data", "d"],
    ],
)
def test_no_command_takes_an_empty_path(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is read from the working directory or written to it because a variable was not set."""
    monkeypatch.chdir(tmp_path)
    assert "'' is no path; is a variable of the shell not set?" in fails(capsys, *command, status=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--limits", "frame"], "argument --limits: 'frame' is not NAME=INTEGER"),
        (["serve", "--listen", "nowhere:x"], "argument --listen: 'nowhere:x' is no address"),
        (["evaluate", "--limit", "0"], "argument --limit: '0' is no integer of at least 1"),
        (["predict", "--dtype", "int7"], "argument --dtype: invalid choice: 'int7'"),
        (["predict", "--mod", "m", "--side", "s"], "required: --model"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Values out of range are refused by the option's name, and options cannot be abbreviated."""
    text = fails(capsys, *arguments, status=2)
    assert message in text
    assert f"see 'mobillm {arguments[0]} --help'" in text


def test_texts_are_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    """The description of a command fits a terminal."""
    main(["serve", "--help"])
    description = capsys.readouterr().out.partition("\n\n")[2].partition("\n\noptions")[0]
    assert max(map(len, description.splitlines())) <= 90
