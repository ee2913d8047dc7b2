"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext


def sgd(
    rate: Hyperparameter,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> Optimizer:
    """Gradient descent with momentum, as ``torch.optim.SGD``.

    With g the gradient, λ the weight decay, μ the momentum, τ the dampening, γ the rate and θ the parameter::

        g ← g + λθ
        b ← g at the first update, μb + (1 - τ)g after it
        θ ← θ - γ(g + μb) with Nesterov's momentum, θ - γb otherwise

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013), in the form
    of torch, where the rate multiplies the whole velocity and the first velocity is the raw gradient, undamped.

    State: none without momentum; otherwise ``momentum_buffer`` (b, as the parameters: one number a parameter) and
    ``count`` (int64, 0-d). Smooth everywhere, so its derivatives need no convention.

    Args:
        rate: a number of at least 0, a 0-d tensor, or a schedule.
        momentum, dampening, weight_decay: numbers of at least 0.
        nesterov: needs momentum above 0 and no dampening.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    updates.check_hyperparameter("rate", rate)
    for name, value in (("momentum", momentum), ("dampening", dampening), ("weight_decay", weight_decay)):
        _checks.number(name, value, minimum=0)
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(
            f"nesterov=True needs momentum above 0 and dampening 0, got momentum={momentum} and dampening={dampening}"
        )

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "sgd")
        if momentum == 0:
            return TensorDict({}, batch_size=[])
        count = torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
        return TensorDict({"momentum_buffer": _tree.zeros_like(params), "count": count}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        step_size = -updates.plain(updates.resolve(rate, context))
        if maximize:
            grads = _tree.map_leaves(torch.neg, grads)
        if weight_decay:
            grads = _tree.map_leaves(lambda g, p: updates.add_scaled(g, p, weight_decay), grads, params)
        if momentum == 0:
            return _tree.map_leaves(lambda p, g: updates.add_scaled(p, g, step_size), params, grads), state

        def velocity_of(buffer: Tensor, g: Tensor) -> Tensor:
            moved = updates.add_scaled(buffer * momentum, g, 1 - dampening)
            # With no dampening, a buffer of zeros gives the raw gradient by itself.
            return torch.where(state["count"] == 0, g, moved) if dampening else moved

        velocity = _tree.map_leaves(velocity_of, state["momentum_buffer"], grads)
        direction = (
            _tree.map_leaves(lambda g, b: updates.add_scaled(g, b, momentum), grads, velocity) if nesterov else velocity
        )
        after = TensorDict({"momentum_buffer": velocity, "count": state["count"] + 1}, batch_size=state.batch_size)
        return _tree.map_leaves(lambda p, d: updates.add_scaled(p, d, step_size), params, direction), after

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"learning_rate": updates.as_tensor(updates.resolve(rate, context), context.step)}

    return Optimizer(init, update, hyperparams)
