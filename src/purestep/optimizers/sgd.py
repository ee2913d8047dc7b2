"""Stochastic gradient descent, with momentum."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _each, _tree, updates
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext


def sgd(
    rate: Hyperparameter,
    *,
    momentum: Hyperparameter = 0.0,
    dampening: Hyperparameter = 0.0,
    nesterov: bool = False,
    weight_decay: Hyperparameter = 0.0,
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
        rate, momentum, dampening, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule. The number
            zero leaves its term out.
        nesterov: needs momentum above 0 and no dampening.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    updates.check_hyperparameter("rate", rate)
    for name, value in (("momentum", momentum), ("dampening", dampening), ("weight_decay", weight_decay)):
        updates.check_hyperparameter(name, value)
    keeps_velocity, damped, decays = (not updates.is_zero(value) for value in (momentum, dampening, weight_decay))
    if nesterov and (not keeps_velocity or damped):
        raise ValueError(
            f"nesterov=True needs momentum above 0 and dampening 0, got momentum={momentum} and dampening={dampening}"
        )

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "sgd")
        if not keeps_velocity:
            return TensorDict({}, batch_size=[])
        count = torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
        return TensorDict({"momentum_buffer": _tree.zeros_like(params), "count": count}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        step_size, friction = -updates.now(rate, context), updates.now(momentum, context)
        names = list(params.keys())
        p, g = _tree.leaves(params, names), _tree.leaves(grads, names)
        decay, damping = updates.now(weight_decay, context), updates.now(dampening, context)
        buffers = _tree.leaves(state["momentum_buffer"], names) if keeps_velocity else []
        each = _each.arithmetic(p, g, buffers, step_size, friction, decay, damping)
        if maximize:
            g = [torch.neg(leaf) for leaf in g]
        if decays:
            g = each.add_scaled(g, p, decay)
        if not keeps_velocity:
            return _tree.named(names, each.add_scaled(p, g, step_size), params), state
        velocity = each.mul(buffers, friction)
        velocity = each.add_scaled(velocity, g, 1 - damping)
        if damped:  # With none, a buffer of zeros gives the raw gradient by itself.
            velocity = [torch.where(state["count"] == 0, g, v) for g, v in zip(g, velocity, strict=True)]
        direction = each.add_scaled(g, velocity, friction) if nesterov else velocity
        after = {"momentum_buffer": _tree.named(names, velocity, params), "count": state["count"] + 1}
        params = _tree.named(names, each.add_scaled(p, direction, step_size), params)
        return params, TensorDict(after, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"learning_rate": updates.as_tensor(updates.resolve(rate, context), context.step)}

    return Optimizer(init, update, hyperparams)
