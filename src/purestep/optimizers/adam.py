"""Adam and its descendants."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext


def matrices_only(name: str, parameter: Tensor) -> bool:
    """A ``decay_mask`` that decays weights and spares biases and norms: parameters of two dimensions or more."""
    return parameter.dim() >= 2


def adamw(
    rate: Hyperparameter,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
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
        betas: two numbers in [0, 1).
        eps: at least 0.
        weight_decay: at least 0; torch's default is 0.01, Optax's 1e-4.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`matrices_only`; ``None`` decays all.
        amsgrad, maximize: as in torch.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range.
    """
    updates.check_hyperparameter("rate", rate)
    beta1, beta2 = _check_betas(betas)
    _checks.number("eps", eps, minimum=0)
    _checks.number("weight_decay", weight_decay, minimum=0)
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
        rate_now = updates.plain(updates.resolve(rate, context))
        count = state["count"] + 1
        step_size, root_correction = _corrections(rate_now, beta1, beta2, count)
        mean = _tree.map_leaves(lambda m, g: torch.lerp(m, g, 1 - beta1), state["exp_avg"], grads)
        square = _tree.map_leaves(lambda v, g: (v * beta2).addcmul(g, g, value=1 - beta2), state["exp_avg_sq"], grads)
        after = {"exp_avg": mean, "exp_avg_sq": square, "count": count}
        used = square
        if amsgrad:
            used = after["max_exp_avg_sq"] = _tree.map_leaves(torch.maximum, state["max_exp_avg_sq"], square)

        def moved(name: str, p: Tensor, m: Tensor, v: Tensor) -> Tensor:
            if weight_decay and (decay_mask is None or decay_mask(name, p)):
                p = p * (1 - rate_now * weight_decay)
            return p.addcdiv(m * step_size, updates.safe_sqrt(v) / root_correction + eps)

        params = _tree.map_with_names(moved, params, mean, used)
        return params, TensorDict(after, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"learning_rate": updates.as_tensor(updates.resolve(rate, context), context.step)}

    return Optimizer(init, update, hyperparams)


def _corrections(
    rate: float | Tensor, beta1: float, beta2: float, count: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """Return ``-γ / (1 - β₁ᵗ)`` and ``√(1 - β₂ᵗ)`` in float64, as Python floats where torch would have them."""
    t = updates.plain(count.to(torch.float32 if count.device.type == "mps" else torch.float64))
    return -(rate / (1 - beta1**t)), (1 - beta2**t) ** 0.5


def _check_betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers in [0, 1), got {betas!r}")
    for position, beta in enumerate(betas):
        _checks.number(f"betas[{position}]", beta, minimum=0, below=1)
    return betas[0], betas[1]
