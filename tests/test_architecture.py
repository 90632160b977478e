"""The layers of the package, checked on its sources: who imports whom, and what nobody may use."""

from __future__ import annotations

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "mobillm"
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# A module imports its own place and lower layers. Only the places of layer 0 may import each other, and
# those of layer 4.
LAYERS = {
    "defaults": 0,
    "errors": 0,
    "formats": 0,
    "options": 0,
    "spec": 0,
    "version": 0,
    "protocol": 1,
    "kernels": 1,
    "nn": 1,
    "codec": 2,
    "transport": 2,
    "device": 3,
    "server": 3,
    "conformance": 3,
    "cli": 4,
    "__main__": 4,
    "__init__": 4,
}

# What a place may import beyond the standard library; places that are not listed are free.
OUTSIDE: dict[str, set[str]] = {
    "defaults": set(),
    "errors": set(),
    "formats": set(),
    "options": set(),
    "spec": set(),
    "version": set(),
    "protocol": {"msgpack", "zstandard", "crc32c"},
    "kernels": {"numpy", "torch"},
    "codec": {"numpy"},
    "transport": set(),
    "conformance": {"numpy", "msgpack", "crc32c"},
}

# The protocol core neither waits nor looks around: the caller gives it bytes, nonces and keys.
NOT_IN_PROTOCOL = {
    "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "select",
    "selectors", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time", "uuid",
}  # fmt: skip

# Formats that run code when they are read.
UNSAFE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def name_of(path: pathlib.Path) -> str:
    """Return a source's path for people and test ids."""
    return path.relative_to(ROOT).as_posix()


def place_of(parts: tuple[str, ...]) -> str:
    """Return the place of a module below ``mobillm``; attributes of ``mobillm`` itself are ``__init__``."""
    return parts[0] if parts and parts[0] in LAYERS else "__init__"


def imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of everything a source imports, at any depth of its code."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def violations(path: pathlib.Path) -> list[str]:
    """Return the imports of a source that the layers forbid."""
    own = place_of(path.relative_to(PACKAGE).with_suffix("").parts)
    found = []
    for line, name in imports(path):
        top, *rest = name.split(".")
        if top == "mobillm":
            other = place_of(tuple(rest))
            fine = other == own or LAYERS[other] < LAYERS[own] or LAYERS[other] == LAYERS[own] in (0, 4)
        else:
            fine = top in sys.stdlib_module_names or own not in OUTSIDE or top in OUTSIDE[own]
            fine = fine and not (own == "protocol" and top in NOT_IN_PROTOCOL)
            fine = fine and not (own == "kernels" and top == "torch" and not path.name.startswith("torch_"))
        if not fine:
            found.append(f"{name_of(path)}:{line} ({own}) imports {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down(path: pathlib.Path) -> None:
    """A module imports its own package and lower layers, and only what its place may use."""
    assert violations(path) == []


def test_every_place_has_a_layer() -> None:
    """A new package gets a layer before it gets code."""
    assert {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in SOURCES} <= set(LAYERS)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("spec.py", "import numpy"),
        ("errors.py", "from .protocol import Endpoint"),
        ("protocol/x.py", "from ..kernels import quantize"),
        ("protocol/x.py", "from .. import kernels"),
        ("protocol/x.py", "from .. import __version__"),
        ("protocol/x.py", "def f():\n    import time"),
        ("protocol/x.py", "import numpy as np"),
        ("nn/x.py", "from mobillm.protocol import Endpoint"),
        ("nn/x.py", "import importlib\nimportlib.import_module('mobillm.server')"),
        ("kernels/x.py", "import torch"),
        ("codec.py", "from .transport import connect"),
        ("transport/x.py", "class A:\n    def f(self):\n        from ..codec import pack"),
        ("device/x.py", "from ..server import Server"),
        ("server/x.py", "import mobillm.device.client"),
        ("device/x.py", "from ..cli import main"),
        ("conformance/x.py", "from ..server import serve"),
        ("conformance/x.py", "from ...device import connect"),
        ("conformance/x.py", "import torch"),
    ],
)
def test_the_check_itself(
    place: str, code: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of forbidden import is seen."""
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PACKAGE", tmp_path / "mobillm")
    path = tmp_path / "mobillm" / place
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert len(violations(path)) == 1
    path.write_text("from __future__ import annotations\nimport math")
    assert violations(path) == []


@pytest.mark.parametrize("path", [*SOURCES, *PACKAGE.rglob("*.[ch]"), *TESTS], ids=name_of)
def test_files_are_short(path: pathlib.Path) -> None:
    """At most 500 lines."""
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_nothing_is_unpickled(path: pathlib.Path) -> None:
    """No pickle and no torch.load: reading a file never runs code that is in it."""
    assert [name for _, name in imports(path) if name.split(".")[0] in UNSAFE] == []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("torch", "load"), node.lineno
        if isinstance(node, ast.keyword):
            assert node.arg != "allow_pickle", node.lineno


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "__init__.py"], ids=name_of)
def test_every_module_has_a_test_file(path: pathlib.Path) -> None:
    """The tests mirror the package."""
    place = path.relative_to(PACKAGE)
    expected = ROOT / "tests" / place.parent / f"test_{place.stem.strip('_')}.py"
    assert expected.exists(), f"{name_of(expected)} is missing"
