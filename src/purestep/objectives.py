"""Sums and weights instead of means, so that micro-batches, ranks and epochs combine exactly.

A mean of means weighs a short micro-batch as much as a long one, which is wrong. A :class:`Mean` keeps the sum of the
values and the sum of the weights apart; merging adds both, and only the end divides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from purestep import _tree


@runtime_checkable
class Metric(Protocol):
    """What a metric must offer: merging with one of its kind, and a value at the end."""

    def merge(self, other: Any) -> Any: ...

    def value(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Mean:
    """A weighted mean that is not divided yet: ``total / weight``.

    Attributes:
        total: 0-d tensor, Σ wᵢ·xᵢ.
        weight: 0-d tensor, Σ wᵢ; it carries no gradient.

    ``c * mean`` scales the total; ``mean + mean`` is a :class:`Loss` of two terms, each divided by its own weight.
    """

    total: Tensor
    weight: Tensor

    def value(self) -> Tensor:
        """Return ``total / weight``, 0-d. NaN where the weight is zero: a mean over nothing has no value."""
        return self.total / self.weight

    def merge(self, other: Mean) -> Mean:
        """Pool two means over different examples: totals add, and weights add."""
        if not isinstance(other, Mean):
            raise TypeError(f"other must be a Mean to be merged with a Mean, got {type(other).__name__}")
        return Mean(self.total + other.total, self.weight + other.weight)

    @property
    def terms(self) -> tuple[Mean, ...]:
        return (self,)

    def __mul__(self, factor: float | Tensor) -> Mean:
        return Mean(self.total * _factor(factor), self.weight)

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Mean:
        return _radd(self, other)

    def __truediv__(self, divisor: float | Tensor) -> Mean:
        return Mean(self.total / divisor, self.weight)

    def __neg__(self) -> Mean:
        return Mean(-self.total, self.weight)

    def __add__(self, other: Mean | Loss) -> Loss:
        return _sum_of_terms(self, other)

    def __sub__(self, other: Mean | Loss) -> Loss:
        return _sum_of_terms(self, -other)

    def __float__(self) -> float:
        return float(self.value())


@dataclass(frozen=True, eq=False)
class Loss:
    """A sum of terms, each a :class:`Mean` with its own denominator: ``Σ totalᵢ / weightᵢ``."""

    terms: tuple[Mean, ...]

    def value(self) -> Tensor:
        """Return the sum of the terms' values, 0-d."""
        value = self.terms[0].value()
        for term in self.terms[1:]:
            value = value + term.value()
        return value

    def merge(self, other: Loss | Mean) -> Loss:
        """Pool term by term, in order; both must have the same number of terms."""
        if not isinstance(other, (Loss, Mean)):
            raise TypeError(f"other must be a Loss to be merged with a Loss, got {type(other).__name__}")
        if len(self.terms) != len(other.terms):
            raise ValueError(
                f"losses merge term by term and need equally many, got {len(self.terms)} and {len(other.terms)}"
            )
        return Loss(tuple(a.merge(b) for a, b in zip(self.terms, other.terms, strict=True)))

    def __mul__(self, factor: float | Tensor) -> Loss:
        return Loss(tuple(term * _factor(factor) for term in self.terms))

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Loss:
        return _radd(self, other)

    def __truediv__(self, divisor: float | Tensor) -> Loss:
        return Loss(tuple(term / divisor for term in self.terms))

    def __neg__(self) -> Loss:
        return Loss(tuple(-term for term in self.terms))

    def __add__(self, other: Mean | Loss) -> Loss:
        return _sum_of_terms(self, other)

    def __sub__(self, other: Mean | Loss) -> Loss:
        return _sum_of_terms(self, -other)

    def __float__(self) -> float:
        return float(self.value())


def _factor(factor: Any) -> Any:
    if isinstance(factor, (Mean, Loss)):
        raise TypeError(
            "a Mean or Loss is multiplied by a number or a tensor; a product of two is no sum over examples"
        )
    return factor


def _radd(term: Any, other: Any) -> Any:
    """``sum([mean, mean])`` begins with the number 0."""
    return term if isinstance(other, int) and other == 0 else _sum_of_terms(term, other)


def _sum_of_terms(left: Mean | Loss, right: Any) -> Loss:
    if not isinstance(right, (Mean, Loss)):
        raise TypeError(
            f"a Mean or Loss adds only to a Mean or Loss, got {type(right).__name__}: an amount that is no mean over "
            "examples (a penalty) is ps.once(amount)"
        )
    return Loss(left.terms + right.terms)


