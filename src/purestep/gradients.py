"""Gradients of a loss's terms, undivided, by whichever of torch's two engines fits where we are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from tensordict import TensorDict, TensorDictBase, is_tensor_collection
from torch import Tensor
from torch.autograd import forward_ad

from purestep import _tree, objectives
from purestep.objectives import Loss, Mean


@dataclass(frozen=True, eq=False)
class Gradient:
    """The gradient of a loss that is not divided yet: one sum over examples for each of the loss's terms.

    Attributes:
        total: for each term, the gradient of its total, a flat TensorDict by parameter name.
        weight: for each term, its weight, 0-d. Empty where ``total`` is divided already (the objective returned a bare
            tensor, whose denominator nobody knows): such a gradient merges with nothing.
        buffers: the module's buffers after the forward, a flat TensorDict.
        metrics: the objective's metrics, and the loss itself as ``"loss"``.
    """

    total: tuple[TensorDict, ...]
    weight: tuple[Tensor, ...]
    buffers: TensorDict
    metrics: dict[str, Any]

    def mean(self) -> TensorDict:
        """Return ``Σ totalᵢ / weightᵢ`` over the terms: the gradient of the loss."""
        if not self.weight:
            return self.total[0]
        whole = _tree.map_leaves(lambda leaf: (leaf / self.weight[0]).to(leaf.dtype), self.total[0])
        for total, weight in zip(self.total[1:], self.weight[1:], strict=True):
            whole = _tree.map_leaves(lambda sofar, leaf, w=weight: sofar + (leaf / w).to(leaf.dtype), whole, total)
        return whole

    def merge(self, other: Gradient) -> Gradient:
        """Pool the gradients of two batches: totals and weights add, metrics merge, the later buffers stay.

        Raises:
            TypeError: a gradient whose denominators are gone, or something that is no gradient.
            ValueError: a different number of terms.
        """
        if not isinstance(other, Gradient):
            raise TypeError(f"other must be a Gradient to be merged with one, got {type(other).__name__}")
        if not (self.weight and other.weight):
            raise TypeError(
                "this Gradient cannot be merged, since its loss was a bare tensor whose denominator nobody knows: "
                "return ps.mean(values) from the objective"
            )
        if len(self.total) != len(other.total):
            raise ValueError(f"losses of {len(self.total)} and {len(other.total)} terms cannot be merged")
        return Gradient(
            tuple(_tree.map_leaves(torch.add, a, b) for a, b in zip(self.total, other.total, strict=True)),
            tuple(a + b for a, b in zip(self.weight, other.weight, strict=True)),
            other.buffers,
            objectives.merge(self.metrics, other.metrics),
        )


Outputs = Callable[[Loss | Mean], tuple[tuple[Tensor, Tensor | None], ...]]


def totals(loss: Loss | Mean) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """One output for each term: its total, and its weight."""
    return tuple((term.total, term.weight) for term in loss.terms)


def value(loss: Loss | Mean) -> tuple[tuple[Tensor, Tensor | None], ...]:
    """One output: the loss itself, divided."""
    return ((loss.value(), None),)


def over(weights: Sequence[Tensor]) -> Outputs:
    """One output: the totals over denominators that are known beforehand, ``Σ totalᵢ / Wᵢ``."""

    def share(loss: Loss | Mean) -> tuple[tuple[Tensor, Tensor | None], ...]:
        if len(loss.terms) != len(weights):
            raise ValueError(
                f"weights(batch) must be a weight for each term of the loss, which has {len(loss.terms)}, got "
                f"{len(weights)}"
            )
        shares = [term.total / weight for term, weight in zip(loss.terms, weights, strict=True)]
        return ((functools.reduce(torch.add, shares), None),)

    return share


def gradients_of(
    function: Callable[[dict[str, Tensor]], tuple[Loss | Mean, Any]],
    params: TensorDictBase,
    others: Any = (),
    *,
    outputs: Outputs,
    scale: Tensor | None = None,
    traced: bool = False,
) -> tuple[tuple[TensorDict, ...], Loss | Mean, Any]:
    """Return the gradient of each output of the loss; the loss; and what else ``function`` returned.

    Args:
        function: ``(params by name) -> (loss, anything made of tensors)``.
        params: flat TensorDict of the parameters to differentiate by.
        others: what else ``function`` reads (frozen parameters, buffers, the batch), in any nesting.
        outputs: what of the loss to differentiate: :func:`totals`, :func:`value` or :func:`over`.
        scale: 0-d, a power of two: what the backward pass is multiplied by, so that half-precision gradients do not
            vanish, and its results divided by. (A sum over examples has a gradient larger by its weight than a mean,
            and would overflow: its own share of the scale is smaller by the next power of two.)
        traced: a trace is under way that cannot be seen from here.

    Outside any functorch transform, outside compilation, and where neither ``params`` nor ``others`` ask for a
    derivative of the gradient, ``torch.autograd.grad`` on detached leaves is used: it is as pure, and half the cost of
    ``torch.func``. A tensor that ``function`` closes over is a constant.
    """
    names = list(params.keys())
    leaves = {name: params[name] for name in names}
    engine = _by_func if traced or _needs_func(leaves, others) else _by_autograd
    gradients, loss, rest = engine(function, leaves, outputs, scale)
    trees = tuple(TensorDict(dict(zip(names, each, strict=True)), batch_size=params.batch_size) for each in gradients)
    return trees, loss, rest


def _needs_func(leaves: dict[str, Tensor], others: Any) -> bool:
    if _tree.is_transformed() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and (any(leaf.requires_grad for leaf in leaves.values()) or _asks(others))


def _asks(value: Any) -> bool:
    """Whether anything in a nesting asks for a derivative."""
    if isinstance(value, Tensor):
        return value.requires_grad
    if isinstance(value, dict) or is_tensor_collection(value):
        return any(_asks(inner) for inner in value.values())
    return isinstance(value, (tuple, list)) and any(_asks(inner) for inner in value)


def _by_autograd(
    function: Any, leaves: dict[str, Tensor], outputs_of: Outputs, scale: Tensor | None
) -> tuple[list[Any], Loss | Mean, Any]:
    if torch.is_inference_mode_enabled():
        raise RuntimeError("a step needs gradients, and torch.inference_mode() forbids them: leave it around the step")
    with torch.enable_grad():
        inputs = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        loss, rest = function(inputs)
        outputs = outputs_of(loss)
    wanted = list(inputs.values())
    if not any(output.requires_grad for output, _ in outputs):
        raise ValueError(
            "the loss does not depend on any trainable parameter: check that the objective neither detaches it nor "
            "runs under torch.no_grad()"
        )
    gradients = []
    for position, (output, weight) in enumerate(outputs):
        if output.requires_grad:
            seed = None if scale is None else _seed(output, weight, scale)
            last = position == len(outputs) - 1
            gradient = torch.autograd.grad(
                output, wanted, seed, retain_graph=not last, allow_unused=True, materialize_grads=True
            )
            gradients.append(gradient if seed is None else [_unscaled(leaf, seed) for leaf in gradient])
        else:  # a term without parameters
            gradients.append(tuple(torch.zeros_like(leaf) for leaf in wanted))
    return gradients, _detached(loss), _detached(rest)


def _detached(value: Any) -> Any:
    """Return a nesting with its tensors detached."""
    if isinstance(value, Tensor):
        return value.detach() if value.requires_grad else value
    if type(value) is dict:
        return {name: _detached(inner) for name, inner in value.items()}
    if type(value) is tuple:
        return tuple(_detached(inner) for inner in value)
    if type(value) is Mean:
        return Mean(_detached(value.total), _detached(value.weight))
    return pytree.tree_map_only(Tensor, Tensor.detach, value)


def _by_func(
    function: Any, leaves: dict[str, Tensor], outputs_of: Outputs, scale: Tensor | None
) -> tuple[list[Any], Loss | Mean, Any]:
    def differentiated(inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], Any]:
        loss, rest = function(inputs)
        return tuple(output for output, _ in outputs_of(loss)), (loss, rest)

    result: Any = torch.func.vjp(differentiated, leaves, has_aux=True)
    outputs, pull_back, (loss, rest) = result
    seeds = [torch.ones_like(output) for output in outputs]
    if scale is not None:
        seeds = [_seed(output, weight, scale) for output, (_, weight) in zip(outputs, outputs_of(loss), strict=True)]
    gradients = []
    for position, seed in enumerate(seeds):
        one_hot = tuple(seed if i == position else torch.zeros_like(output) for i, output in enumerate(outputs))
        (gradient,) = pull_back(one_hot)
        gradients.append(tuple(leaf if scale is None else _unscaled(leaf, seed) for leaf in gradient.values()))
    return gradients, loss, rest


def _seed(output: Tensor, weight: Tensor | None, scale: Tensor) -> Tensor:
    """Return what a backward pass begins with: the scale, over the next power of two of the output's weight."""
    if weight is not None:
        scale = scale * torch.exp2(-torch.ceil(torch.log2(torch.clamp(weight, min=1))))
    return scale.to(output.dtype)


def _unscaled(gradient: Tensor, seed: Tensor) -> Tensor:
    return gradient / seed.to(gradient.dtype)


pytree.register_pytree_node(
    Gradient,
    lambda g: ([g.total, g.weight, g.buffers, g.metrics], None),
    lambda children, _: Gradient(*children),
    serialized_type_name="purestep.Gradient",
)
