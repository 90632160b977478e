"""Where fetched and converted models are kept, and how a finished one appears there at once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelError

__all__ = ["cache_directory", "file_digest", "installed"]


def cache_directory() -> Path:
    """Return ``MOBILLM_CACHE``, else an existing ``.cache/mobillm`` here, else the home directory's."""
    chosen = os.environ.get("MOBILLM_CACHE")
    if chosen:
        return Path(chosen)
    here = Path(".cache") / "mobillm"
    return here if here.is_dir() else Path.home() / ".cache" / "mobillm"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def installed(target: Path) -> Iterator[Path]:
    """Give a temporary path whose content becomes ``target`` when the block ends without an error.

    The rename is atomic, so ``target`` is either whole or absent, also after a crash or with several
    processes at work; who comes second leaves the first one's result in place.

    Args:
        target: the file or directory to make.

    Raises:
        ModelError: the directory cannot be written.

    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    except OSError as error:
        raise ModelError(
            f"cannot write to the directory {target.parent}: {error}; make it writable, or choose "
            "another one (for fetched models: MOBILLM_CACHE)"
        ) from error
    try:
        yield folder / target.name
        try:
            os.replace(folder / target.name, target)
        except OSError:
            # A directory that another process finished first cannot be replaced, nor need it be.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
