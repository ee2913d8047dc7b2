"""Limited-memory BFGS: a direction from the last steps and the changes of the gradient along them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.optimizers._leafwise import check_state, rate_used
from purestep.transforms._leaves import paired, zero_count
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext

KEYS = {"steps", "grad_changes", "inverse_curvatures", "scale", "last_params", "last_grads", "count"}
# A pair of a step and a change whose angle is wider tells nothing of the curvature.
_SMALLEST_COSINE = 1e-10


@dataclass(frozen=True, repr=False)
class LBFGS(Optimizer):
    """The optimizer that :func:`lbfgs` makes.

    Attributes:
        rate: what the first trial of a line search is multiplied by, or the length of every step without one.
    """

    rate: Hyperparameter = 1.0


@updates.recorded
def lbfgs(rate: Hyperparameter = 1.0, *, history: int = 10) -> LBFGS:
    """Steps of a fixed length along the direction of L-BFGS; :func:`purestep.lbfgs_step` searches for their length.

    With g the gradient, and for the last ``history`` updates sᵢ the step, yᵢ the change of the gradient and
    ρᵢ = 1 / ⟨yᵢ, sᵢ⟩, from the newest to the oldest and back::

        q ← -g
        aᵢ = ρᵢ⟨sᵢ, q⟩,   q ← q - aᵢyᵢ           newest to oldest
        q ← q ⟨s, y⟩ / ⟨y, y⟩                    of the newest pair; 1 while there is none
        q ← q + sᵢ(aᵢ - ρᵢ⟨yᵢ, q⟩)               oldest to newest
        θ ← θ + γq                               γ is the rate, at the first update times min(1, 1 / ‖g‖₁)

    Source: Liu & Nocedal, `On the limited memory BFGS method for large scale optimization
    <https://doi.org/10.1007/BF01589116>`_ (1989); algorithm 7.4 in Nocedal & Wright, *Numerical optimization* (2006).
    On one batch it takes the steps of ``torch.optim.LBFGS(max_iter=1)``, which keeps a pair where ⟨y, s⟩ > 1e-10; here
    it is kept where ⟨y, s⟩ > 1e-10 ‖y‖‖s‖, so that small steps near a minimum count too. Batches that change from one
    update to the next put their noise into y.

    State: ``steps`` (s) and ``grad_changes`` (y), ``(history, n)`` for n numbers in all trainable parameters, oldest
    first; ``inverse_curvatures`` (ρ), ``(history,)``, zero where there is no pair yet; ``scale``, 0-d; ``last_params``
    and ``last_grads``, ``(n,)``; ``count`` (int64, 0-d): 2·history + 2 numbers a parameter, in the widest of the
    parameters' dtypes and float32 at least. Not smooth where a pair begins to be kept, and at ‖g‖₁ = 1.

    Args:
        rate: a number of at least 0, a 0-d tensor, or a schedule.
        history: at least 1.

    Raises:
        TypeError, ValueError: a rate or a history out of range; by ``init``, parameters of no real dtype.
        ValueError, KeyError: by ``update``, a state or gradients that belong to other parameters.
    """
    updates.check_hyperparameter("rate", rate)
    _checks.integer("history", history, minimum=1)

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "lbfgs")
        x = flat(list(_tree.as_dict(params).values()))
        pairs = x.new_zeros(history, len(x))
        return TensorDict(
            {
                "steps": pairs,
                "grad_changes": pairs.clone(),
                "inverse_curvatures": x.new_zeros(history),
                "scale": x.new_ones(()),
                "last_params": x,
                "last_grads": torch.zeros_like(x),
                "count": zero_count(params),
            },
            batch_size=[],
        )

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, leaves, p = paired(grads, params)
        g = flat(leaves)
        check_belongs(state, len(g))
        x, known = flat(p), state["count"] > 0
        before = (state["last_params"], state["last_grads"])
        state = remember(state, before, (x, g), known)
        step = direction(state, g) * first_length(state, g, updates.resolve(rate, context))
        return _tree.named(names, moved(p, step), params), state

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return rate_used(rate, context)

    return LBFGS(init, update, hyperparams, rate=rate)


Place = tuple[Tensor, Tensor]
"""Parameters and the gradient at them, flat."""


def flat(leaves: Sequence[Tensor]) -> Tensor:
    """Return all numbers of the leaves in one vector, ``(n,)``, in the widest dtype and float32 at least; a copy."""
    dtype = functools.reduce(torch.promote_types, (leaf.dtype for leaf in leaves), torch.float32)
    return torch.cat([leaf.reshape(-1).to(dtype) for leaf in leaves])


def moved(params: Sequence[Tensor], step: Tensor) -> list[Tensor]:
    """Return the parameters after a step, ``(n,)``."""
    parts = step.split([p.numel() for p in params])
    return [p + part.reshape(p.shape).to(p.dtype) for p, part in zip(params, parts, strict=True)]


def remember(state: Tree, before: Place, after: Place, known: Tensor | bool = True) -> TensorDict:
    """Return the state with the pair of two places, where there is a curvature between them and ``known`` holds."""
    s, y = after[0] - before[0], after[1] - before[1]
    ys, yy = y.dot(s), y.dot(y)
    cosine_bound = _SMALLEST_COSINE * s.dot(s).sqrt() * yy.sqrt()
    kept = (ys > cosine_bound) & torch.isfinite(ys) & torch.isfinite(yy) & known
    one = torch.ones_like(ys)
    # The inner `where` keeps the derivative of what is not chosen finite.
    ys, yy = torch.where(kept, ys, one), torch.where(kept, yy, one)
    new = {"steps": s, "grad_changes": y, "inverse_curvatures": 1 / ys}
    pushed = {
        name: torch.where(kept, torch.cat([state[name][1:], entry[None]]), state[name]) for name, entry in new.items()
    }
    scale = torch.where(kept, ys / yy, state["scale"])
    last = {"last_params": after[0], "last_grads": after[1]}
    return TensorDict({**pushed, "scale": scale, **last, "count": state["count"] + 1}, batch_size=state.batch_size)


def direction(state: Tree, grads: Tensor) -> Tensor:
    """Return the direction of descent, ``(n,)``. A pair that is not there is zero, and changes nothing."""
    steps, changes = state["steps"].unbind(), state["grad_changes"].unbind()
    rho = state["inverse_curvatures"].unbind()
    q, along = -grads, []
    for s, y, r in zip(reversed(steps), reversed(changes), reversed(rho), strict=True):
        along.append(r * s.dot(q))
        q = q - along[-1] * y
    q = q * state["scale"]
    for s, y, r, a in zip(steps, changes, rho, reversed(along), strict=True):
        q = q + s * (a - r * y.dot(q))
    return q


def first_length(state: Tree, grads: Tensor, rate: float | Tensor) -> Tensor:
    """Return the length to try first: the rate; while no curvature is known, at most 1 over the gradient's length."""
    size = grads.abs().sum()
    short = torch.where(size > 1, 1 / torch.where(size > 1, size, torch.ones_like(size)), 1.0)
    return (rate * torch.where((state["inverse_curvatures"] > 0).any(), torch.ones_like(short), short)).to(grads.dtype)


def check_belongs(state: Tree, numbers: int) -> None:
    """Raise for a state of another optimizer (``KeyError``) or of other parameters (``ValueError``)."""
    check_state("lbfgs", state, KEYS)
    if state["last_params"].shape[-1] != numbers:
        raise ValueError(
            f"state.opt_state does not belong to these trainable parameters: it is of {state['last_params'].shape[-1]} "
            f"numbers, and they have {numbers}. Give ps.init_state the trainable= that the step has"
        )
