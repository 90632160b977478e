"""Public names, lazily; and everything of the device without torch."""

from __future__ import annotations

import pathlib

import pytest

import mobillm
from tests.processes import TOKEN, python, server_process

# Stands in front of every test program: an import of the server's libraries is an error.
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "safetensors", "tokenizers"):
            raise ImportError(name + " is not installed here")

sys.meta_path.insert(0, Refuse())
"""

_DEVICE = """
import asyncio
import numpy as np
import mobillm

async def main(address, token):
    spec = mobillm.SessionSpec(
        task="classification", outputs=2, epochs=2, batches=4,
        model=mobillm.ModelSpec(name="tiny", hidden_size=16, layers=4, taps=(2, 4)),
        side=mobillm.SideSpec(width=8, heads=2),
        codec=mobillm.CodecSpec(format="asym4", block=32),
    )
    random = np.random.default_rng(0)
    async with mobillm.connect(address, token=token) as client:
        session = await client.open(spec)
        for _ in range(4):
            taps = [random.standard_normal((6, 16)).astype(np.float32) for _ in range(2)]
            await session.submit(taps, [1, 2, 3], [0, 1, 1])
        await session.finish()
        finished = await session.wait_finished()
        weights = await session.pull()
        print(finished.steps, len(weights) > 1000, "torch" in sys.modules)

asyncio.run(main(*sys.argv[1:]))
"""


def test_all_names_exist() -> None:
    """Every public name can be had, and no other."""
    for name in mobillm.__all__:
        assert getattr(mobillm, name) is not None
    assert dir(mobillm) == sorted(mobillm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'poetry'"):
        getattr(mobillm, "poetry")  # noqa: B009


def test_import_is_light() -> None:
    """Importing the package loads neither torch nor numpy nor a network stack."""
    found = python(
        "import sys, mobillm; print([m for m in ('torch', 'numpy', 'asyncio') if m in sys.modules])"
    )
    assert found == "[]\n"


def test_imports_without_torch() -> None:
    """What a device needs can be imported without torch."""
    code = WITHOUT_TORCH + "\n".join(
        f"import mobillm{name}" for name in ("", ".protocol", ".kernels", ".transport", ".device", ".codec")
    )
    python(code + "\nassert mobillm.connect and mobillm.Client and mobillm.Session")
    with pytest.raises(
        AssertionError, match=r"mobillm\.serve: .* is not installed here; install mobillm\[torch\]"
    ):
        python(WITHOUT_TORCH + "import mobillm\nmobillm.serve")


def test_a_device_without_torch_trains_a_session(tmp_path: pathlib.Path) -> None:
    """Numpy activations go to a server in another process, and the weights come back."""
    with server_process(tmp_path) as address:
        printed = python(WITHOUT_TORCH + _DEVICE, address, TOKEN)
    assert printed == "8 True False\n"
