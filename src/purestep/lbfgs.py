"""A step of L-BFGS whose length is searched for by evaluations of the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from purestep import _checks, _tree, updates
from purestep._accumulate import Accumulation, Weights, read_options
from purestep._forward import Metrics, Objective
from purestep._line_search import Backtracking, LineSearch, Point, Search, StrongWolfe, begin
from purestep.functional import Trainable
from purestep.gradients import Gradient
from purestep.nonfinite import Guard
from purestep.optimizers.lbfgs import LBFGS, check_belongs, direction, first_length, flat, moved, remember
from purestep.state import TrainState
from purestep.step import Step, train_step
from purestep.updates import UpdateContext

_REPORTED = ("learning_rate", "step_length", "evaluations")


def lbfgs_step(
    model: nn.Module,
    objective: Objective,
    optimizer: LBFGS,
    *,
    line_search: str | None = "strong_wolfe",
    max_evaluations: int = 25,
    c1: float = 1e-4,
    c2: float = 0.9,
    shrink: float = 0.5,
    tolerance_change: float = 1e-9,
    accumulate: int | str = 1,
    microbatch: int | None = None,
    weights: Weights | None = None,
    loop: str = "python",
    trainable: Trainable = None,
    precision: str = "float32",
    on_nonfinite: str = "raise",
) -> Step:
    """Return the pure function ``(state, batch) -> (state, metrics)``: one iteration of L-BFGS.

    With q the direction that :func:`lbfgs` says, and f(t) the batch's loss at θ + tq, the length t is searched for:

    - ``"strong_wolfe"``: f(t) ≤ f(0) + c₁ t f′(0) and \\|f′(t)\\| ≤ c₂ \\|f′(0)\\|, by cubic interpolation;
    - ``"backtracking"``: f(t) ≤ f(0) + c₁ t f′(0), each trial ``shrink`` times the one before;
    - ``None``: no search, which is :func:`train_step` with the optimizer.

    The first trial is the optimizer's rate. All evaluations are of the whole batch and under the same random draws,
    those of ``state.calls``, and each begins with the state's buffers; buffers are those after the first, at θ. The
    pair that is remembered is of one batch: the gradients at both ends of the step. Where q is not finite or leads
    uphill, -g takes its place; where the search finds nothing better than θ, the parameters stay.

    Eagerly a search ends when it is done, having read the loss: usually after one evaluation. A compiled or vmapped
    step cannot read it, and makes all ``max_evaluations``, each a forward and a backward pass written out in the
    graph: give it few (4, say). The results are those of the eager step with as many.

    Source: Nocedal & Wright, *Numerical optimization* (2006), algorithms 7.5, 3.5 and 3.6. On one batch the iterates
    are those of ``torch.optim.LBFGS(line_search_fn="strong_wolfe")``, but for what :func:`lbfgs` says, and that a
    second trial which does not fall below the first ends the lengthening as in algorithm 3.5 (torch's third).

    Args:
        model, objective: as in :func:`train_step`.
        optimizer: ``ps.optimizers.lbfgs(...)`` itself, not a chain: its direction belongs to the objective's own
            gradient.
        line_search: as above.
        max_evaluations: of a search, at least 1; the gradient at θ comes in addition.
        c1, c2: with 0 < c₁ < c₂ < 1.
        shrink: above 0 and below 1.
        tolerance_change: at least 0; a search ends where no parameter would change by more.
        accumulate, microbatch, weights, loop, trainable, precision, on_nonfinite: as in :func:`train_step`; the policy
            looks at the loss and the gradient at θ. A trial that is not finite is only too long.

    Returns:
        A pure function. Its metrics are those of :func:`train_step`, all at θ, ``"step_length"`` (t, 0-d) and
        ``"evaluations"`` (int64, 0-d).

    Raises:
        TypeError, ValueError, NonFiniteError: as :func:`train_step`; for an optimizer that is no :func:`lbfgs`, and
            numbers out of range.
    """
    if not isinstance(optimizer, LBFGS):
        raise TypeError(
            f"optimizer must be ps.optimizers.lbfgs(...) itself, whose direction a search goes along, got a "
            f"{type(optimizer).__name__}"
        )
    search = _read_search(line_search, max_evaluations, c1, c2, shrink, tolerance_change)
    if search is None:
        return train_step(
            model,
            objective,
            optimizer,
            accumulate=accumulate,
            microbatch=microbatch,
            weights=weights,
            loop=loop,
            trainable=trainable,
            precision=precision,
            on_nonfinite=on_nonfinite,
        )
    options = read_options(accumulate, microbatch, weights, loop, trainable, precision)
    gradient = Accumulation(model, objective, options, divide=True)
    return _searching_step(gradient, optimizer, search, max_evaluations, Guard(on_nonfinite, None))


def _searching_step(
    gradient: Accumulation, optimizer: LBFGS, search: LineSearch, max_evaluations: int, guard: Guard
) -> Step:
    """Return the step whose length is searched for."""

    def lbfgs_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        guard.check(state)
        first = gradient(state, batch)
        if taken := sorted({*_REPORTED} & {*first.metrics}):
            raise ValueError(f"a metric of the objective is named {taken[0]!r}, which the step reports: rename it")
        grads, loss = first.mean(), first.metrics["loss"]
        names = list(_tree.as_dict(grads))
        p = [state.params[name] for name in names]
        _check_state(state, sum(leaf.numel() for leaf in p))
        context = UpdateContext(state.step, state.key, loss.value(), state.calls, state.aux)

        def params_at(step: Tensor) -> Any:
            return _tree.overlay(state.params, _tree.named(names, moved(p, step), state.params))

        def gradient_at(step: Tensor) -> Gradient:
            return gradient(state.replace(params=params_at(step)), batch)

        g = flat([grads[name] for name in names])
        q = _downhill(direction(state.opt_state, g), g)
        trial = first_length(state.opt_state, g, updates.resolve(optimizer.rate, context))
        found = _run(search, gradient_at, q, (loss.value(), g), trial, max_evaluations)
        params = params_at(found.low.t.to(q.dtype) * q)
        there = flat([params[name] for name in names])
        opt_state = remember(state.opt_state, (flat(p), g), (there, found.low.grads))
        after = state.replace(
            params=params,
            buffers=first.buffers,
            opt_state=opt_state,
            step=state.step + 1,
            calls=state.calls + 1,
        )
        after, kept = guard.decide(state, after, grads, loss)
        used = {"step_length": found.low.t, "evaluations": found.tried, **kept}
        return after, {**first.metrics, **optimizer.hyperparams(opt_state, context), **used}

    lbfgs_step.optimizer = optimizer  # type: ignore[attr-defined]  # for a checkpoint to record
    return lbfgs_step


def _run(
    search: LineSearch,
    gradient_at: Callable[[Tensor], Gradient],
    along: Tensor,
    start: tuple[Tensor, Tensor],
    trial: Tensor,
    evaluations: int,
) -> Search:
    """Drive a search along a direction: until it is done where that can be read, and to its end elsewhere."""
    dtype = torch.float32 if along.device.type == "mps" else torch.float64

    def point(t: Tensor, value: Tensor, grads: Tensor) -> Point:
        return Point(t, value.to(dtype), grads.dot(along).to(dtype), grads)

    zero = torch.zeros((), dtype=dtype, device=along.device)
    sofar = begin(point(zero, *start), trial.to(dtype), along.abs().max().to(dtype))
    for _ in range(evaluations):
        if _tree.readable(sofar.stage) and bool(sofar.done):
            break
        there = gradient_at(sofar.trial.to(along.dtype) * along)
        grads = flat(list(_tree.as_dict(there.mean()).values()))
        sofar = search.advance(sofar, point(sofar.trial, there.metrics["loss"].value(), grads))
    return sofar


def _downhill(along: Tensor, grads: Tensor) -> Tensor:
    """Return the direction, or the one against the gradient where rounding turned it uphill or it is not finite."""
    slope = along.dot(grads)
    return torch.where(torch.isfinite(slope) & (slope <= 0), along, -grads)


def _read_search(
    name: Any, max_evaluations: Any, c1: Any, c2: Any, shrink: Any, tolerance_change: Any
) -> LineSearch | None:
    _checks.integer("max_evaluations", max_evaluations, minimum=1)
    _checks.number("c1", c1, above=0, below=1)
    _checks.number("c2", c2, above=c1, below=1)
    _checks.number("shrink", shrink, above=0, below=1)
    _checks.number("tolerance_change", tolerance_change, minimum=0)
    if name is None:
        return None
    if name not in ("strong_wolfe", "backtracking"):
        raise ValueError(f"line_search must be one of 'strong_wolfe', 'backtracking', None, got {name!r}")
    if name == "backtracking":
        return Backtracking(c1, shrink, tolerance_change)
    return StrongWolfe(c1, c2, tolerance_change)


def _check_state(state: TrainState, numbers: int) -> None:
    try:
        check_belongs(state.opt_state, numbers)
    except KeyError as error:
        raise ValueError(
            f"state.opt_state is not of ps.optimizers.lbfgs: give ps.init_state the optimizer that the step has "
            f"({error.args[0]})"
        ) from error
