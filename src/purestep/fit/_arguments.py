"""The arguments of fit, checked before anything is done."""

from __future__ import annotations

from typing import Any

from purestep import _checks
from purestep.fit._saving import check_arguments as check_saving
from purestep.fit.evaluation import check_batches, check_step
from purestep.state import TrainState


def check(
    step: Any,
    state: Any,
    batches: Any,
    steps: Any,
    validate: Any,
    validate_every: Any,
    observe: Any,
    log_every: Any,
    loggers: Any,
    checkpoint: Any,
    resume: Any,
    progress: Any,
) -> None:
    """Raise ``TypeError`` or ``ValueError`` for the first argument that is not what :func:`purestep.fit` says."""
    check_step(step)
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
    check_batches(batches)
    _check_numbers(steps, validate, validate_every, log_every)
    _check_observe(observe, validate_every)
    _check_loggers(loggers)
    check_saving(checkpoint, resume)
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False, got {progress!r} of type {type(progress).__name__}")


def described(result: Any) -> str:
    """Say what a function returned that should have returned something else."""
    kind = type(result).__name__
    return f"a {kind} of {len(result)} entries" if isinstance(result, (tuple, list)) else f"a {kind}"


def _check_numbers(steps: int, validate: Any, validate_every: int | None, log_every: int) -> None:
    _checks.integer("steps", steps, minimum=1)
    _checks.integer("log_every", log_every, minimum=1)
    if validate is not None and not callable(validate):
        raise TypeError(f"validate must be a function state -> metrics or None, got {validate!r}")
    if validate_every is not None:
        _checks.integer("validate_every", validate_every, minimum=1)
        if validate is None:
            raise ValueError(f"validate must be given with validate_every={validate_every}, got None")


def _check_observe(observe: Any, validate_every: int | None) -> None:
    if observe is None:
        return
    if not callable(observe):
        raise TypeError(f"observe must be a function (state, metrics) -> state or None, got {observe!r}")
    if validate_every is None:
        raise ValueError(
            "validate_every must be given with observe, which is told what each validation finds; got None"
        )


def _check_loggers(loggers: Any) -> None:
    if not isinstance(loggers, (list, tuple)):
        raise TypeError(f"loggers must be a list or tuple of functions (step, scalars), got {loggers!r}")
    for position, logger in enumerate(loggers):
        if not callable(logger):
            raise TypeError(f"loggers[{position}] must be a function (step, scalars), got {logger!r}")
