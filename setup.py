"""The C extensions; everything else about the package stands in ``pyproject.toml``."""

from __future__ import annotations

from setuptools import Extension, setup

native = Extension(
    "mobillm.kernels._native",
    ["mobillm/kernels/native.c"],
    depends=[f"mobillm/kernels/native_{part}.h" for part in ("pack", "encode", "decode")],
    # Without floating-point contraction each operation is rounded once, so that all backends give the same
    # bytes. Nothing looks at errno or at traps.
    extra_compile_args=[
        "-std=c11",
        "-O3",
        "-g0",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
    ],
    py_limited_api=True,
    optional=True,  # without a C compiler the package is installed without it; numpy and torch do the work
)
crc32c = Extension(
    "mobillm.protocol._crc32c",
    ["mobillm/protocol/crc32c.c"],
    extra_compile_args=["-std=c11", "-O3", "-g0"],
    py_limited_api=True,
    optional=True,  # without it the package crc32c does the work
)
memory = Extension(
    "mobillm.protocol._memory",
    ["mobillm/protocol/memory.c"],
    extra_compile_args=["-std=c11", "-O3", "-g0"],
    py_limited_api=True,
    optional=True,  # without it each payload is received into a bytearray of its own
)
setup(ext_modules=[native, crc32c, memory])
