"""A trained side network on the disk: its weights, and what is needed to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Self

from ..errors import ConfigError, ModelError
from ..spec import SessionSpec
from .adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_json
from .bits import BITS
from .cache import installed
from .tokens import MAX_LENGTH, lone_surrogate

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "SideConfig", "read_config", "read_weights", "save_side"]

WEIGHTS_FILE = "side_model.safetensors"
CONFIG_FILE = "side_config.json"
_FORMAT = 1
_REMEDY = "copy the whole directory again, or train again"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SideConfig:
    """What a saved side network needs beside its weights.

    Attributes:
        spec: the session it was trained in.
        max_length: most tokens of a sample, as in training.
        labels: name of each class, in order; None when they have none.
        ending: what texts without a final mark were given, see :mod:`mobillm.nn.ending`; empty for nothing.
        weights: SHA-256 of the weights' file, 64 hex digits; None when it is not known. It is
            :func:`save_side` that fills it in.
        bits: of the linear layers of the backbone it was trained with; None if they were not quantized.
        pairs: whether a sample is a pair of texts; the completions of ``causal-lm`` are none.

    """

    spec: SessionSpec
    max_length: int
    labels: tuple[str, ...] | None = None
    ending: str = ""
    weights: str | None = None
    bits: int | None = None
    pairs: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_length <= MAX_LENGTH:
            raise ConfigError("max_length", self.max_length, f"1 to {MAX_LENGTH}")
        if self.labels is None:
            return
        if len(self.labels) != self.spec.outputs:
            raise ConfigError("labels", list(self.labels), f"{self.spec.outputs} names, one per output")
        for label in self.labels:
            if lone_surrogate(label) is not None:
                raise ConfigError("labels", label, "names that are valid Unicode")

    @property
    def weights_file(self) -> str:
        """Name of the file with the weights; that of a ``tail`` is named as PEFT names it."""
        return WEIGHTS_FILE if self.spec.tail is None else ADAPTER_WEIGHTS

    def to_json(self) -> str:
        """Return the content of ``side_config.json``."""
        labels = None if self.labels is None else list(self.labels)
        content = {
            "format": _FORMAT,
            "spec": self.spec.to_map(),
            "labels": labels,
            "max_length": self.max_length,
            "ending": self.ending,
            "weights": self.weights,
            "bits": self.bits,
            "pairs": self.pairs,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = CONFIG_FILE) -> Self:
        """Read the content of ``side_config.json``.

        Args:
            text: the content.
            source: where it comes from, for errors.

        Raises:
            ModelError: the text is no such file, or of a format this version does not know, or a field
                is missing or out of range.

        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{source} is damaged: no JSON ({error}); {_REMEDY}") from error
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise ModelError(f"{source} is damaged: a JSON {kind}, not an object; {_REMEDY}")
        version = content.get("format")
        if type(version) is int and version > _FORMAT:
            raise ModelError(
                f"{source} has format {version}, this version of mobillm knows {_FORMAT}; use a newer one"
            )
        try:
            return cls._from_map(content)
        except ConfigError as error:
            raise ModelError(f"{source} is damaged: {error}; {_REMEDY}") from error

    @classmethod
    def _from_map(cls, content: dict[str, Any]) -> Self:
        labels, weights = content.get("labels"), content.get("weights")
        for name, kind, expected in (
            ("format", int, str(_FORMAT)),
            ("max_length", int, f"1 to {MAX_LENGTH}"),
            ("ending", str, "a text, as it was in training"),
            ("pairs", bool, "whether samples are pairs of texts"),
        ):
            if type(content.get(name)) is not kind:
                raise ConfigError(name, _short(content.get(name)), expected)
        if content["format"] != _FORMAT:
            raise ConfigError("format", content["format"], str(_FORMAT))
        if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
            raise ConfigError("labels", _short(labels), "a list of names, or null")
        if weights is not None and not isinstance(weights, str):
            raise ConfigError("weights", _short(weights), "the SHA-256 of the weights' file, or null")
        bits = content.get("bits")
        if bits is not None and (type(bits) is not int or bits not in BITS.values()):
            raise ConfigError("bits", _short(bits), f"{' or '.join(map(str, BITS.values()))}, or null")
        return cls(
            spec=SessionSpec.from_map(content.get("spec")),
            max_length=content["max_length"],
            ending=content["ending"],
            labels=None if labels is None else tuple(labels),
            weights=weights,
            bits=bits,
            pairs=content["pairs"],
        )


def _short(value: object) -> str | int | None:
    if value is None or type(value) is int:
        return value
    return f"a {type(value).__name__}"


def save_side(directory: str | Path, weights: bytes, config: SideConfig) -> None:
    """Write a trained side network to a directory, which is made if needed.

    Each file appears whole or not at all; the configuration comes last and holds the digest of the
    weights, so that files of two runs are not taken for one side network. A ``tail`` is saved as a PEFT
    adapter.

    Args:
        directory: where to write.
        weights: safetensors bytes of :meth:`SideNetwork.state_bytes`.
        config: the rest.

    Raises:
        ModelError: the directory cannot be written.

    """
    folder = Path(directory)
    config = dataclasses.replace(config, weights=hashlib.sha256(weights).hexdigest())
    files = [(config.weights_file, weights), (CONFIG_FILE, config.to_json().encode())]
    if config.spec.tail is not None:
        files.insert(0, (ADAPTER_CONFIG, adapter_json(config.spec).encode()))
    for name, data in files:
        try:
            with installed(folder / name) as file:
                file.write_bytes(data)
        except OSError as error:
            raise ModelError(f"cannot write {folder / name}: {error}; choose another directory") from error


def read_config(directory: str | Path) -> SideConfig:
    """Read what a side network was trained for, without its weights.

    Raises:
        ModelError: the directory holds no side network, or its configuration is damaged.

    """
    path = Path(directory) / CONFIG_FILE
    try:
        text = _read(path).decode()
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is damaged: not UTF-8 ({error.reason}); {_REMEDY}") from error
    return SideConfig.from_json(text, str(path))


def read_weights(directory: str | Path, config: SideConfig) -> bytes:
    """Read the weights that belong to a configuration.

    Raises:
        ModelError: there are none, or they are damaged or those of another configuration.

    """
    path = Path(directory) / config.weights_file
    data = _read(path)
    seen = hashlib.sha256(data).hexdigest()
    if config.weights is not None and config.weights != seen:
        raise ModelError(
            f"{path} and {path.with_name(CONFIG_FILE)} do not belong together, or one of them is damaged: "
            f"the SHA-256 of the weights is {seen}, expected {config.weights}; {_REMEDY}"
        )
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the side network in {str(path.parent)!r}: {error}; "
            f"give a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
