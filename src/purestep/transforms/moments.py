"""Transformations that remember: momentum, averages, and scales by second moments."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.transforms._leaves import check_betas, paired, zero_count
from purestep.updates import GradientTransformation, Hyperparameter, Tree, UpdateContext


@updates.recorded
def trace(decay: Hyperparameter, *, nesterov: bool = False) -> GradientTransformation:
    r"""Momentum: a decaying sum of gradients.

    .. math:: b \leftarrow \mu b + g, \qquad g \leftarrow b \text{, or } g + \mu b \text{ with Nesterov's}; \qquad
        \mu = \text{decay}

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013,
    https://proceedings.mlr.press/v28/sutskever13.html. ``chain(trace(m), sgd(rate))`` is ``sgd(rate, momentum=m)``, bit
    for bit. Linear in the gradients, so smooth.

    State: ``trace`` (b, as the parameters: one number a parameter).

    Args:
        decay: μ, a number in [0, 1), a 0-d tensor, or a schedule.
        nesterov: look ahead by one step.

    Raises:
        TypeError, ValueError: ``decay`` out of its range, ``nesterov`` is no bool.
    """
    updates.check_hyperparameter("decay", decay, below=1)
    updates.check_flag("nesterov", nesterov)

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "trace")
        return TensorDict({"trace": _tree.zeros_like(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        b, mu = _tree.leaves(state["trace"], names), updates.now(decay, context)
        each = _each.arithmetic(g, b, mu)
        b = each.add_scaled_(each.mul(b, mu), g, 1)
        after = each.add_scaled(g, b, mu) if nesterov else b
        return _tree.named(names, after, grads), _kept(state, trace=_tree.named(names, b, params))

    return GradientTransformation(init, update)


@updates.recorded
def ema(decay: Hyperparameter, *, debias: bool = True) -> GradientTransformation:
    r"""An exponential moving average of gradients (of parameters there is :func:`purestep.optimizers.ema`).

    .. math:: m \leftarrow m + (1 - \beta)(g - m), \qquad w \leftarrow \beta w + (1 - \beta), \qquad
        g \leftarrow m / w \text{, or } m \text{ without debias}; \qquad \beta = \text{decay}

    w is the sum of the weights that m gives, :math:`1 - \beta^t` after t updates of a constant β, and right for a
    schedule too. Linear in the gradients, so smooth.

    State: ``average`` (m, as the parameters: one number a parameter) and ``weight`` (w, float64, 0-d).

    Args:
        decay: β, a number in [0, 1), a 0-d tensor, or a schedule.
        debias: divide by w, so that an average of equal gradients is that gradient from the first update on.

    Raises:
        TypeError, ValueError: ``decay`` out of its range, ``debias`` is no bool.
    """
    updates.check_hyperparameter("decay", decay, below=1)
    updates.check_flag("debias", debias)

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "ema")
        return TensorDict({"average": _tree.zeros_like(params), "weight": zero_weight(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        m, beta = _tree.leaves(state["average"], names), updates.now(decay, context)
        weight = (state["weight"] * beta + (1 - beta)).to(state["weight"].dtype)
        total = updates.plain(weight)
        each = _each.arithmetic(g, m, beta, total)
        m = each.lerp(m, g, 1 - beta)
        after = each.div(m, total) if debias else m
        return _tree.named(names, after, grads), _kept(state, average=_tree.named(names, m, params), weight=weight)

    return GradientTransformation(init, update)


@updates.recorded
def scale_by_adam(
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 0.0,
) -> GradientTransformation:
    r"""Adam's direction: the debiased mean of the gradients over the root of their debiased mean square.

    .. math:: m \leftarrow m + (1 - \beta_1)(g - m), \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
        g \leftarrow \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t) + \text{eps\_root}} + \text{eps}}

    Source: Kingma & Ba, "Adam: a method for stochastic optimization", 2014, https://arxiv.org/abs/1412.6980. Equal to
    Optax's. ``chain(scale_by_adam(), add_decayed_weights(λ), sgd(γ))`` is AdamW of the rate γ and the decay λ but for
    rounding: :func:`purestep.adamw` has torch's bits. At v = 0 the derivative of the root is taken as zero; smooth
    elsewhere.

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; ``count`` (t, int64,
    0-d).

    Args:
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        eps, eps_root: at least 0.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    check_betas(betas)
    _checks.number("eps", eps, minimum=0)
    _checks.number("eps_root", eps_root, minimum=0)

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "scale_by_adam")
        moments = {name: _tree.zeros_like(params) for name in ("exp_avg", "exp_avg_sq")}
        return TensorDict({**moments, "count": zero_count(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        m, v = _tree.leaves(state["exp_avg"], names), _tree.leaves(state["exp_avg_sq"], names)
        beta1, beta2 = (updates.now(beta, context) for beta in betas)
        count = state["count"] + 1
        t = updates.plain(count.to(_float64_on(count)))
        each = _each.arithmetic(g, m, v, beta1, beta2, t)
        m = each.lerp(m, g, 1 - beta1)
        v = each.addcmul_(each.mul(v, beta2), g, g, 1 - beta2)
        root = _root(each, each.div(v, 1 - beta2**t), eps_root, eps)
        after = each.quotient_(each.div(m, 1 - beta1**t), root)
        moments = {"exp_avg": _tree.named(names, m, params), "exp_avg_sq": _tree.named(names, v, params)}
        return _tree.named(names, after, grads), _kept(state, **moments, count=count)

    return GradientTransformation(init, update)


@updates.recorded
def scale_by_rms(*, decay: Hyperparameter = 0.99, eps: float = 1e-8, eps_root: float = 0.0) -> GradientTransformation:
    r"""Divide the gradient by the root of a moving average of its square.

    .. math:: v \leftarrow \beta v + (1 - \beta) g^2, \qquad
        g \leftarrow \frac{g}{\sqrt{v + \text{eps\_root}} + \text{eps}}; \qquad \beta = \text{decay}

    Source: Tieleman & Hinton, "Lecture 6.5: rmsprop", 2012. ``chain(scale_by_rms(), sgd(rate))`` is
    ``torch.optim.RMSprop(lr=rate)`` but for rounding. Optax has decay 0.9, and its eps within the root: ``eps=0,
    eps_root=1e-8``. At v = 0 the derivative of the root is taken as zero; smooth elsewhere.

    State: ``square_avg`` (v, as the parameters: one number a parameter).

    Args:
        decay: β, a number in [0, 1), a 0-d tensor, or a schedule.
        eps, eps_root: at least 0, and one of them above 0, or a gradient of zero would be divided by zero.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    updates.check_hyperparameter("decay", decay, below=1)
    _checks.number("eps", eps, minimum=0)
    _checks.number("eps_root", eps_root, minimum=0)
    if eps == eps_root == 0:
        raise ValueError("one of eps and eps_root must be above 0, got 0 for both: a gradient of zero is divided by it")

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "scale_by_rms")
        return TensorDict({"square_avg": _tree.zeros_like(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        v, beta = _tree.leaves(state["square_avg"], names), updates.now(decay, context)
        each = _each.arithmetic(g, v, beta)
        v = each.addcmul_(each.mul(v, beta), g, g, 1 - beta)
        after = each.quotient(g, _root(each, v, eps_root, eps))
        return _tree.named(names, after, grads), _kept(state, square_avg=_tree.named(names, v, params))

    return GradientTransformation(init, update)


def zero_weight(params: Tree) -> Tensor:
    """Return a sum of weights that begins at zero: float64, 0-d (float32 on MPS), on the parameters' device."""
    count = zero_count(params)
    return torch.zeros_like(count, dtype=_float64_on(count))


def _root(each: _each.Loop, squares: list[Tensor], eps_root: float, eps: float) -> list[Tensor]:
    return each.add_(each.sqrt(each.add(squares, eps_root) if eps_root else squares), eps)


def _float64_on(like: Tensor) -> torch.dtype:
    return torch.float32 if like.device.type == "mps" else torch.float64


def _kept(state: Tree, **after: Tensor | TensorDict) -> TensorDict:
    return TensorDict(dict(after), batch_size=state.batch_size)