def mean(values: Tensor, *, where: Tensor | None = None, weight: Tensor | None = None) -> Mean:
    """Return the weighted mean of ``values`` as a :class:`Mean`: ``Σ w·x`` and ``Σ w`` over all entries.

    Args:
        values: one dimension or more; bool and integers count as float32, and half precision is summed in float32.
        where: bool, broadcastable to ``values``: the entries that count. The others give no value and no gradient,
            whatever they hold.
        weight: real, at least 0, broadcastable to ``values``; it must not depend on the parameters.

    Raises:
        TypeError: ``values`` is no tensor, or ``where`` is not bool.
        ValueError: ``values`` is one number (it was reduced before); a ``weight`` that is NaN, infinite or negative,
            that depends on the parameters, or that has another shape. The values of a weight are read in eager mode
            only: a compiled graph cannot raise.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"values must be a tensor, got {values!r} of type {type(values).__name__}")
    if values.dim() == 0:
        raise ValueError(
            "values is one number, and what it is the mean of is lost: give the values before they are reduced, for "
            'instance F.cross_entropy(logits, labels, reduction="none"); an amount that is no mean over examples (a '
            "penalty) is ps.once(amount)"
        )
    if not values.is_floating_point() or values.dtype in (torch.float16, torch.bfloat16):
        values = values.to(torch.float32)
    if where is None and weight is None:
        return Mean(values.sum(), torch.full((), values.numel(), dtype=values.dtype, device=values.device))
    weights = torch.ones((), dtype=values.dtype, device=values.device)
    if weight is not None:
        weights = _checked_weight(weight, values)
        values = values * weights
    if where is not None:
        _check_broadcast("where", where, values)
        if where.dtype != torch.bool:
            raise TypeError(f"where must be a bool tensor, got {where.dtype}; write `where=mask != 0`")
        # Both sides of 0 * inf and 0 * NaN are kept out of the sum and out of its gradient.
        nothing = torch.zeros((), dtype=values.dtype, device=values.device)
        values = torch.where(where, values, nothing)
        weights = torch.where(where, weights, nothing)
    return Mean(values.sum(), weights.expand(values.shape).sum())


def once(amount: Tensor) -> Mean:
    """Return an amount that is no mean over examples, such as a penalty on the parameters, as a :class:`Mean`.

    Every micro-batch has the same amount, and pooling them gives it once.

    Args:
        amount: 0-d.

    Raises:
        TypeError, ValueError: no tensor, or one with dimensions.
    """
    if not isinstance(amount, Tensor):
        raise TypeError(f"amount must be a 0-d tensor, got {amount!r} of type {type(amount).__name__}")
    if amount.dim() != 0:
        raise ValueError(f"amount must be a 0-d tensor, got shape {tuple(amount.shape)}; ps.mean(values) is a mean")
    return Mean(amount, torch.ones_like(amount.detach()))


def _check_broadcast(name: str, tensor: Tensor, values: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {tensor!r} of type {type(tensor).__name__}")
    fits = tensor.dim() <= values.dim() and all(
        size in (1, wanted) for size, wanted in zip(reversed(tensor.shape), reversed(values.shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name} must broadcast to the shape of values {tuple(values.shape)}, got shape {tuple(tensor.shape)}"
        )


def _checked_weight(weight: Tensor, values: Tensor) -> Tensor:
    _check_broadcast("weight", weight, values)
    if weight.requires_grad:
        raise ValueError(
            "weight depends on the parameters (it carries a gradient), and a weight only counts examples: "
            "detach it, or multiply the values by it instead"
        )
    if _readable(weight):
        wrong = ~(torch.isfinite(weight) & (weight >= 0))
        if bool(wrong.any()):
            raise ValueError(f"weight must be finite and at least 0, got {weight[wrong].flatten()[0].item()}")
    return weight.to(values.dtype)


def _readable(tensor: Tensor) -> bool:
    """Whether its values can be read without stalling a device."""
    return tensor.device.type == "cpu" and _tree.readable(tensor)


def merge(first: Any, second: Any) -> Any:
    """Pool two results over different examples: ``Mean``, ``Loss``, ``Gradient``, or dicts of metrics.

    In dicts, a plain tensor has nothing to pool (the rate that was used): the later one stays.
    """
    if isinstance(first, Mapping):
        if not isinstance(second, Mapping) or set(first) != set(second):
            raise ValueError(f"metrics must have the same names to be merged, got {list(first)} and {list(second)}")
        return {name: merge(first[name], second[name]) for name in first}
    if isinstance(first, Tensor):
        return second
    if not hasattr(first, "merge"):
        raise TypeError(f"first must be a Mean, a Loss, a Gradient or a dict of metrics, got {type(first).__name__}")
    return first.merge(second)


def values(metrics: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return each metric's value as a tensor: ``Mean`` and ``Loss`` divided, tensors as they are."""
    return {name: metric if isinstance(metric, Tensor) else metric.value() for name, metric in metrics.items()}


