"""Transformations that bound gradients."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.transforms._leaves import paired, without_state
from purestep.transforms.kinds import Axes, unit_axes
from purestep.updates import GradientTransformation, Hyperparameter, Tree, UpdateContext


def global_norm(tree: Tree) -> Tensor:
    """Return ``√(Σ x²)`` over all entries of all leaves, 0-d, summed in float32 at least.

    Its derivative at zero is zero, where the plain square root's would be NaN; the forward bits are the same.
    """
    return updates.safe_sqrt(updates.squares(tree).sum())


@updates.recorded
def clip_by_global_norm(max_norm: Hyperparameter, *, eps: float = 0.0) -> GradientTransformation:
    """Scale the whole gradient down to a norm of at most ``max_norm``: ``g · min(1, max_norm / (‖g‖ + eps))``.

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks" (2013). The derivative at
    ``g = 0`` is that of the identity. The norm before clipping is reported as ``"grad_norm"``, and is the state,
    ``{"norm": 0-d}``.

    Args:
        max_norm: a number above 0, a 0-d tensor, or a schedule.
        eps: added to the norm; ``torch.nn.utils.clip_grad_norm_`` has 1e-6, which shrinks a norm equal to ``max_norm``.

    Raises:
        TypeError, ValueError: ``max_norm`` that is not above 0, or ``eps`` below 0.
    """
    updates.check_hyperparameter("max_norm", max_norm, minimum=None, above=0)
    _checks.number("eps", eps, minimum=0)

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "clip_by_global_norm")
        return TensorDict({"norm": torch.zeros_like(global_norm(params))}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        norm = global_norm(grads)
        factor = updates.plain(shrinking(norm + eps, updates.now(max_norm, context)))
        clipped = _tree.named(names, _each.arithmetic(g, factor).mul(g, factor), grads)
        return clipped, TensorDict({"norm": norm}, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"grad_norm": state["norm"]}

    return GradientTransformation(init, update, hyperparams)


@updates.recorded
def clip_by_norm(max_norm: Hyperparameter, *, eps: float = 0.0) -> GradientTransformation:
    r"""Scale each leaf of the gradient by itself down to a norm of at most ``max_norm``.

    .. math:: g \leftarrow g \, \min\!\left(1, \frac{\text{max\_norm}}{\lVert g \rVert + \text{eps}}\right)

    Not smooth where the norm is ``max_norm``; there, and at ``g = 0``, the derivative is the identity's. No state.
    Torch's counterpart is ``torch.nn.utils.clip_grad_norm_`` called for one parameter at a time, with ``eps=1e-6``.

    Args:
        max_norm, eps: as in :func:`clip_by_global_norm`.

    Raises:
        TypeError, ValueError: as :func:`clip_by_global_norm`.
    """
    updates.check_hyperparameter("max_norm", max_norm, minimum=None, above=0)
    _checks.number("eps", eps, minimum=0)

    def clipped(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        bound = updates.now(max_norm, context)
        return [(leaf * shrinking(norm_over(leaf) + eps, bound)).to(leaf.dtype) for leaf in g]

    return without_state("clip_by_norm", clipped)


@updates.recorded
def clip_by_value(max_value: Hyperparameter) -> GradientTransformation:
    r"""Clip each entry of the gradient into ``[-max_value, max_value]``, as ``torch.nn.utils.clip_grad_value_``.

    .. math:: g \leftarrow \min(\max(g, -\text{max\_value}), \text{max\_value})

    Not smooth where an entry is a bound; the derivative there is 1. An infinite entry becomes a bound, and NaN stays
    NaN. No state. Optax has it as ``clip``.

    Args:
        max_value: a number above 0, a 0-d tensor, or a schedule.

    Raises:
        TypeError, ValueError: ``max_value`` that is not above 0.
    """
    updates.check_hyperparameter("max_value", max_value, minimum=None, above=0)

    def clipped(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        bound: Any = updates.now(max_value, context)
        return [leaf.clamp(-bound, bound).to(leaf.dtype) for leaf in g]

    return without_state("clip_by_value", clipped)


@updates.recorded
def adaptive_clip(clipping: Hyperparameter, *, eps: float = 1e-3, axes: Axes = unit_axes) -> GradientTransformation:
    r"""Bound the gradient of each unit by the norm of its weights (AGC). With G a unit's gradient and W its weights,

    .. math:: G \leftarrow G \, \min\!\left(1, \lambda \, \frac{\max(\lVert W \rVert, \text{eps})}{\lVert G \rVert}
        \right), \qquad \lambda = \text{clipping}

    Source: Brock et al., "High-performance large-scale image recognition without normalization", 2021,
    https://arxiv.org/abs/2102.06171, equation 3. A unit is what ``axes`` says: by default a row of a weight (an output
    of a linear layer or of a convolution, a row of an embedding), and the whole of a vector. The paper leaves the last
    layer out: ``masked(adaptive_clip(0.01), ...)`` does.

    Not smooth at the bound, where the derivative is the identity's, as it is at ``G = 0``, and where the norm of the
    weights is ``eps``, where it is that of the norm. No state.

    Args:
        clipping: λ, a number above 0, a 0-d tensor, or a schedule; the paper has 0.01 to 0.16.
        eps: above 0, the least norm that weights count for, so that weights of zero can grow.
        axes: ``(name, parameter) -> dimensions that a norm runs over``: :func:`unit_axes`, or ``unit_axes_of(model)``,
            which knows transposed convolutions.

    Raises:
        TypeError, ValueError: ``clipping`` or ``eps`` that is not above 0, ``axes`` that is no function.
    """
    updates.check_hyperparameter("clipping", clipping, minimum=None, above=0)
    _checks.number("eps", eps, above=0)
    check_axes(axes)

    def clipped(names: list[str], g: list[Tensor], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        ratio, after = updates.now(clipping, context), []
        for name, grad, weight in zip(names, g, p, strict=True):
            dims = axes(name, weight)
            bound = ratio * norm_over(weight, dims).clamp(min=eps)
            after.append((grad * shrinking(norm_over(grad, dims), bound)).to(grad.dtype))
        return after

    return without_state("adaptive_clip", clipped)


def check_axes(axes: object) -> None:
    """Raise ``TypeError`` where ``axes`` is no function."""
    if not callable(axes):
        raise TypeError(f"axes must be a function (name, parameter) -> dimensions, such as unit_axes, got {axes!r}")


def norm_over(leaf: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Return the norm over some dimensions, which stay with length 1, or 0-d over all; in float32 at least."""
    squares = updates.wide(leaf).square()
    return updates.safe_sqrt(squares.sum() if dims is None else squares.sum(dims, keepdim=True))


def norms(leaves: list[Tensor], *, per_leaf: bool) -> list[Tensor]:
    """Return the norm of each leaf, or for each the one over all of them."""
    if per_leaf:
        return [norm_over(leaf) for leaf in leaves]
    squares = torch.stack([updates.wide(leaf).square().sum() for leaf in leaves])
    return [updates.safe_sqrt(squares.sum())] * len(leaves)


def shrinking(norm: Tensor, bound: float | Tensor) -> Tensor:
    """Return ``min(1, bound / norm)``, with the derivative of 1 where the norm is zero or the bound itself."""
    above = norm > bound
    # The inner `where` keeps the derivative of the branch that is not taken finite.
    return torch.where(above, bound / torch.where(above, norm, torch.ones_like(norm)), 1.0)
