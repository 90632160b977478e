"""Batches that go through a model's layers together: all through one layer, then all through the next.

Without a backward pass nothing forces a batch through the whole model before the next one begins. So a
large batch can be run in small parts that still give a layer's hidden states at once, and weights that are
not in memory need to be read only once for many batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Parts

__all__ = ["Layerwise", "NotLayerwiseError", "Run"]


class NotLayerwiseError(Exception):
    """The model does something between its layers, so they cannot be run by themselves."""


class _BegunError(Exception):
    """Raised in place of the last layer that is run: nothing above it is needed."""


@dataclasses.dataclass(slots=True)
class Run:
    """A batch on its way through the layers.

    Attributes:
        hidden: ``[B, T, d]`` output of the layer that was run last; at first that of the embedding.
        calls: what each layer is given beside the hidden states.

    """

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


class _StandIn(nn.Module):
    """In a layer's place while nothing is to be computed; it has the layer's attributes."""

    def __init__(self, layer: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.__dict__["_layer"], self.__dict__["_run"] = layer, run

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Do what stands in for the layer's work."""
        return self._run(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


class Layerwise:
    """The layers of a model, one at a time.

    Args:
        parts: the model.

    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tuples: bool | None = None  # whether layers return tuples; None before that is known

    def begin(self, inputs: dict[str, Any], depth: int) -> Run:
        """Run what comes before the layers, and note what each layer is given beside the hidden states.

        Args:
            inputs: the model's arguments.
            depth: how many layers are going to be run.

        Raises:
            NotLayerwiseError: a layer would not be given the very output of the layer below.

        """
        if self._tuples is not None:
            return self._begin(inputs, depth, self._tuples)
        try:
            run = self._begin(inputs, depth, False)
            self._tuples = False if depth > 1 else None
        except NotLayerwiseError:
            run = self._begin(inputs, depth, True)
            self._tuples = True
        return run

    def advance(self, run: Run, layer: int) -> None:
        """Run one layer, numbered from 0."""
        arguments, named = run.calls[layer]
        run.calls[layer] = ((), {})
        output = self._parts.layers[layer](run.hidden, *arguments, **named)
        run.hidden = output[0] if isinstance(output, tuple) else output

    def _begin(self, inputs: dict[str, Any], depth: int, tuples: bool) -> Run:
        run = Run(torch.empty(0), [])

        def pass_on(*arguments: Any, **named: Any) -> Any:
            hidden = arguments[0] if arguments else named.pop("hidden_states")
            if run.calls and hidden is not run.hidden:
                raise NotLayerwiseError
            run.hidden = hidden
            run.calls.append((arguments[1:], named))
            if len(run.calls) >= depth:
                raise _BegunError
            return (hidden,) if tuples else hidden

        with self._instead_of_layers(pass_on), contextlib.suppress(_BegunError):
            try:
                self._parts.base(**inputs)
            except (IndexError, TypeError) as error:  # layers return more than hidden states
                raise NotLayerwiseError from error
        return run

    @contextlib.contextmanager
    def _instead_of_layers(self, run: Callable[..., Any]) -> Iterator[None]:
        layers: Sequence[nn.Module] = list(self._parts.layers)
        try:
            for number, layer in enumerate(layers):
                self._parts.layers[number] = _StandIn(layer, run)
            yield
        finally:
            for number, layer in enumerate(layers):
                self._parts.layers[number] = layer
