"""Adam and its descendants."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext


def matrices_only(name: str, parameter: Tensor) -> bool:
    """A ``decay_mask`` that decays weights and spares biases and norms: parameters of two dimensions or more."""
    return parameter.dim() >= 2


def adamw(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.01,
    decay_mask: Callable[[str, Tensor], bool] | None = None,
    amsgrad: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay, bit for bit ``torch.optim.AdamW(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 1::

        θ ← θ(1 - γλ)                           where decay_mask says so
        m ← m + (1 - β₁)(g - m)
        v ← β₂v + (1 - β₂)g²                    (with amsgrad, v̂ ← max(v̂, v) takes v's place below)
        θ ← θ - γ / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization" (2019); AMSGrad: Reddi et al. (2018), with the
    maximum of the uncorrected v as in torch (Optax takes it of the corrected one).

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; with amsgrad a third,
    ``max_exp_avg_sq``; and ``count`` (int64, 0-d), so that a fresh optimizer at step 10,000 corrects its bias as a
    fresh one should. At v = 0 the derivative of the root is taken as zero; torch's is NaN there. Not smooth where
    amsgrad's maximum ties.

    Args:
        rate: a number of at least 0, a 0-d tensor, or a schedule.
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        eps: at least 0.
        weight_decay: a number of at least 0, a 0-d tensor, or a schedule; torch's default is 0.01, Optax's 1e-4.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`matrices_only`; ``None`` decays all.
        amsgrad, maximize: as in torch.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    updates.check_hyperparameter("rate", rate)
    _check_betas(betas)
    _checks.number("eps", eps, minimum=0)
    updates.check_hyperparameter("weight_decay", weight_decay)
    if decay_mask is not None and not callable(decay_mask):
        raise TypeError(f"decay_mask must be a function (name, parameter) -> bool or None, got {decay_mask!r}")

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "adamw")
        count = torch.zeros((), dtype=torch.int64, device=next(iter(params.values())).device)
        moments = {
            name: _tree.zeros_like(params) for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] * amsgrad))
        }
        return TensorDict({**moments, "count": count}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        if maximize:
            grads = _tree.map_leaves(torch.neg, grads)
        rate_now, decay = updates.now(rate, context), updates.now(weight_decay, context)
        beta1, beta2 = (updates.now(beta, context) for beta in betas)
        count = state["count"] + 1
        step_size, root_correction = _corrections(rate_now, beta1, beta2, count)
        names = list(params.keys())
        p, g, m, v = (_tree.leaves(tree, names) for tree in (params, grads, state["exp_avg"], state["exp_avg_sq"]))
        each = _each.arithmetic(p, g, m, v, rate_now, decay, beta1, beta2)
        m = each.lerp(m, g, 1 - beta1)
        v = each.addcmul(each.mul(v, beta2), g, g, 1 - beta2)
        after = {"exp_avg": _tree.named(names, m, params), "exp_avg_sq": _tree.named(names, v, params)}
        if amsgrad:
            v = each.maximum(_tree.leaves(state["max_exp_avg_sq"], names), v)
            after["max_exp_avg_sq"] = _tree.named(names, v, params)
        p = decayed(each, names, p, 1 - rate_now * decay)
        p = each.addcdiv(p, each.mul(m, step_size), each.add(each.div(each.sqrt(v), root_correction), eps))
        return _tree.named(names, p, params), TensorDict({**after, "count": count}, batch_size=state.batch_size)

    def decayed(each: _each.Loop, names: list[str], params: list[Tensor], factor: float | Tensor) -> list[Tensor]:
        if updates.is_zero(weight_decay):
            return params
        if decay_mask is None:
            return each.mul(params, factor)
        return [(p * factor).to(p.dtype) if decay_mask(name, p) else p for name, p in zip(names, params, strict=True)]

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"learning_rate": updates.as_tensor(updates.resolve(rate, context), context.step)}

    return Optimizer(init, update, hyperparams)


def _corrections(
    rate: float | Tensor, beta1: float | Tensor, beta2: float | Tensor, count: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """Return ``-γ / (1 - β₁ᵗ)`` and ``√(1 - β₂ᵗ)`` in float64, as Python floats where torch would have them."""
    t = updates.plain(count.to(torch.float32 if count.device.type == "mps" else torch.float64))
    return -(rate / (1 - beta1**t)), (1 - beta2**t) ** 0.5


def _check_betas(betas: tuple[Hyperparameter, Hyperparameter]) -> None:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers in [0, 1), got {betas!r}")
    for position, beta in enumerate(betas):
        updates.check_hyperparameter(f"betas[{position}]", beta, below=1)
