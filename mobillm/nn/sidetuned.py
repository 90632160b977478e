"""A backbone with its trained side network: prediction and generation on the device."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..spec import SessionSpec
from .backbone import Backbone
from .cache import installed
from .heads import FrozenHead, export_lm_head
from .side import SideCache, SideNetwork

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Prediction", "SideConfig", "SideTuned", "save_side"]

WEIGHTS_FILE = "side_model.safetensors"
CONFIG_FILE = "side_config.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SideConfig:
    """What a saved side network needs beside its weights.

    Attributes:
        spec: the session it was trained in.
        max_length: most tokens of a sample, as in training.
        labels: name of each class, in order; None when they have none.

    """

    spec: SessionSpec
    max_length: int
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ConfigError("max_length", self.max_length, "at least 1")
        if self.labels is not None and len(self.labels) != self.spec.outputs:
            raise ConfigError("labels", list(self.labels), f"{self.spec.outputs} names, one per output")

    def to_json(self) -> str:
        """Return the content of ``side_config.json``."""
        labels = None if self.labels is None else list(self.labels)
        content = {
            "format": _FORMAT,
            "spec": self.spec.to_map(),
            "labels": labels,
            "max_length": self.max_length,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the content of ``side_config.json``.

        Raises:
            ConfigError: a field of the spec is missing or out of range.
            ModelError: the text is no such file, or of a format this version does not know.

        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ModelError(f"{CONFIG_FILE} is no JSON: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            seen = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ModelError(f"{CONFIG_FILE} has format {seen!r}, expected {_FORMAT}; use a newer version")
        labels, length = content.get("labels"), content.get("max_length")
        if labels is not None and not (isinstance(labels, list) and all(isinstance(x, str) for x in labels)):
            raise ConfigError("labels", labels, "a list of names, or null")
        if type(length) is not int:
            raise ConfigError("max_length", length, "an integer of at least 1")
        return cls(
            spec=SessionSpec.from_map(content.get("spec")),
            max_length=length,
            labels=None if labels is None else tuple(labels),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a side network says about one text.

    Attributes:
        label: name of the best class, or its number as text when classes have no names; None for
            regression.
        scores: probability of each class; empty for regression.
        value: the value of a regression; None for classification.

    """

    label: str | None
    scores: tuple[float, ...]
    value: float | None


def save_side(directory: str | Path, weights: bytes, config: SideConfig) -> None:
    """Write a trained side network to a directory, which is made if needed.

    Each file appears whole or not at all; the configuration comes last.

    Args:
        directory: where to write.
        weights: safetensors bytes of :meth:`SideNetwork.state_bytes`.
        config: the rest.

    Raises:
        ModelError: the directory cannot be written.

    """
    folder = Path(directory)
    for name, data in ((WEIGHTS_FILE, weights), (CONFIG_FILE, config.to_json().encode())):
        try:
            with installed(folder / name) as file:
                file.write_bytes(data)
        except OSError as error:
            raise ModelError(f"cannot write {folder / name}: {error}; choose another directory") from error


