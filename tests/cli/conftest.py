"""A tiny model on disk, data for it, a running server, and the state that commands change."""

from __future__ import annotations

import logging
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm.nn.backbone import Backbone
from mobillm.nn.heads import FrozenHead
from mobillm.nn.side import SideNetwork
from mobillm.nn.sidetuned import SideConfig, save_side
from mobillm.spec import SessionSpec
from tests.cli.commands import RunningServer, start
from tests.nn.tiny import language_session, session, tiny_model, tiny_tokenizer

SECRET = "open-sesame-open-sesame"


@pytest.fixture(autouse=True)
def _restored_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One torch thread, no token of the user's, and the package's logger as it was."""
    monkeypatch.delenv("MOBILLM_TOKEN", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    logger = logging.getLogger("mobillm")
    handlers, level, threads = logger.handlers[:], logger.level, torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of a tiny decoder with 3 layers and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    decoder: Any = tiny_model("llama")
    decoder.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def _save_side(
    folder: Path, spec: SessionSpec, head: FrozenHead | None, labels: tuple[str, ...] | None
) -> str:
    network = SideNetwork.from_spec(spec, head)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    save_side(folder, network.state_bytes(), SideConfig(spec=spec, max_length=16, labels=labels))
    return str(folder)


@pytest.fixture(scope="session")
def side(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a side network of random weights for the classes ``no`` and ``yes``."""
    return _save_side(tmp_path_factory.mktemp("side"), session(), None, ("no", "yes"))


@pytest.fixture(scope="session")
def regression_side(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a side network of random weights for regression."""
    return _save_side(tmp_path_factory.mktemp("regression"), session("regression", 1), None, None)


@pytest.fixture(scope="session")
def language_side(tmp_path_factory: pytest.TempPathFactory, model: str) -> str:
    """Return a side network of random weights for causal-lm."""
    backbone = Backbone.from_pretrained(model, dtype="bfloat16", lm_head=True)
    spec, head = language_session(backbone.model)
    return _save_side(tmp_path_factory.mktemp("language"), spec, head, None)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a TSV file of 24 texts in two classes that differ in their last word."""
    path = tmp_path_factory.mktemp("data") / "train.tsv"
    generator = random.Random(0)
    lines = ["text\tlabel"]
    for number in range(24):
        words = [f"w{generator.randrange(5, 20)}" for _ in range(generator.randrange(2, 6))]
        lines.append(" ".join([*words, "w30" if number % 2 else "w20"]) + f"\t{('no', 'yes')[number % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run a server as a process of its own; at the end SIGTERM must stop it in order."""
    folder = tmp_path_factory.mktemp("server")
    token_file = folder / "tokens"
    token_file.write_text(f"acme:{SECRET}\n")
    token_file.chmod(0o600)
    command = ["serve", "--listen", "127.0.0.1:0", "--data-dir", str(folder / "data"), "--threads", "1"]
    with start(*command, "--token-file", str(token_file)) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on mobillm://127.0.0.1:"), process.communicate()[1]
            yield RunningServer(line.split()[-1], token_file)
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, ""), err
