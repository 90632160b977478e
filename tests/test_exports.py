"""The public names, and what must be importable without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mobillm.protocol

CONSTANTS = [
    "CAPABILITY",
    "CONNECTION",
    "EQUALIZERS",
    "HEADER_SIZE",
    "LENGTHS",
    "MAX_META",
    "MESSAGES",
    "STREAM",
    "TARGETS",
    "VERSION",
]
CLASSES = [
    "Abort", "Ack", "Auth", "Blob", "Bye", "Challenge", "Commit", "Credit", "Data", "Detach",
    "Endpoint", "Error", "Eval", "Evaluated", "Finish", "Finished", "Frame", "FrameBuffer", "FrameType",
    "Gap", "Goaway", "Hello", "Message", "Metrics", "Open", "Opened", "Phase", "Ping", "Pong", "Pull",
    "Reject", "Role", "Stored", "StreamPhase", "TensorHeader", "Weights", "Welcome",
]  # fmt: skip
FUNCTIONS = [
    "checksum", "compress", "decode_message", "decompress", "derive_key", "encode_frame", "tensor_name",
]  # fmt: skip

# Imports a module in an interpreter in which torch cannot be imported.
SCRIPT = """
import importlib, sys
sys.modules["torch"] = None
sys.modules["transformers"] = None
module = importlib.import_module(sys.argv[1])
if "." in sys.argv[1]:  # the names of mobillm itself are found when they are used
    for name in module.__all__:
        getattr(module, name)
"""


def test_protocol_exports() -> None:
    """The public names of the protocol are pinned, complete and sorted: constants, classes, functions."""
    for names in (CONSTANTS, CLASSES, FUNCTIONS):
        assert names == sorted(names)
    assert mobillm.protocol.__all__ == CONSTANTS + CLASSES + FUNCTIONS
    assert [name for name in mobillm.protocol.__all__ if not hasattr(mobillm.protocol, name)] == []


def test_every_message_is_exported() -> None:
    """A peer written with the package needs no private name."""
    assert {cls.__name__ for cls in mobillm.protocol.MESSAGES.values()} <= set(CLASSES)


@pytest.mark.parametrize("module", ["", ".codec", ".device", ".kernels", ".protocol", ".transport"])
def test_importable_without_torch(module: str) -> None:
    """An app that runs its backbone elsewhere needs no torch."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"mobillm{module}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_protocol_imports_little() -> None:
    """The core pulls in neither numpy nor an event loop."""
    script = "import sys, mobillm.protocol; print({'numpy', 'asyncio', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
