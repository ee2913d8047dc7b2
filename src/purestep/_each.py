"""Elementwise arithmetic over lists of tensors, one for each parameter.

Where nobody looks on, it is one call of ``torch._foreach_*``, which on the CPU runs the very loop without the
interpreter between two tensors, and has its bits. Elsewhere it is a plain loop, which a compiler fuses and every
transform knows.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from purestep import _tree, updates

Tensors = list[Tensor]
Scalar = float | Tensor


def arithmetic(*operands: Tensors | Scalar) -> Loop:
    """Return what computes with these lists and scalars, and with what is made of them. A scalar that is still a tensor
    is one that somebody differentiates by or that lives on a device: it takes the loop."""
    if _tree.is_transformed() or forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack():
        return Loop()
    lists = [operand for operand in operands if isinstance(operand, list)]
    if any(isinstance(operand, Tensor) for operand in operands):
        return Loop()
    plain = all(type(tensor) is Tensor and not tensor.requires_grad for tensors in lists for tensor in tensors)
    return Foreach(all(tensor.dtype == torch.float32 for tensor in lists[0])) if plain else Loop()


class Loop:
    """One tensor after the other. The names are torch's; those that end in an underscore may write into their first
    list where nobody looks on, so it must be one that was computed here and is needed no more."""

    def mul(self, tensors: Tensors, factor: Scalar) -> list[Tensor]:
        # Beside a 0-d parameter a wider 0-d factor would make it wider.
        return [(tensor * factor).to(tensor.dtype) for tensor in tensors]

    def add(self, tensors: Tensors, addend: float) -> list[Tensor]:
        return [tensor + addend for tensor in tensors]

    def div(self, tensors: Tensors, divisor: Scalar) -> list[Tensor]:
        return [(tensor / divisor).to(tensor.dtype) for tensor in tensors]

    def add_into(self, tensors: Tensors, others: Tensors) -> list[Tensor]:
        """``x + y``, into the storage of x where nobody traces or differentiates."""
        return [tensor + other for tensor, other in zip(tensors, others, strict=True)]

    def product(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return [a * b for a, b in zip(left, right, strict=True)]

    def quotient(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return [a / b for a, b in zip(left, right, strict=True)]

    def difference(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return [a - b for a, b in zip(left, right, strict=True)]

    def neg(self, tensors: Tensors) -> list[Tensor]:
        return [torch.neg(tensor) for tensor in tensors]

    def abs(self, tensors: Tensors) -> list[Tensor]:
        """The derivative at zero is zero."""
        return [tensor.abs() for tensor in tensors]

    def reciprocal(self, tensors: Tensors) -> list[Tensor]:
        return [tensor.reciprocal() for tensor in tensors]

    def sqrt(self, tensors: Tensors) -> list[Tensor]:
        """The derivative at zero is zero."""
        return [updates.safe_sqrt(tensor) for tensor in tensors]

    def lerp(self, starts: Tensors, ends: Tensors, weight: Scalar) -> list[Tensor]:
        return [torch.lerp(a, b, _like(weight, a)) for a, b in zip(starts, ends, strict=True)]

    def addcmul(self, tensors: Tensors, left: Tensors, right: Tensors, value: Scalar) -> list[Tensor]:
        each = zip(tensors, left, right, strict=True)
        if isinstance(value, Tensor):
            return [t + _like(value, t) * a * b for t, a, b in each]
        return [torch.addcmul(t, a, b, value=value) for t, a, b in each]

    def addcdiv(self, tensors: Tensors, left: Tensors, right: Tensors, value: Scalar = 1.0) -> list[Tensor]:
        """``x + value · y / z``."""
        each = zip(tensors, left, right, strict=True)
        if isinstance(value, Tensor):
            return [torch.addcdiv(t, (a * value).to(a.dtype), b) for t, a, b in each]
        return [torch.addcdiv(t, a, b, value=value) for t, a, b in each]

    def maximum(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return [torch.maximum(a, b) for a, b in zip(left, right, strict=True)]

    def add_scaled(self, tensors: Tensors, directions: Tensors, scale: Scalar) -> list[Tensor]:
        """``x + scale · direction``, rounded as :func:`purestep.updates.add_scaled` rounds."""
        return [updates.add_scaled(t, d, scale) for t, d in zip(tensors, directions, strict=True)]

    def clamp_min(self, tensors: Tensors, bounds: list[float]) -> list[Tensor]:
        return [tensor.clamp(min=bound) for tensor, bound in zip(tensors, bounds, strict=True)]

    def rsqrt(self, tensors: Tensors) -> list[Tensor]:
        return [tensor.rsqrt() for tensor in tensors]

    def norms(self, tensors: Tensors) -> list[Any]:
        """The norm of each, in its dtype, as :func:`number` reads it. The derivative at zero is zero."""
        return [number(tensor.norm(2)) for tensor in tensors]

    mul_, add_, div_, product_, quotient_, sqrt_ = mul, add, div, product, quotient, sqrt
    addcmul_, addcdiv_, add_scaled_, reciprocal_ = addcmul, addcdiv, add_scaled, reciprocal
    clamp_min_, rsqrt_ = clamp_min, rsqrt


class Foreach(Loop):
    """All at once; scalars are numbers."""

    def __init__(self, float32: bool) -> None:
        # What the kernels would round a number to themselves, tensor by tensor, at twice the time.
        self._scalar: Any = _in_float32 if float32 else float

    def mul(self, tensors: Tensors, factor: Any) -> list[Tensor]:
        return list(torch._foreach_mul(tensors, self._scalar(factor)))

    def mul_(self, tensors: Tensors, factor: Any) -> list[Tensor]:
        torch._foreach_mul_(tensors, self._scalar(factor))
        return tensors

    def add(self, tensors: Tensors, addend: float) -> list[Tensor]:
        return list(torch._foreach_add(tensors, self._scalar(addend)))

    def add_(self, tensors: Tensors, addend: float) -> list[Tensor]:
        torch._foreach_add_(tensors, self._scalar(addend))
        return tensors

    def div(self, tensors: Tensors, divisor: Any) -> list[Tensor]:
        return list(torch._foreach_div(tensors, self._scalar(divisor)))

    def div_(self, tensors: Tensors, divisor: Any) -> list[Tensor]:
        torch._foreach_div_(tensors, self._scalar(divisor))
        return tensors

    def add_into(self, tensors: Tensors, others: Tensors) -> list[Tensor]:
        torch._foreach_add_(tensors, others)
        return tensors

    def product(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return list(torch._foreach_mul(left, right))

    def product_(self, left: Tensors, right: Tensors) -> list[Tensor]:
        torch._foreach_mul_(left, right)
        return left

    def quotient(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return list(torch._foreach_div(left, right))

    def quotient_(self, left: Tensors, right: Tensors) -> list[Tensor]:
        torch._foreach_div_(left, right)
        return left

    def difference(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return list(torch._foreach_sub(left, right))

    def neg(self, tensors: Tensors) -> list[Tensor]:
        return list(torch._foreach_neg(tensors))

    def abs(self, tensors: Tensors) -> list[Tensor]:
        return list(torch._foreach_abs(tensors))

    def reciprocal(self, tensors: Tensors) -> list[Tensor]:
        return list(torch._foreach_reciprocal(tensors))

    def reciprocal_(self, tensors: Tensors) -> list[Tensor]:
        torch._foreach_reciprocal_(tensors)
        return tensors

    def sqrt(self, tensors: Tensors) -> list[Tensor]:
        return list(torch._foreach_sqrt(tensors))

    def sqrt_(self, tensors: Tensors) -> list[Tensor]:
        torch._foreach_sqrt_(tensors)
        return tensors

    def lerp(self, starts: Tensors, ends: Tensors, weight: Any) -> list[Tensor]:
        return list(torch._foreach_lerp(starts, ends, weight))

    def addcmul(self, tensors: Tensors, left: Tensors, right: Tensors, value: Any) -> list[Tensor]:
        return list(torch._foreach_addcmul(tensors, left, right, value))

    def addcmul_(self, tensors: Tensors, left: Tensors, right: Tensors, value: Any) -> list[Tensor]:
        torch._foreach_addcmul_(tensors, left, right, value)
        return tensors

    def addcdiv(self, tensors: Tensors, left: Tensors, right: Tensors, value: Any = 1.0) -> list[Tensor]:
        return list(torch._foreach_addcdiv(tensors, left, right, value))

    def addcdiv_(self, tensors: Tensors, left: Tensors, right: Tensors, value: Any = 1.0) -> list[Tensor]:
        torch._foreach_addcdiv_(tensors, left, right, value)
        return tensors

    def maximum(self, left: Tensors, right: Tensors) -> list[Tensor]:
        return list(torch._foreach_maximum(left, right))

    def clamp_min(self, tensors: Tensors, bounds: list[float]) -> list[Tensor]:
        return list(torch._foreach_clamp_min(tensors, bounds))

    def clamp_min_(self, tensors: Tensors, bounds: list[float]) -> list[Tensor]:
        torch._foreach_clamp_min_(tensors, bounds)
        return tensors

    def rsqrt(self, tensors: Tensors) -> list[Tensor]:
        return list(torch._foreach_rsqrt(tensors))

    def rsqrt_(self, tensors: Tensors) -> list[Tensor]:
        torch._foreach_rsqrt_(tensors)
        return tensors

    def norms(self, tensors: Tensors) -> list[Any]:
        return [norm.item() for norm in torch._foreach_norm(tensors)] if tensors else []

    def add_scaled(self, tensors: Tensors, directions: Tensors, scale: Any) -> list[Tensor]:
        return list(torch._foreach_add(tensors, directions, alpha=scale))

    def add_scaled_(self, tensors: Tensors, directions: Tensors, scale: Any) -> list[Tensor]:
        torch._foreach_add_(tensors, directions, alpha=scale)
        return tensors


def number(scalar: Tensor) -> Any:
    """Return a 0-d tensor as a Python float where it can be read, and as a wide tensor elsewhere (MPS has no float64),
    as torch's optimizers compute with scalars."""
    return updates.plain(scalar.to(torch.float32 if scalar.device.type == "mps" else torch.float64))


def larger(first: float | Tensor, second: float | Tensor) -> float | Tensor:
    """Return the larger of two scalars. Where they tie, each has half of the derivative."""
    if isinstance(first, Tensor):
        return torch.maximum(first, updates.as_tensor(second, first))
    return torch.maximum(updates.as_tensor(first, second), second) if isinstance(second, Tensor) else max(first, second)


def _like(scalar: Any, tensor: Tensor) -> Any:
    return scalar.to(tensor.device, tensor.dtype) if isinstance(scalar, Tensor) else scalar


@functools.lru_cache(maxsize=256)
def _in_float32(number: float) -> Any:
    return torch.tensor(number, dtype=torch.float32, device="cpu")  # whatever the default device is
