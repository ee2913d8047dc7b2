"""Transformations that bound gradients."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.updates import GradientTransformation, Hyperparameter, Tree, UpdateContext


def global_norm(tree: Tree) -> Tensor:
    """Return ``√(Σ x²)`` over all entries of all leaves, 0-d, summed in float32 at least.

    Its derivative at zero is zero, where the plain square root's would be NaN; the forward bits are the same.
    """
    return updates.safe_sqrt(updates.squares(tree).sum())


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
        norm, bound = global_norm(grads), updates.now(max_norm, context)
        above = norm + eps > bound
        # The inner `where` keeps the derivative of the branch that is not taken finite.
        scale = torch.where(above, bound / torch.where(above, norm + eps, torch.ones_like(norm)), 1.0)
        clipped = _tree.map_leaves(lambda leaf: (leaf * scale).to(leaf.dtype), grads)
        return clipped, TensorDict({"norm": norm}, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"grad_norm": state["norm"]}

    return GradientTransformation(init, update, hyperparams)
