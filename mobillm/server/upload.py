"""The way of packed bytes into the memory of the device that trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Upload"]


class Upload:
    """Copies to a GPU from page-locked memory, on a stream of their own; for one thread.

    All copies of a batch are begun at once, and the first tensor is unpacked while the others are on their
    way: computing waits for each copy on the GPU, not here.

    Args:
        device: where training is done; for the CPU there is nothing to copy.

    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, payloads: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview | Tensor]:
        """Begin to copy payloads.

        Args:
            payloads: packed bytes.

        Returns:
            the same bytes in order, as uint8 tensors on the GPU; on the CPU as they are.

        """
        if self._stream is None:
            return iter(payloads)
        with torch.cuda.stream(self._stream):
            copies = [self._copy(payload) for payload in payloads]
        return self._arrive(copies)

    def _copy(self, payload: bytes | memoryview) -> tuple[Tensor, torch.cuda.Event]:
        octets = np.frombuffer(payload, np.uint8)
        # Freed at once: torch uses such memory again only after the copy from it.
        locked = torch.empty(octets.size, dtype=torch.uint8, pin_memory=True)
        locked.numpy()[:] = octets
        there = locked.to(self._device, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return there, event

    def _arrive(self, copies: Sequence[tuple[Tensor, torch.cuda.Event]]) -> Iterator[Tensor]:
        computing = torch.cuda.current_stream(self._device)
        for there, event in copies:
            computing.wait_event(event)
            there.record_stream(computing)  # its memory belongs to the other stream
            yield there
