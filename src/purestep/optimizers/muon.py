"""Muon: momentum made orthogonal, matrix by matrix."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.optimizers._leafwise import After, DecayMask, Part, leafwise, zeros
from purestep.transforms.partition import partition
from purestep.updates import Hyperparameter, Optimizer, Tree


@updates.recorded
def muon(
    rate: Hyperparameter,
    *,
    weight_decay: Hyperparameter = 0.1,
    decay_mask: DecayMask = None,
    momentum: Hyperparameter = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
    ns_steps: int = 5,
    ns_dtype: torch.dtype | None = torch.bfloat16,
    eps: float = 1e-7,
    adjust: str = "original",
    others: Optimizer | None = None,
    choose: Callable[[str, Tensor], bool] | None = None,
    maximize: bool = False,
) -> Optimizer:
    """Momentum made orthogonal, bit for bit ``torch.optim.Muon`` in eager mode on CPU.

    With G the gradient of a matrix θ of n rows and m columns, γ the rate, λ the decay and μ the momentum::

        B ← B + (1 - μ)(G - B)
        X = G + μ(B - G) with Nesterov's momentum, B otherwise; transposed where n > m
        X ← X / max(‖X‖, eps)
        X ← aX + (b(XXᵀ) + c(XXᵀ)²)X                        ns_steps times
        θ ← θ(1 - γλ)
        θ ← θ - γ · r · X                                   transposed back

    where r = √max(1, n / m) (``"original"``) or 0.2 √max(n, m) (``"match_rms_adamw"``). Source: Jordan et al.,
    `Muon: an optimizer for hidden layers <https://kellerjordan.github.io/posts/muon/>`_ (2024); the second r: Liu
    et al., `Muon is scalable for LLM training <https://arxiv.org/abs/2502.16982>`_ (2025). Optax iterates in the
    parameter's dtype and has another r.

    Muon is meant for the matrices inside a network; embeddings, the last layer, vectors and convolutions are for
    another optimizer: ``muon(rate, others=adamw(rate), choose=lambda name, p: p.dim() == 2 and name != "head")``.

    State: ``momentum_buffer`` (B), as the parameters: one number a parameter. With ``others`` it is a partition's
    (:func:`purestep.transforms.partition`) into ``"matrices"`` and ``"others"``.
    The iteration in bfloat16, torch's, has the derivatives of its formula, rounded to bfloat16, not those of
    differences, and in an ensemble it has other bits than alone, a few percent of an update apart, since a batched
    product of bfloat16 rounds otherwise and the iteration amplifies it. With ``ns_dtype=None`` it runs in the
    parameter's dtype, is the same in an ensemble, and smooth but where ‖X‖ = eps. At X = 0 the derivative of the
    norm is taken as zero. Of a parameter in bfloat16 torch, without
    nesterov, divides the momentum that it keeps by its norm; here it stays what it was.

    Args:
        rate, weight_decay: each a number of at least 0, a 0-d tensor, or a schedule.
        decay_mask: ``(name, parameter) -> bool``; ``None`` decays all.
        momentum: a number in [0, 1], a 0-d tensor, or a schedule.
        nesterov: as said.
        ns_coefficients, ns_steps, eps: a, b, c; the steps of the iteration, at least 0 and below 100; at least 0.
        ns_dtype: of the iteration, ``None`` for the parameter's.
        adjust: ``"original"`` or ``"match_rms_adamw"``.
        others: the optimizer of the parameters that are no matrices, or are not chosen.
        choose: ``(name, parameter) -> bool``, which matrices are Muon's; ``None`` for all parameters of two dimensions.
        maximize: ascend instead (``others`` has its own).

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`; by ``init``, ValueError where a parameter that is no matrix
            would be Muon's, or where ``others`` would have none.
    """
    updates.check_hyperparameter("momentum", momentum, maximum=1)
    updates.check_flag("nesterov", nesterov)
    _check_iteration(ns_coefficients, ns_steps, ns_dtype, eps)
    if adjust not in ("original", "match_rms_adamw"):
        raise ValueError(f"adjust must be one of 'original', 'match_rms_adamw', got {adjust!r}")
    if others is not None and not isinstance(others, Optimizer):
        raise TypeError(f"others must be an Optimizer or None, got {others!r} of type {type(others).__name__}")
    if choose is not None and not callable(choose):
        raise TypeError(f"choose must be a function (name, parameter) -> bool or None, got {choose!r}")
    if choose is not None and others is None:
        raise ValueError("choose needs others=, the optimizer of what is not chosen")

    def advance(part: Part, h: Any) -> After:
        each = part.each
        buffers = part.mean("momentum_buffer", h.momentum)
        directions = each.lerp(part.g, buffers, h.momentum) if nesterov else buffers
        params = []
        for p, direction in zip(part.p, directions, strict=True):
            whitened = orthogonalize(direction, ns_coefficients, ns_steps, eps, ns_dtype)
            params.append(updates.add_scaled(p, whitened.to(p.dtype), -(h.rate * _ratio(adjust, p))))
        return After(params, {"momentum_buffer": buffers}, {})

    matrices = leafwise(
        "muon",
        advance,
        hyperparameters={"rate": rate, "momentum": momentum},
        trees={"momentum_buffer": zeros},
        counts=False,
        weight_decay=weight_decay,
        decay_mask=decay_mask,
        decay="parameter",
        maximize=maximize,
    )
    matrices = _for_matrices(matrices)
    if others is None:
        return matrices
    choose = choose or (lambda name, parameter: parameter.dim() == 2)
    return partition(
        {"matrices": matrices, "others": others}, lambda name, p: "matrices" if choose(name, p) else "others"
    )


def orthogonalize(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float, dtype: torch.dtype | None
) -> Tensor:
    """Return ``matrix`` with its singular values brought near one by Newton and Schulz's iteration of degree five.

    Args:
        matrix: ``(n, m)``.
        coefficients, steps, eps: as in :func:`muon`.
        dtype: of the iteration and of what is returned; ``None`` for the matrix's own.
    """
    a, b, c = coefficients
    tall = matrix.size(0) > matrix.size(1)
    x = matrix if dtype is None else matrix.to(dtype)
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _ratio(adjust: str, matrix: Tensor) -> float:
    rows, columns = matrix.shape
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns)) if columns else 1.0


def _check_iteration(coefficients: Any, steps: Any, dtype: Any, eps: Any) -> None:
    if not isinstance(coefficients, (tuple, list)) or len(coefficients) != 3:
        raise TypeError(f"ns_coefficients must be three numbers, got {coefficients!r}")
    for position, coefficient in enumerate(coefficients):
        _checks.number(f"ns_coefficients[{position}]", coefficient)
    if _checks.integer("ns_steps", steps, minimum=0) >= 100:
        raise ValueError(f"ns_steps must be below 100, got {steps}")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"ns_dtype must be a real floating-point dtype or None, got {dtype!r}")
    _checks.number("eps", eps, minimum=0)


def _for_matrices(rule: Optimizer) -> Optimizer:
    """Return the rule with an ``init`` that takes nothing but matrices."""

    def init(params: Tree) -> TensorDict:
        for name, leaf in _tree.as_dict(params).items():
            if leaf.dim() != 2:
                raise ValueError(
                    f"muon is for matrices, got {name!r} of shape {tuple(leaf.shape)}: give it an optimizer for what "
                    "is none, as in muon(rate, others=adamw(rate)), and let choose= choose matrices alone"
                )
        return rule.init(params)

    return dataclasses.replace(rule, init=init)
