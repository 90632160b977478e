"""The type in which a model computes, apart from the type in which its weights are held.

A CPU without instructions for bf16 multiplies bf16 matrices several times slower than fp32 ones. Weights
are still best held in bf16, for the memory; so those of a module are expanded into one buffer just before
the module runs. With some hundreds of tokens that costs a few hundredths of the module's own work.
"""

from __future__ import annotations

import platform
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import Parts, find_parts
from .workspace import Workspace

__all__ = ["Expansion", "compute_type", "has_native_bf16", "make_expansion"]

_X86 = ("x86_64", "amd64")
_ALIGNMENT = 64  # bytes, as torch's own allocations, so that the same kernels run


def has_native_bf16() -> bool:
    """Return whether this CPU has instructions that multiply bf16 matrices.

    On x86 these are AVX512_BF16 (AMX comes with them): with AVX-512 alone oneDNN takes bf16 too, but emulates
    it. Elsewhere oneDNN says whether it has kernels for them.
    """
    if platform.machine().lower() in _X86:
        return torch.cpu._is_avx512_bf16_supported()
    return bool(cast(Any, torch.ops).mkldnn._is_mkldnn_bf16_supported())


def compute_type(wanted: str | torch.dtype, stored: torch.dtype) -> torch.dtype:
    """Return the type to compute in on a CPU.

    Args:
        wanted: ``auto``, ``float32`` or ``bfloat16``. ``auto`` is bf16 for bf16 weights where the CPU has
            instructions for it, else fp32; it is the same in every run on one machine.
        stored: type of the weights.

    Raises:
        ConfigError: it is none of these.

    """
    if wanted == "auto":
        native = stored.itemsize >= 4 or (stored == torch.bfloat16 and has_native_bf16())
        return stored if native else torch.float32
    for dtype in (torch.float32, torch.bfloat16):
        if wanted in (dtype, str(dtype).removeprefix("torch.")):
            return dtype
    raise ConfigError("compute_dtype", str(wanted), "auto, float32 or bfloat16")


class Expansion:
    """Make a model compute in another type than its weights have, as long as they are on a CPU.

    While a module runs, its own parameters are copies in the other type; before and after, the model is as
    it was given. Linear layers that are given a single token compute in the type of their weights. Embeddings
    are not expanded, only the rows that they give. What follows the layers, which the backbone does not run,
    takes its input in its own type.

    Args:
        model: with all its weights, or with layers that bring them when they are run.
        parts: its layers.
        dtype: to compute in.
        workspace: memory for the weights of one module.

    Attributes:
        dtype: as given.
        workspace: as given.

    """

    def __init__(self, model: nn.Module, parts: Parts, dtype: torch.dtype, workspace: Workspace) -> None:
        self.dtype = dtype
        self.workspace = workspace
        self._stored: dict[nn.Module, dict[str, nn.Parameter]] = {}
        inside = set(parts.base.modules())
        after = {parts.final_norm, parts.project_out}
        for module in model.modules():
            if not module._parameters:
                continue
            if module not in inside or module in after:
                module.register_forward_pre_hook(_in_its_own_type)
            elif isinstance(module, nn.Embedding):
                module.register_forward_hook(self._widen)
            else:
                module.register_forward_pre_hook(self._before)
                module.register_forward_hook(self._after, always_call=True)

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        stored = {
            name: parameter
            for name, parameter in module._parameters.items()
            if parameter is not None and self._is_other(parameter)
        }
        if not stored:
            return None
        if isinstance(module, nn.Linear) and inputs and inputs[0].numel() == inputs[0].shape[-1]:
            # One token is multiplied as fast as weights are read; expanding them would be most of the work.
            return (inputs[0].to(module.weight.dtype),)
        rooms = [self._room(parameter) for parameter in stored.values()]
        # Modules inside this one run before it is done, and take the workspace.
        whole = any(inner._parameters for inner in module.modules() if inner is not module)
        memory = torch.empty(sum(rooms), dtype=self.dtype) if whole else self._take(sum(rooms))
        for room, (name, parameter) in zip(rooms, stored.items(), strict=True):
            part, memory = memory[:room], memory[room:]
            view = part[: parameter.numel()].view(parameter.shape)
            view.copy_(parameter.detach())
            module._parameters[name] = nn.Parameter(view, requires_grad=False)
        self._stored[module] = stored
        return None

    def _after(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        for name, parameter in self._stored.pop(module, {}).items():
            module._parameters[name] = parameter
        return self._widen(module, _inputs, output)

    def _widen(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        return output.to(self.dtype) if isinstance(output, Tensor) and self._is_other(output) else output

    def _is_other(self, tensor: Tensor) -> bool:
        on_cpu, floating = tensor.device.type == "cpu", tensor.is_floating_point()
        return on_cpu and floating and tensor.dtype != self.dtype

    def _room(self, parameter: Tensor) -> int:
        """Return the values up to the next one that is aligned."""
        step = _ALIGNMENT // self.dtype.itemsize
        return -(-parameter.numel() // step) * step

    def _take(self, values: int) -> Tensor:
        return self.workspace.take(values, self.dtype)


def make_expansion(
    model: nn.Module, compute_dtype: str | torch.dtype, workspace: Workspace
) -> Expansion | None:
    """Make a model compute in another type than that of its weights, if it should; None if not.

    Raises:
        ConfigError: ``compute_dtype`` cannot be read.

    """
    parts = find_parts(model)
    stored = parts.first_weight.dtype
    wanted = compute_type(compute_dtype, stored)
    return None if wanted == stored else Expansion(model, parts, wanted, workspace)


def _in_its_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(p.dtype for p in module._parameters.values() if p is not None)
    first = inputs[:1]
    if first and isinstance(first[0], Tensor) and first[0].is_floating_point():
        first = (first[0].to(dtype),)
    return (*first, *inputs[1:])
