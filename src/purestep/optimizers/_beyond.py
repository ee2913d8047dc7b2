"""What the optimizers that torch does not have share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import updates
from purestep.optimizers._leafwise import Part
from purestep.updates import Hyperparameter, Optimizer, Tree


def wide_scalars(optimizer: Optimizer, values: Mapping[str, float], **changes: Any) -> Optimizer:
    """Return the optimizer with these scalars of its state in float64 (float32 on MPS): a sum over all updates would
    stand still in float32.

    Args:
        optimizer: one of :func:`leafwise`.
        values: the first values by name.
        changes: other fields of the optimizer to replace.
    """

    def init(params: Tree) -> TensorDict:
        state = optimizer.init(params)
        like: Any = next(iter(params.values()))
        return TensorDict(
            {name: updates.as_tensor(values[name], like) if name in values else leaf for name, leaf in state.items()},
            batch_size=[],
        )

    return dataclasses.replace(optimizer, init=init, **changes)


def larger(first: float | Tensor, second: float | Tensor) -> float | Tensor:
    """Return the larger of two scalars. Where they tie, each has half of the derivative."""
    if isinstance(first, Tensor):
        return torch.maximum(first, updates.as_tensor(second, first))
    return torch.maximum(updates.as_tensor(first, second), second) if isinstance(second, Tensor) else max(first, second)


def add_decay(directions: list[Tensor], part: Part, decay: float | Tensor) -> list[Tensor]:
    """Return ``u + λθ`` where the part's mask holds, and ``u`` elsewhere."""
    if updates.is_zero(decay):
        return directions
    triples = zip(directions, part.p, decaying(part), strict=True)
    return [updates.add_scaled(u, p, decay) if decays else u for u, p, decays in triples]


def decaying(part: Part) -> list[bool]:
    """Return, for each parameter, whether it decays."""
    return [True] * len(part.p) if part.mask is None else part.mask


def rate_used(rate: Hyperparameter, context: updates.UpdateContext) -> dict[str, Tensor]:
    """Return the metric of the rate."""
    return {"learning_rate": updates.as_tensor(updates.resolve(rate, context), context.step)}
