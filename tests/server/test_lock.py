"""A data directory is used by one server at a time."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from mobillm.errors import ConfigError, StorageError
from mobillm.options import Limits
from mobillm.server.gateway import Gateway
from mobillm.server.lock import DirectoryLock
from tests.conftest import Run
from tests.sessions import serving


def test_one_owner_at_a_time(tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """The second one is refused with the first one's process; after release the directory is free."""
    lock = DirectoryLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"data_dir is .* expected .* \(process {os.getpid()}\) first"):
        DirectoryLock(tmp_path)
    lock.release()
    lock.release()
    DirectoryLock(tmp_path).release()


def test_a_killed_owner_leaves_it_free(tmp_path: pathlib.Path) -> None:
    """The system gives the directory back, however the process has ended."""
    code = (
        "import os, pathlib, sys; from mobillm.server.lock import DirectoryLock; "
        "lock = DirectoryLock(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -9
    assert (tmp_path / "lock").read_text().isdigit()
    DirectoryLock(tmp_path).release()


def test_a_directory_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    """Where no file can be made, there is no lock."""
    with pytest.raises(StorageError, match="lock cannot be opened"):
        DirectoryLock(tmp_path / "none")


def test_two_servers(run_once: Run, tmp_path: pathlib.Path, no_fd_leak: None) -> None:
    """The second server does not start and touches nothing; the first one goes on."""

    async def main() -> None:
        part = tmp_path / "blobs" / "upload.part"  # an upload of the first server that is under way
        async with serving(tmp_path):
            part.write_bytes(b"half")
            with pytest.raises(ConfigError, match="stop the server that uses this one"):
                Gateway(tmp_path, limits=Limits())
            assert part.exists()
        async with serving(tmp_path):
            assert not part.exists()

    run_once(main())
