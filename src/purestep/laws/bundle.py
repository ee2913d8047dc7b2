"""Every law of a step in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from purestep import _batches, _tree
from purestep.execution.compile import compile
from purestep.laws._compare import LawViolation
from purestep.laws._finite import check_nonfinite
from purestep.laws._randomness import check_draws_anew, check_own_streams
from purestep.laws._report import (
    LawDoesNotApplyError,
    LawReport,
    check_laws,
    is_drawn,
    name_of,
    on_drawn,
    on_smallest,
    smaller_batches,
)
from purestep.laws.resuming import check_resumable
from purestep.laws.splits import check_accumulation
from purestep.laws.steps import Step, check_ensemble, check_execution_invariant, check_pure
from purestep.random import fold_in
from purestep.state import TrainState

STEP_LAWS = (
    "pure",
    "counts",
    "split-invariant",
    "ensemble",
    "compiled",
    "donated",
    "draws anew",
    "own streams",
    "resumable",
    "non-finite",
)
_COUNTS = "law 9 (each attempt counts)"


def check_step(
    step: Step,
    state: Any,
    batch: Any,
    *,
    model: nn.Module | None = None,
    make: Callable[[int], Step] | None = None,
    accumulate: Iterable[int] = (2, 3),
    draws: bool | None = None,
    donates: bool = False,
    compiled: bool = False,
    tolerance: float = 1e-10,
    max_examples: int = 10,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Run every law of a step over it, and report which hold, by how much the others do not, and on what.

    - ``pure``: :func:`check_pure`;
    - ``counts``: a call adds to ``calls``, and at most as much to ``step``;
    - ``split-invariant``: :func:`check_accumulation` of what ``make`` gives;
    - ``ensemble``: :func:`check_ensemble` with the state and one of other values and another key;
    - ``compiled``, ``donated``: with ``compiled=True``, :func:`check_execution_invariant` of ``ps.compile(step)`` and
      ``ps.compile(step, donate=True)``, over three steps; they take some ten seconds each;
    - ``draws anew``: a step that draws gives other numbers at its next call, as a whole and in each dropout module;
    - ``own streams``: no two calls of dropout modules, and no two examples in one, drop the same entries. A step that
      makes one forward twice with the same masks on purpose (SAM) skips it;
    - ``resumable``: :func:`check_resumable` over four steps, in this process;
    - ``non-finite``: with NaN or infinity in the batch or in a parameter the step raises, or changes nothing but
      ``calls``, ``key`` and ``aux``.

    A law that does not hold is tried on ever fewer examples of the batch, and the report tells the fewest. Where
    ``state`` or ``batch`` is a Hypothesis strategy (:func:`train_states`, :func:`batches`), it is drawn from, and what
    Hypothesis shrank is told as the call that makes it again.

    Args:
        step: ``(state, batch) -> (state, metrics)``. What returns something else (``grad_step``, ``eval_step``) is
            looked at too, except by the laws of what a next state is.
        state: a :class:`purestep.TrainState`, or a strategy of them.
        batch: what the step takes, of at least three examples; float64 shows most. Or a strategy.
        model: the module that the step was made from, which must stay as it is.
        make: the same step with so many micro-batches:
            ``lambda count: ps.train_step(model, objective, optimizer, accumulate=count)``.
        accumulate: the numbers of micro-batches to try, above 1; those above the number of examples are passed over.
        draws: ``True``: the step has dropout on, or draws otherwise, and it is a violation that its key changes
            nothing. By default that is found out.
        donates: the step writes over the state that it is given; every call gets a clone.
        compiled: compile it, and compare.
        tolerance: in float64, of ``split-invariant``, ``ensemble``, ``compiled`` and ``donated``.
        max_examples: of strategies, for each law.
        laws, skip: names of the laws to look at, and of those to leave out.

    Returns:
        The report, where all laws hold.

    Raises:
        LawViolation: an ``AssertionError``, once all laws were looked at; its text is the whole report.
        LawDoesNotApplyError: a law in ``laws`` that has nothing to look at.
        ValueError, TypeError: names of no law; a state that is none. What the step raises on the batch as it is is
            raised as it is.
    """
    call: Step = (lambda state, batch: step(state.clone(), batch)) if donates else step
    drawn = is_drawn(state, batch)
    if not is_drawn(state) and not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState or a strategy of them, got {type(state).__name__}")
    if not drawn:
        call(state, batch)

    def on_inputs(law: Callable[[TrainState, Any], None], *, shrink: bool = True) -> Callable[[], None]:
        if drawn:
            few = max_examples if shrink else 2
            return on_drawn(law, {"state": state, "batch": batch}, max_examples=few, shrink=shrink)
        return on_smallest(lambda part: law(state, part), batch, smaller_batches(batch) if shrink else ())

    def executed(name: str, **options: Any) -> Callable[[], None]:
        return _law_of_execution(name, step, on_inputs, compiled, tolerance, options)

    counts = tuple(accumulate)
    bundle: Mapping[str, Callable[[], None]] = {
        "pure": on_inputs(lambda state, batch: check_pure(step, state, batch, model=model, donates=donates)),
        "counts": on_inputs(lambda state, batch: _check_counts(call, state, batch)),
        "split-invariant": on_inputs(lambda state, batch: _check_splits(make, state, batch, counts, tolerance)),
        "ensemble": on_inputs(
            lambda state, batch: check_ensemble(step, [state, _other(state)], batch, tolerance=tolerance)
        ),
        "compiled": executed("compiled"),
        "donated": executed("donated", donate=True),
        "draws anew": on_inputs(lambda state, batch: check_draws_anew(call, state, batch, draws=draws)),
        "own streams": on_inputs(lambda state, batch: check_own_streams(call, state, batch)),
        "resumable": on_inputs(lambda state, batch: _check_resumable(step, call, state, batch)),
        "non-finite": on_inputs(lambda state, batch: _check_nonfinite(call, state, batch)),
    }
    return check_laws(name_of("step", step), bundle, laws=laws, skip=skip)


