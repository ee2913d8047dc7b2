"""Averages of parameters around an optimizer, to evaluate with: ``eval_params`` is what ``ps.eval_step`` asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.state import check_optimizer
from purestep.transforms._leaves import zero_count
from purestep.transforms.moments import zero_weight
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext


@updates.recorded
def ema(optimizer: Optimizer, decay: Hyperparameter, *, debias: bool = True) -> Optimizer:
    r"""Keep an exponential moving average of the parameters, and evaluate with it; training is the optimizer's own.

    .. math:: w \leftarrow \beta w + (1 - \beta), \qquad
        \bar\theta \leftarrow \bar\theta + \frac{1 - \beta}{w} (\theta - \bar\theta), \qquad \beta = \text{decay}

    This is :math:`\sum_i \beta^{t-i} \theta_i / \sum_i \beta^{t-i}` over the parameters after each update, the
    corrected average of which no part is the first parameters; before any update it is those. Without ``debias`` it
    begins at the parameters after the first update, and each later one has the weight :math:`1 - \beta`: so does
    ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``, whose bits it has.

    Source: Polyak & Juditsky, "Acceleration of stochastic approximation by averaging", 1992,
    https://doi.org/10.1137/0330046. Linear in the parameters. Buffers are not averaged: where they depend on the
    parameters, as a BatchNorm's statistics do, compute them anew for the average (see the page on optimizers).

    State: ``inner``, the optimizer's own; ``average``, as the parameters but in float32 at least, one number a
    parameter; ``weight``, float64, 0-d.

    Args:
        optimizer: any; what is averaged is what it would evaluate with itself.
        decay: β, a number in [0, 1), a 0-d tensor, or a schedule.
        debias: as above.

    Raises:
        TypeError, ValueError: no optimizer, ``decay`` out of its range, ``debias`` is no bool.
    """
    check_optimizer(optimizer)
    updates.check_hyperparameter("decay", decay, below=1)
    updates.check_flag("debias", debias)

    def weigh(state: Tree, context: UpdateContext) -> tuple[Tensor, dict[str, Tensor]]:
        before = state["weight"]
        share = 1 - updates.as_tensor(updates.resolve(decay, context), before)
        total = (before + (1 - before) * share).to(before.dtype)
        if debias:
            return share / total, {"weight": total}
        first = before == 0
        return torch.where(first, 1.0, share), {"weight": torch.ones_like(before)}

    return _averaged(optimizer, lambda params: {"weight": zero_weight(params)}, weigh, total="weight")


@updates.recorded
def swa(optimizer: Optimizer, *, start: int = 1, every: int = 1) -> Optimizer:
    r"""Keep the mean of the parameters after every so many updates, from one of them on, and evaluate with it.

    .. math:: n \leftarrow n + 1, \qquad \bar\theta \leftarrow \bar\theta + \frac{1}{n} (\theta - \bar\theta)
        \qquad \text{after the updates } t = \text{start} + i \cdot \text{every}, \; i \ge 0

    With ``start=1`` and ``every=1`` it is Polyak's average of all iterates. Before ``start`` the parameters themselves
    are evaluated. Training is the optimizer's own; give it the schedule that the paper asks for (cyclic, or constant).

    Source: Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018,
    https://arxiv.org/abs/1803.05407; Polyak & Juditsky, 1992, https://doi.org/10.1137/0330046. In float32 the bits are
    those of ``torch.optim.swa_utils.AveragedModel``, which in float64 has 1/n in float32 too. Linear in the parameters.
    Buffers are not averaged, as in :func:`ema`.

    State: ``inner``, the optimizer's own; ``average``, as the parameters but in float32 at least, one number a
    parameter; ``count`` (updates) and ``averaged`` (n), int64, 0-d.

    Args:
        optimizer: any; what is averaged is what it would evaluate with itself.
        start, every: updates, at least 1.

    Raises:
        TypeError, ValueError: no optimizer; ``start`` or ``every`` is no int of at least 1.
    """
    check_optimizer(optimizer)
    _checks.integer("start", start, minimum=1)
    _checks.integer("every", every, minimum=1)

    def weigh(state: Tree, context: UpdateContext) -> tuple[Tensor, dict[str, Tensor]]:
        count = state["count"] + 1
        taken = (count >= start) & ((count - start) % every == 0)
        averaged = state["averaged"] + taken.to(torch.int64)
        one = updates.as_tensor(1.0, count)
        share = torch.where(taken, one / averaged.clamp(min=1), torch.zeros_like(one))
        return share, {"count": count, "averaged": averaged}

    def counters(params: Tree) -> dict[str, Tensor]:
        return {"count": zero_count(params), "averaged": zero_count(params)}

    return _averaged(optimizer, counters, weigh, total="averaged")


def _averaged(
    optimizer: Optimizer,
    counters: Callable[[Tree], dict[str, Tensor]],
    weigh: Callable[[Tree, UpdateContext], tuple[Tensor, dict[str, Tensor]]],
    *,
    total: str,
) -> Optimizer:
    """Return the optimizer with an average around it.

    Args:
        counters: the first values of what ``weigh`` counts in.
        weigh: ``(state, context) -> (share, counters)``: the average goes that share of the way to the parameters.
        total: the counter that is zero until something is averaged.
    """

    def init(params: Tree) -> TensorDict:
        inner = optimizer.init(params)
        average = _tree.map_leaves(lambda leaf: updates.wide(leaf).clone(), params)
        return TensorDict({"inner": inner, "average": average, **counters(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        params, inner = optimizer.update(grads, state["inner"], params, context)
        names = list(params.keys())
        average = _tree.leaves(state["average"], names)
        latest = [updates.wide(leaf) for leaf in _tree.leaves(optimizer.eval_params(params, inner), names)]
        share, counts = weigh(state, context)
        share_now = updates.plain(share)
        if isinstance(share_now, Tensor) or share_now != 0:  # a number where it can be read
            average = _each.arithmetic(average, latest, share_now).lerp(average, latest, share_now)
        after: dict[str, Any] = {"inner": inner, "average": _tree.named(names, average, params), **counts}
        return params, TensorDict(after, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return optimizer.hyperparams(state["inner"], context)

    def eval_params(params: Tree, state: Tree) -> Tree:
        begun = state[total] > 0
        own = optimizer.eval_params(params, state["inner"])
        average = {
            name: torch.where(begun, leaf.to(own[name].dtype), own[name]) for name, leaf in state["average"].items()
        }
        return _tree.overlay(params, _tree.overlay(own, TensorDict(average, batch_size=params.batch_size)))

    return Optimizer(init, update, hyperparams, eval_params)