class Bare(Mean):
    """A bare 0-d tensor that an objective returned as its loss: a mean whose denominator nobody knows."""

    def merge(self, other: Any) -> Mean:
        raise TypeError(
            "this loss was a bare tensor, whose denominator nobody knows, and cannot be merged: "
            "return ps.mean(values) from the objective"
        )


def read_outcome(result: Any, *, bare: bool) -> tuple[Loss | Mean, dict[str, Any]]:
    """Return the loss and the metrics that an objective returned, checked: a ``Mean`` or ``Loss`` (or a bare 0-d
    tensor, where ``bare``), alone or with a dict of metrics.

    Raises:
        TypeError: anything else, or a bare tensor where it could not be pooled.
        ValueError: a total or weight that is not 0-d, or a metric named ``"loss"``.
    """
    loss, metrics = result if isinstance(result, tuple) and len(result) == 2 else (result, {})
    if not isinstance(metrics, dict):
        raise TypeError(f"the objective must return (loss, dict of metrics), got a {type(metrics).__name__} as metrics")
    if "loss" in metrics:
        raise ValueError('a metric of the objective is named "loss", the name of the loss itself: rename it')
    for name, metric in metrics.items():
        _check_metric(name, metric, bare=bare)
    if isinstance(loss, Tensor):
        return _bare_loss(loss, bare), metrics
    if not isinstance(loss, (Mean, Loss)):
        raise TypeError(
            f"the objective must return ps.mean(values), a sum of such means, or either with a dict of metrics; "
            f"got {type(loss).__name__}"
        )
    for term in loss.terms:
        _check_term(term)
    return loss, metrics


def _check_metric(name: str, metric: Any, *, bare: bool) -> None:
    if not isinstance(metric, (Tensor, Metric)):
        raise TypeError(
            f"metric {name!r} must be ps.mean(values), another mergeable metric or a tensor, got {metric!r}"
        )
    if isinstance(metric, Tensor):
        if not bare:
            raise TypeError(
                f"metric {name!r} is a bare tensor, and tensors of several micro-batches cannot be pooled: "
                "return ps.mean(values) instead"
            )
    elif type(metric) not in pytree.SUPPORTED_NODES:
        raise TypeError(
            f"metric {name!r} is a {type(metric).__name__}, which torch cannot take apart into tensors: register it "
            "with torch.utils._pytree.register_pytree_node"
        )


def _bare_loss(loss: Tensor, bare: bool) -> Bare:
    if not bare:
        raise TypeError(
            "the objective returned a bare tensor, and with accumulate > 1 the mean of micro-batch means is not the "
            "mean over the batch (a short micro-batch would count too much): return ps.mean(values) of the "
            'unreduced values instead, for instance ps.mean(F.cross_entropy(logits, labels, reduction="none"))'
        )
    if loss.dim() != 0:
        raise ValueError(
            f"the objective must return a scalar loss, got a tensor of shape {tuple(loss.shape)}: return "
            "ps.mean(values), or reduce it to one number"
        )
    return Bare(loss, torch.ones((), dtype=loss.dtype, device=loss.device))


def _check_term(term: Mean) -> None:
    for part, tensor in (("total", term.total), ("weight", term.weight)):
        if not isinstance(tensor, Tensor) or tensor.dim() != 0:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else tensor
            raise ValueError(f"the {part} of a Mean must be a 0-d tensor (a sum over examples), got shape {shape}")
    if term.weight.requires_grad:
        raise ValueError(
            "the weight of a Mean depends on the parameters (it carries a gradient): detach it, or multiply the "
            "values by it instead"
        )
    if _readable(term.weight) and bool(torch.isnan(term.weight)):
        raise ValueError("the weight of a Mean must be a number, got nan")


def _register(kind: type, fields: tuple[str, ...]) -> None:
    pytree.register_pytree_node(
        kind,
        lambda value: ([getattr(value, name) for name in fields], None),
        lambda children, _: kind(*children),
        serialized_type_name=f"purestep.{kind.__name__}",
    )


_register(Mean, ("total", "weight"))
_register(Bare, ("total", "weight"))
_register(Loss, ("terms",))
