"""Pack the taps of one session, equalized from the first batch on that is large enough to calibrate on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..codec import Equalizer, PackedTensor, calibrate, pack
from ..errors import QuantizationError
from ..formats import Format
from ..protocol import tensor_name
from ..spec import SessionSpec

__all__ = ["CALIBRATION", "TapPacker"]

# Tokens that a batch must have for its taps to be calibrated on it. Which batch that is depends on the
# batches alone, so a run that is interrupted has the same equalizers as one that is not.
CALIBRATION = 32


class TapPacker:
    """Equalize, quantize and pack the taps of one session's batches; for one thread at a time.

    Args:
        spec: the session.
        equalizers: those that the session has already, by tap; None packs all taps as they are.
        compress: whether the server takes compressed tensors; used only if the spec asks for it.

    """

    def __init__(
        self, spec: SessionSpec, equalizers: Mapping[int, Equalizer] | None, *, compress: bool = False
    ) -> None:
        self.spec = spec
        self._compresses = compress and spec.codec.compression != "none"
        self._format = Format.parse(spec.codec.format)
        # The steps of f8 grow with the value by themselves; its error is smaller without an equalizer.
        wins = self._format.is_block and self._format is not Format.F8
        self._equalizes = spec.codec.equalize and wins and equalizers is not None
        self._equalizers = dict(equalizers or {})

    def pack(self, tap: int, hidden: Any, fmt: Format | None = None) -> PackedTensor:
        """Pack the hidden states of one tap, and compress what was packed if the session does that.

        Args:
            tap: its number in the spec.
            hidden: numpy array or torch tensor of floats [tokens, hidden_size].
            fmt: one of the spec's formats; None takes ``codec.format``.

        Raises:
            QuantizationError: a value is not finite, or too large for the format.
            ConfigError: there is no value, or their type is one that the format does not take.

        """
        packed = self._pack(tap, hidden, fmt or self._format)
        return packed.smaller() if self._compresses else packed

    def _pack(self, tap: int, hidden: Any, fmt: Format) -> PackedTensor:
        block = self.spec.codec.block
        name = tensor_name(tap)
        if tap < len(self.spec.model.taps):
            name = f"{name} (layer {self.spec.model.taps[tap]})"
        if self._equalizes and tap not in self._equalizers and _tokens(hidden) >= CALIBRATION:
            found = calibrate(hidden, name)
            if found is not None:
                self._equalizers[tap] = found
        equalizer = self._equalizers.get(tap) if self._equalizes else None
        if equalizer is not None:
            try:
                return pack(hidden, fmt, block, name, equalizer)
            except QuantizationError:
                pass  # a value beyond all of the sample may fit undivided; if not, the error names it
        return pack(hidden, fmt, block, name)


def _tokens(hidden: Any) -> int:
    return int(hidden.shape[0]) if len(hidden.shape) == 2 and hidden.shape[1] else 0
