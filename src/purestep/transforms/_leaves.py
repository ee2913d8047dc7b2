"""What transformations share: leaves in one order, checked, and transformations without a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _tree, updates
from purestep.updates import GradientTransformation, Tree, UpdateContext

# (names, gradients, parameters, context) -> gradients
Leafwise = Callable[[list[str], list[Tensor], list[Tensor], UpdateContext], list[Tensor]]


def paired(grads: Tree, params: Tree) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Return the parameters' names, and gradients and parameters in their order.

    Raises:
        KeyError: a gradient too few or too many; a step says in its words to whom it belongs.
        ValueError: one of another shape than its parameter.
        TypeError: one of another dtype, which would change the parameter's.
    """
    names = list(params.keys())
    g, p = _tree.leaves(grads, names), _tree.leaves(params, names)
    for name, grad, parameter in zip(names, g, p, strict=True):
        if grad.shape != parameter.shape:
            raise ValueError(
                f"grads[{name!r}] must have its parameter's shape {tuple(parameter.shape)}, got {tuple(grad.shape)}"
            )
        if grad.dtype != parameter.dtype:
            raise TypeError(f"grads[{name!r}] must have its parameter's dtype {parameter.dtype}, got {grad.dtype}")
    return names, g, p


def check_betas(betas: Any, *, count: int = 2) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are so many hyperparameters in [0, 1)."""
    if not isinstance(betas, (tuple, list)) or len(betas) != count:
        raise TypeError(f"betas must be {'two' if count == 2 else 'three'} numbers in [0, 1), got {betas!r}")
    for position, beta in enumerate(betas):
        updates.check_hyperparameter(f"betas[{position}]", beta, below=1)


def without_state(owner: str, fn: Leafwise) -> GradientTransformation:
    """Return the transformation that keeps nothing and whose gradients are ``fn``'s; ``owner`` is its public name."""

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, owner)
        return TensorDict({}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, p = paired(grads, params)
        return _tree.named(names, fn(names, g, p, context), grads), state

    update.__qualname__ = f"{owner}.<locals>.update"  # the laws' reports name a rule by it
    return GradientTransformation(init, update)


def zero_count(params: Tree) -> Tensor:
    """Return a count that begins at zero: int64, 0-d, on the parameters' device."""
    return torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
