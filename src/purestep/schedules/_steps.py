"""What a schedule is called with: a step, brought to float64."""

from __future__ import annotations

import torch
from torch import Tensor

from purestep._checks import integer


def as_steps(step: object) -> Tensor:
    """Return ``step`` as a float64 tensor of its own shape, on its own device (an int's is the CPU).

    float64 holds every integer up to 2^53, where float32 loses them past 2^24. MPS has no float64, and is the one
    place where float32 is used.

    Raises:
        TypeError: for anything but an int, an integer tensor, a float64 tensor, or NumPy's like of these.
        ValueError: for a negative step. The values of a tensor are looked at only where that is free of side effects:
            eagerly and on the CPU, not while compiling, inside a ``torch.func`` transform, or on an accelerator
            (where reading them would stall the device).
    """
    if not isinstance(step, Tensor | int) and hasattr(step, "__array__"):
        step = torch.as_tensor(step)
    if isinstance(step, Tensor):
        floating = torch.float32 if step.device.type == "mps" else torch.float64
        _check_dtype(step.dtype, floating)
        steps = step.to(floating)
        if not torch.compiler.is_compiling() and steps.device.type == "cpu" and is_concrete(steps):
            _check_values(steps)
        return steps
    number = integer("step", step, minimum=None if torch.compiler.is_compiling() else 0)
    return torch.full((), number, dtype=torch.float64, device="cpu")


def is_one_step(step: object) -> bool:
    """Whether ``step`` is one number of steps, from 0 on, that can be read here at no cost."""
    if isinstance(step, Tensor):
        readable = step.ndim == 0 and step.dtype == torch.int64 and step.device.type == "cpu"
        if not readable or torch.compiler.is_compiling() or not is_concrete(step):
            return False
        return int(step) >= 0
    return type(step) is int and step >= 0 and not torch.compiler.is_compiling()


def is_concrete(tensor: Tensor) -> bool:
    """Whether the values of ``tensor`` can be read here: no transform, trace or fake mode stands in between."""
    return (
        type(tensor) is Tensor
        and not tensor.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _check_dtype(dtype: torch.dtype, floating: torch.dtype) -> None:
    if dtype == floating or not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        return
    why = " (which loses integers past 2**24)" if dtype.is_floating_point else ""
    raise TypeError(f"step must be a tensor of an integer dtype or of {floating}, got one of {dtype}{why}")


def _check_values(steps: Tensor) -> None:
    least = steps.detach().min().item() if steps.numel() > 0 else 0.0
    if not least >= 0:  # NaN, which `min` passes on, is none either
        raise ValueError(f"step must be at least 0 everywhere, got {least:g}")
