"""The command line's side of the operator's socket."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from mobillm.cli.control import request
from mobillm.errors import ConfigError, MobiLLMError


def test_no_server(tmp_path: Path) -> None:
    """A directory without a server, or that is not there, is refused with what to do."""
    for folder in (tmp_path, tmp_path / "missing", tmp_path / ("d" * 120)):
        with pytest.raises(ConfigError, match="was started with, or 'mobillm serve'"):
            request(folder, "list")


@pytest.mark.parametrize("answer", [b"", b"nonsense\n", b'{"size": 10}\nfour', b"null\n"])
def test_a_server_that_goes_away(tmp_path: Path, answer: bytes) -> None:
    """A broken answer is an error, never half a result."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "control.sock"))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(1000)
                peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(MobiLLMError, match="look at its log"):
            request(tmp_path, "export", session="1")
        thread.join()
