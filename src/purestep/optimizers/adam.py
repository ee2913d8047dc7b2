"""Adam, with decay in the gradient or apart from it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from purestep import _checks, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.transforms._leaves import check_betas
from purestep.updates import Hyperparameter, Optimizer


def matrices_only(name: str, parameter: Tensor) -> bool:
    """A ``decay_mask`` that decays weights and spares biases and norms: parameters of two dimensions or more."""
    return parameter.dim() >= 2


@updates.recorded
def adam(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.0,
    decay_mask: DecayMask = None,
    amsgrad: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with the decay in the gradient (L2), bit for bit ``torch.optim.Adam(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 1::

        g ← g + λθ                              where decay_mask says so
        m ← m + (1 - β₁)(g - m)
        v ← β₂v + (1 - β₂)g²                    (with amsgrad, v̂ ← max(v̂, v) takes v's place below)
        θ ← θ - γ / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    Source: Kingma & Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_ (2015).
    State, smoothness, arguments and errors are those of :func:`adamw`, except that nothing decays by default.
    """
    return _adam("adam", rate, betas, eps, weight_decay, decay_mask, amsgrad, maximize, decoupled=False)


@updates.recorded
def adamw(
    rate: Hyperparameter,
    *,
    betas: tuple[Hyperparameter, Hyperparameter] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Hyperparameter = 0.01,
    decay_mask: DecayMask = None,
    amsgrad: bool = False,
    maximize: bool = False,
) -> Optimizer:
    """Adam with decoupled weight decay, bit for bit ``torch.optim.AdamW(foreach=False)`` in eager mode on CPU.

    With g the gradient, γ the rate, λ the decay and t the count of updates, from 1::

        θ ← θ(1 - γλ)                           where decay_mask says so
        m ← m + (1 - β₁)(g - m)
        v ← β₂v + (1 - β₂)g²                    (with amsgrad, v̂ ← max(v̂, v) takes v's place below)
        θ ← θ - γ / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + eps)

    Source: Loshchilov & Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_ (2019);
    AMSGrad: Reddi et al., `On the convergence of Adam and beyond <https://arxiv.org/abs/1904.09237>`_ (2018), with the
    maximum of the uncorrected v as in torch (Optax takes it of the corrected one).

    State: ``exp_avg`` (m) and ``exp_avg_sq`` (v), as the parameters: two numbers a parameter; with amsgrad a third,
    ``max_exp_avg_sq``; and ``count`` (int64, 0-d), so that a fresh optimizer at step 10,000 corrects its bias as a
    fresh one should. At v = 0 the derivative of the root is taken as zero; torch's is NaN there. Not smooth where
    amsgrad's maximum ties: each side has half of the derivative.

    Args:
        rate: a number of at least 0, a 0-d tensor, or a schedule.
        betas: each a number in [0, 1), a 0-d tensor, or a schedule.
        eps: at least 0.
        weight_decay: a number of at least 0, a 0-d tensor, or a schedule; torch's default is 0.01, Optax's 1e-4.
        decay_mask: ``(name, parameter) -> bool``, such as :func:`matrices_only`; ``None`` decays all.
        amsgrad, maximize: as in torch.

    Raises:
        TypeError, ValueError: a hyperparameter out of its range; by ``init``, parameters of no real dtype; by
            ``update``, a gradient of another shape than its parameter.
        KeyError: by ``update``, gradients or a state that belong to other parameters or to another optimizer.
    """
    return _adam("adamw", rate, betas, eps, weight_decay, decay_mask, amsgrad, maximize, decoupled=True)


def _adam(
    owner: str,
    rate: Hyperparameter,
    betas: tuple[Hyperparameter, Hyperparameter],
    eps: float,
    weight_decay: Hyperparameter,
    decay_mask: DecayMask,
    amsgrad: bool,
    maximize: bool,
    *,
    decoupled: bool,
) -> Optimizer:
    updates.check_flag("amsgrad", amsgrad)
    check_betas(betas)
    _checks.number("eps", eps, minimum=0)

    def advance(part: Part, h: Any) -> After:
        each, m, v = part.each, part.mean("exp_avg", h.beta1), part.mean_square("exp_avg_sq", h.beta2)
        after = {"exp_avg": m, "exp_avg_sq": v}
        if amsgrad:
            v = after["max_exp_avg_sq"] = each.maximum(part.kept["max_exp_avg_sq"], v)
        step_size = h.rate / (1 - h.beta1**part.t)
        denominator = each.add_(each.div_(each.sqrt(v), (1 - h.beta2**part.t) ** 0.5), eps)
        return After(each.addcdiv(part.p, m, denominator, -step_size), after, {})

    return leafwise(
        owner,
        advance,
        hyperparameters={"rate": rate, "beta1": betas[0], "beta2": betas[1]},
        trees=dict.fromkeys(("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] * amsgrad)), zeros),
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter" if decoupled else "gradient",
        maximize=maximize,
    )
