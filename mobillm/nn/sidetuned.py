"""A backbone with its trained side network: prediction and generation on the device."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..spec import SessionSpec
from .backbone import Backbone
from .bits import name_of_bits
from .heads import FrozenHead, export_lm_head
from .inputs import check_pairs, encode
from .saved import CONFIG_FILE, WEIGHTS_FILE, SideConfig, read_config, read_weights, save_side
from .side import SideCache, SideNetwork
from .tail import check_base, upper_weights
from .tokens import MAX_LENGTH

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "Prediction", "SideConfig", "SideTuned", "save_side"]


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
            ModelError: a file is missing or damaged, the two do not belong together, or the side network
                is of another backbone, or of one that was quantized otherwise.

        """
        config = read_config(directory)
        _check_fit(backbone, config)
        tail = None
        if config.spec.tail is not None:
            check_base(backbone, config.spec)
            tail = upper_weights(backbone, config.spec.model.taps[0])
        weights = read_weights(directory, config)
        network = SideNetwork.from_spec(config.spec, _head_of(backbone, config.spec), tail)
        try:
            network.load_bytes(weights)
        except ModelError as error:
            path = Path(directory) / config.weights_file
            raise ModelError(f"{path}: {error}; copy the whole directory again, or train again") from error
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
            ModelError: the side network was trained for causal-lm, or on pairs and a text is none (or the
                other way round), a text is empty or not valid Unicode, or an output is not finite.

        """
        if self.config.spec.task == "causal-lm":
            raise ModelError("a side network for 'causal-lm' cannot predict labels; use generate")
        if batch_size < 1:
            raise ConfigError("batch_size", batch_size, "at least 1")
        for number, text in enumerate(texts, 1):
            if not all(part.strip() for part in ((text,) if isinstance(text, str) else text)):
                raise ModelError(f"text {number} is empty; leave it out, as empty texts are in training")
        check_pairs(self.config, texts)
        settings = self.config
        samples = encode(
            self.backbone.tokenizer, texts, max_length=settings.max_length, ending=settings.ending
        )
        order = sorted(range(len(samples)), key=lambda index: len(samples[index]))
        found: dict[int, Prediction] = {}
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            taps = self._taps([samples[index] for index in chosen])
            lengths = torch.tensor([len(samples[index]) for index in chosen], device=self.backbone.device)
            with torch.no_grad():
                outputs = self.network(taps, lengths)
            self.check_finite(outputs)
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
            ConfigError: ``max_new_tokens``, ``temperature`` or ``seed`` is out of range.
            ModelError: the side network was not trained for causal-lm, the prompt is empty or too long,
                or an output is not finite.

        """
        if not prompt.strip():
            raise ModelError("the prompt is empty; give at least one word")
        longest = min(self.backbone.positions or MAX_LENGTH, MAX_LENGTH - 1)
        (tokens,) = self.backbone.tokenize([prompt], longest + 1)
        if len(tokens) > longest:
            raise ModelError(
                f"the prompt has more than {longest} tokens, the most that {self.backbone.name} takes; "
                "shorten it"
            )
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
        if not 0 <= seed < 1 << 63:
            raise ConfigError("seed", seed, "0 to 2**63 - 1")
        generator = torch.Generator().manual_seed(seed)
        ends, limit = self._ends(), self.backbone.positions
        added: list[int] = []
        new = list(tokens)
        length = len(new)
        backbone_cache: Any = None
        side_cache: SideCache | None = None
        while len(added) < max_new_tokens and (limit is None or length <= limit):
            taps, backbone_cache = self._new_taps(new, backbone_cache)
            logits, side_cache = self.network.step(taps, side_cache, last=True)
            self.check_finite(logits[-1])
            token = _choose(logits[-1].float().cpu(), temperature, generator)
            if token in ends:
                break
            added.append(token)
            new = [token]
            length += 1
        return added

    def check_finite(self, outputs: Tensor) -> None:
        """Refuse outputs that mean nothing.

        Args:
            outputs: what the side network gave, of any shape.

        Raises:
            ModelError: a value is not finite; the text says where it comes from.

        """
        if bool(torch.isfinite(outputs).all()):
            return
        if all(bool(torch.isfinite(parameter).all()) for parameter in self.network.parameters()):
            raise ModelError(
                "an output of the side network is not finite; "
                "load the backbone in bfloat16 or float32, or train with a smaller learning rate"
            )
        raise ModelError(
            "the side network's weights are not finite; it was trained with too large a learning rate: "
            "train again with a smaller one"
        )

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


def _check_fit(backbone: Backbone, config: SideConfig) -> None:
    spec = config.spec
    for what, seen, expected in (
        ("hidden size", backbone.hidden_size, spec.model.hidden_size),
        ("layers", backbone.layers, spec.model.layers),
    ):
        if seen != expected:
            raise ModelError(
                f"the backbone {backbone.name} has {what} {seen}, but the side network was trained with "
                f"{spec.model.name}, which has {expected}; load that backbone"
            )
    if spec.model.taps[-1] > backbone.loaded:
        raise ModelError(
            f"of the backbone {backbone.name} only {backbone.loaded} layers are loaded, but the side network "
            f"needs {spec.model.taps[-1]}; load it with taps={list(spec.model.taps)}"
        )
    if backbone.bits != config.bits:
        held, trained = (f"{bits} bits" if bits else "all bits" for bits in (backbone.bits, config.bits))
        raise ModelError(
            f"the backbone holds its weights in {held}, but the side network was trained on taps of one with "
            f"{trained}; load it with --dtype {name_of_bits(config.bits)}"
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
