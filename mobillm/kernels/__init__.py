"""Quantization of activations to packed tensors and back.

The functions here take and return numpy arrays and need no torch. Programs that hold torch tensors
import :mod:`mobillm.kernels.torch_backend`, whose functions have the same names and give the same bytes.
"""

from __future__ import annotations

from .equalizer import calibrate, check_equalizer, check_sample
from .layout import Layout, Span
from .numpy_backend import dequantize, quantize

__all__ = ["Layout", "Span", "calibrate", "check_equalizer", "check_sample", "dequantize", "quantize"]