def _law_of_execution(
    name: str, step: Step, on_inputs: Callable[..., Callable[[], None]], asked: bool, tolerance: float, options: Any
) -> Callable[[], None]:
    if not asked:
        return lambda: _pass_over("compiled=True is not given")

    def law(state: TrainState, batch: Any) -> None:
        others = {name: compile(step, **options)}
        check_execution_invariant(step, state, batch, others=others, tolerance=tolerance, steps=3)

    return on_inputs(law, shrink=False)


def _pass_over(why: str) -> None:
    raise LawDoesNotApplyError(why)


def _next_of(step: Step, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
    result = step(state, batch)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], TrainState)):
        raise LawDoesNotApplyError(f"it returns no (state, metrics), but a {type(result).__name__}")
    return result


def _check_counts(step: Step, state: TrainState, batch: Any) -> None:
    after, _ = _next_of(step, state.clone(), batch)
    calls, steps = int(after.calls - state.calls), int(after.step - state.step)
    if calls < 1 or not 0 <= steps <= calls:
        raise LawViolation(
            f"{_COUNTS}: a call adds {calls} to state.calls and {steps} to state.step, where calls counts attempts (at "
            "least 1; randomness reads it) and step the updates among them: return "
            "state.replace(..., step=state.step + 1, calls=state.calls + 1)",
            by=f"{calls} calls, {steps} steps",
        )


def _check_splits(
    make: Callable[[int], Step] | None, state: TrainState, batch: Any, accumulate: Iterable[int], tolerance: float
) -> None:
    if make is None:
        raise LawDoesNotApplyError("make= is not given")
    length = _batches.batch_length(batch)
    counts = [count for count in accumulate if 1 < count <= length]
    if not counts:
        raise LawDoesNotApplyError(f"accumulate= has no number from 2 to the {length} examples of the batch")
    for count in counts:
        try:
            check_accumulation(lambda k: _forked(make(k)), state, batch, accumulate=(count,), tolerance=tolerance)
        except LawViolation as violation:
            raise LawViolation(str(violation), by=violation.by, on=f"accumulate={count}") from None


def _forked(step: Step) -> Step:
    """Return the step with torch's global generators as they were after each call, so that what it draws from them,
    which is the law ``pure``'s to tell, is the same however often it is cut."""

    def forked(state: TrainState, batch: Any) -> Any:
        with torch.random.fork_rng():
            return step(state, batch)

    return forked


def _other(state: TrainState) -> TrainState:
    """Return a state of other parameters, another key and another count of calls."""
    params = _tree.map_leaves(lambda leaf: 1.25 * leaf if leaf.is_floating_point() else leaf.clone(), state.params)
    return state.clone().replace(params=params, key=fold_in(state.key, 1), calls=state.calls + 1)


def _check_resumable(step: Step, call: Step, state: TrainState, batch: Any) -> None:
    _next_of(call, state, batch)
    try:
        check_resumable(step, state, [batch] * 4, skip=("data", "rebuilt", "new process"))
    except LawViolation as violation:
        first = next(finding for finding in violation.report.findings if finding.result == "BROKEN")
        raise LawViolation(first.says, by=first.by, on=first.on) from None


def _check_nonfinite(step: Step, state: TrainState, batch: Any) -> None:
    _next_of(step, state, batch)
    check_nonfinite(step, state, batch)
