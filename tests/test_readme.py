"""README's commands and programs, run as a newcomer would."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from mobillm.nn.cache import cache_directory
from mobillm.nn.models import resolve_model

README = pathlib.Path(__file__).parent.parent / "README.md"
PORT = "7707"


def blocks(language: str) -> list[str]:
    """Return README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Return the directory in which everything is run, with data files."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [("what a lovely day", "good"), ("this is a terrible mess", "bad")] * 20
    table = "sentence\tlabel\n" + "".join(f"{text} {n}\t{label}\n" for n, (text, label) in enumerate(rows))
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text(table)
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Return an environment in which models come from this repository's cache."""
    resolve_model("smollm2")
    return {**os.environ, "MOBILLM_CACHE": str(cache_directory().resolve()), "OMP_NUM_THREADS": "1"}


def commands() -> list[list[str]]:
    """Return the mobillm commands of README's shell blocks, split into words."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    lines = re.findall(r"^\$ (mobillm .*?)(?:\s+#.*)?$", text, re.MULTILINE)
    return [re.findall(r'"[^"]*"|\S+', line) for line in lines]


@pytest.fixture(scope="module")
def port(place: pathlib.Path, environment: dict[str, str]) -> Iterator[str]:
    """Run README's serve command on a free port; give the port."""
    serve = next(words for words in commands() if words[1] == "serve")
    arguments = [word.replace(PORT, "0") for word in serve[1:]]
    process = subprocess.Popen(
        [sys.executable, "-m", "mobillm", *arguments, "--data-dir", "server"],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        yield line.strip().rpartition(":")[2]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        process.stdout.close()
    assert line.startswith("listening on mobillm://127.0.0.1:")


def run(
    command: list[str], place: pathlib.Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_shells(port: str, place: pathlib.Path, environment: dict[str, str]) -> None:
    """The commands of the second shell fine-tune, evaluate and predict."""
    outputs = {}
    for words in commands():
        if words[1] in ("serve", "demo"):
            continue
        arguments = [word.replace(PORT, port).strip('"') for word in words[1:]]
        outputs[words[1]] = run([sys.executable, "-m", "mobillm", *arguments], place, environment).stdout
    assert set(outputs) == {"finetune", "evaluate", "predict"}
    assert json.loads(outputs["evaluate"])["accuracy"] > 0.9  # the samples it was trained on
    assert "good" in outputs["predict"] or "bad" in outputs["predict"]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_programs(number: int, port: str, place: pathlib.Path, environment: dict[str, str]) -> None:
    """Each Python program runs as it stands, with a free port for the fixed one."""
    folder = place / f"program{number}"
    folder.mkdir()
    (folder / "token").write_bytes((place / "token").read_bytes())
    program = blocks("python")[number].replace(PORT, port)
    done = run([sys.executable, "-c", program], folder, environment)
    assert done.stdout.strip()


def test_first_screen() -> None:
    """The two commands that do all set-up stand on the first screen, and the Makefile has them."""
    lines = README.read_text().splitlines()[:40]
    makefile = (README.parent / "Makefile").read_text()
    for target in ("demo", "test"):
        assert any(line.startswith(f"$ make {target} ") for line in lines)
        assert f"\n{target}:" in makefile