class SideTuned:
    """A frozen backbone and a side network that was trained on its taps.

    Args:
        backbone: the backbone; its taps may differ, those of the spec are used.
        network: the trained network.
        config: labels and longest sample.

    """

    def __init__(self, backbone: Backbone, network: SideNetwork, config: SideConfig) -> None:
        self.backbone = backbone.with_taps(config.spec.model.taps)
        self.network = network.eval()
        self.config = config

    @classmethod
    def from_pretrained(cls, backbone: Backbone, directory: str | Path) -> Self:
        """Load what :func:`save_side` wrote.

        Args:
            backbone: the backbone it was trained with; for causal-lm with its LM head.
            directory: the directory.

        Raises:
            ConfigError: the saved spec is out of range.
            ModelError: a file is missing or damaged, or the side network is of another backbone.

        """
        folder = Path(directory)
        try:
            config = SideConfig.from_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            weights = (folder / WEIGHTS_FILE).read_bytes()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"cannot read the side network in {str(folder)!r}: {error}; "
                f"give a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
            ) from error
        _check_fit(backbone, config.spec)
        network = SideNetwork.from_spec(config.spec, _head_of(backbone, config.spec))
        network.load_bytes(weights)
        return cls(backbone, network.to(backbone.device), config)

    def predict(self, texts: Sequence[str | tuple[str, str]], batch_size: int = 32) -> list[Prediction]:
        """Classify texts or estimate their values.

        Args:
            texts: texts, or sentence pairs.
            batch_size: texts of one forward.

        Returns:
            one prediction per text, in order.

        Raises:
            ConfigError: ``batch_size`` is below 1.
            ModelError: the side network was trained for causal-lm.

        """
        if self.config.spec.task == "causal-lm":
            raise ModelError("a side network for 'causal-lm' cannot predict labels; use generate")
        if batch_size < 1:
            raise ConfigError("batch_size", batch_size, "at least 1")
        samples = [self._encode(text) for text in texts]
        order = sorted(range(len(samples)), key=lambda index: len(samples[index]))
        found: dict[int, Prediction] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            taps = self._taps([samples[index] for index in chosen])
            lengths = torch.tensor([len(samples[index]) for index in chosen], device=self.backbone.device)
            with torch.no_grad():
                outputs = self.network(taps, lengths)
            found |= zip(chosen, map(self._prediction, outputs), strict=True)
        return [found[index] for index in range(len(samples))]

    def generate(self, prompt: str, max_new_tokens: int, temperature: float = 0.0, seed: int = 0) -> str:
        """Continue a prompt.

        Args:
            prompt: the text to continue.
            max_new_tokens: most tokens to add.
            temperature: 0 takes the likeliest token; above 0 samples.
            seed: of the sampling.

        Returns:
            the continuation without the prompt; it ends at the model's end token.

        Raises:
            ConfigError: ``max_new_tokens`` or ``temperature`` is out of range.
            ModelError: the side network was not trained for causal-lm, or the prompt is too long.

        """
        (tokens,) = self.backbone.tokenize([prompt], self.backbone.positions or 1 << 30)
        added = self.generate_tokens(tokens, max_new_tokens, temperature, seed)
        return cast(str, self.backbone.tokenizer.decode(added, skip_special_tokens=True))

    def generate_tokens(
        self, tokens: Sequence[int], max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> list[int]:
        """Continue token ids; see :meth:`generate`. The end token is not part of the result."""
        if max_new_tokens < 1:
            raise ConfigError("max_new_tokens", max_new_tokens, "at least 1")
        if not 0.0 <= temperature <= 100.0:
            raise ConfigError("temperature", temperature, "0 to 100")
        generator = torch.Generator().manual_seed(seed)
        ends, limit = self._ends(), self.backbone.positions
        added: list[int] = []
        new = list(tokens)
        length = len(new)
        backbone_cache: Any = None
        side_cache: SideCache | None = None
        while len(added) < max_new_tokens and (limit is None or length <= limit):
            taps, backbone_cache = self._new_taps(new, backbone_cache)
            logits, side_cache = self.network.step(taps, side_cache)
            token = _choose(logits[-1].float().cpu(), temperature, generator)
            if token in ends:
                break
            added.append(token)
            new = [token]
            length += 1
        return added

    def _encode(self, text: str | tuple[str, str]) -> list[int]:
        length = self.config.max_length
        if isinstance(text, str):
            return self.backbone.tokenize([text], length)[0]
        return self.backbone.tokenize_pairs([text], length)[0]

    def _taps(self, samples: Sequence[Sequence[int]]) -> list[Tensor]:
        taps: list[Tensor] = []
        self.backbone.forward(samples, lambda _, hidden: taps.append(hidden.clone()))
        return taps

    def _new_taps(self, tokens: Sequence[int], cache: Any) -> tuple[list[Tensor], Any]:
        taps: list[Tensor] = []
        cache = self.backbone.extend(tokens, lambda _, hidden: taps.append(hidden.clone()), cache)
        return taps, cache

    def _prediction(self, output: Tensor) -> Prediction:
        if self.config.spec.task == "regression":
            return Prediction(label=None, scores=(), value=float(output))
        scores = torch.softmax(output.float(), -1)
        best = int(scores.argmax())
        label = str(best) if self.config.labels is None else self.config.labels[best]
        return Prediction(label=label, scores=tuple(map(float, scores)), value=None)

    def _ends(self) -> set[int]:
        """Return the tokens that end a text, as the model's generation settings say."""
        model: Any = self.backbone.model
        settings = getattr(model, "generation_config", None) or model.config
        ends = getattr(settings, "eos_token_id", None)
        return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))


def _check_fit(backbone: Backbone, spec: SessionSpec) -> None:
    for what, seen, expected in (
        ("hidden size", backbone.hidden_size, spec.model.hidden_size),
        ("layers", backbone.layers, spec.model.layers),
    ):
        if seen != expected:
            raise ModelError(
                f"the backbone {backbone.name} has {what} {seen}, but the side network was trained with "
                f"{spec.model.name}, which has {expected}; load that backbone"
            )


def _head_of(backbone: Backbone, spec: SessionSpec) -> FrozenHead | None:
    if spec.task != "causal-lm":
        return None
    data = export_lm_head(backbone.model)
    digest = hashlib.sha256(data).hexdigest()
    if digest != spec.head:
        raise ModelError(
            f"the LM head of {backbone.name} has SHA-256 {digest}, but the side network was trained with "
            f"{spec.head}; load {spec.model.name} in the type it was trained in"
        )
    return FrozenHead.from_bytes(data)
