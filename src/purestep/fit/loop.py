"""The loop: batches through a step, with what people want to see and keep of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any, NamedTuple

from purestep import _checks
from purestep.checkpoint import check_target
from purestep.checkpoint import save as save_state
from purestep.data.pipeline import Pipeline
from purestep.fit import _progress
from purestep.fit._interrupt import Interrupts
from purestep.fit._window import Reading, Window
from purestep.fit.evaluation import check_batches, check_step, no_batches
from purestep.nonfinite import NonFiniteError
from purestep.state import DonatedStateError, TrainState

Logger = Callable[[int, dict[str, float]], Any]
Validate = Callable[[TrainState], Mapping[str, Any]]
Observe = Callable[[TrainState, Mapping[str, Any]], TrainState]


class Fit(NamedTuple):
    """What :func:`fit` returns.

    Attributes:
        state: the state after the last step.
        history: a dict for each window of ``log_every`` steps: ``"step"``, and each metric's value by its name.
        validation: the same for each validation.
    """

    state: TrainState
    history: list[dict[str, Any]]
    validation: list[dict[str, Any]]


def fit(
    step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    state: TrainState,
    batches: Iterable[Any],
    *,
    steps: int,
    validate: Validate | None = None,
    validate_every: int | None = None,
    observe: Observe | None = None,
    log_every: int = 50,
    loggers: Sequence[Logger] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Fit:
    """Take ``steps`` steps, or as many as there are batches.

    ``for batch in batches: state, metrics = step(state, batch)``, and nothing else happens to the state but
    ``observe``. Exactly the batches that are used are taken from ``batches``. The device is waited for once in a window
    of ``log_every`` steps and not at every step: a window's metrics are pooled on it (each mean over the examples of
    the whole window), and on CUDA they are read when they have arrived, by the end of the next window. Steps are
    numbered by ``state.calls``, so a run that is taken up again counts on, and windows and validations fall on
    multiples of their length.

    Args:
        step: as :func:`purestep.train_step` makes it, compiled or not, donating or not.
        state: where to start. A donating step takes it over: use the state that comes back.
        batches: any iterable, endless or finite. Batches belong on the state's device.
        steps: how many steps to take, at least 1.
        validate: ``state -> metrics``, for instance
            ``lambda state: ps.evaluate(eval_step, state, test_batches)``; called after the last step too.
        validate_every: steps between two validations; by default only the one at the end.
        observe: ``(state, metrics) -> state``, pure, such as the ``observe`` of :func:`purestep.schedules.plateau`:
            called with the metrics of each validation that ``validate_every`` asks for (not with those of one that is
            there only because the run ends). A run that starts at such a step validates before its first step, as the
            run before it may have been interrupted in between: an observation that was made already must change
            nothing.
        log_every: steps in a window; the last one may be shorter.
        loggers: functions ``(step, scalars)``, called with each window's values by name, and with each validation's
            as ``"val/" + name``. Where one has a ``close()``, it is called at the end.
        checkpoint: a file for :func:`purestep.checkpoint.save`, written after the last step, before the last
            validation. With a pipeline of batches, its place is the file's ``extra["data"]``.
        progress: show a bar where the output is a terminal or a notebook, and one line a window elsewhere.

    Returns:
        A :class:`Fit`. A loss that was returned as a bare tensor cannot be pooled, and neither can a plain tensor such
        as the learning rate: the history has that of the window's last step.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, a step that does not return ``(state, metrics)``, metrics
            that are not single numbers, or no batch at all.

    **When it is interrupted.** Whatever a step, a batch, a validation or a logger raises comes out as it is, Ctrl-C
    too, with the attribute ``fit``: the :class:`Fit` so far, whose state is the one after the last step that was
    finished (``sys.last_value.fit.state`` after a Ctrl-C in a notebook). If there was a step, that state is also
    written to ``checkpoint``. A Ctrl-C during a step is heard at its end, a second one at once. One case is not safe: a
    donating step that fails inside its graph, or is left by a second Ctrl-C, may have written part of its state. That
    state is not saved.
    """
    check_step(step)
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
    check_batches(batches)
    _check_numbers(steps, validate, validate_every, log_every)
    _check_observe(observe, validate_every)
    _check_loggers(loggers)
    if not isinstance(progress, bool):
        raise TypeError(f"progress must be True or False, got {progress!r} of type {type(progress).__name__}")
    run = _Run(step, state, steps, validate, validate_every, observe, log_every, loggers, checkpoint, progress)
    del state  # held here, the first state would take up memory for the whole run
    try:
        with ExitStack() as stack:
            for logger in loggers:
                if hasattr(logger, "close"):
                    stack.callback(logger.close)
            stack.enter_context(run.interrupts)
            stack.enter_context(run.display)
            run.go(batches)
    except BaseException as error:
        run.rescue(error)
        raise
    return run.result


class _Run:
    """One call of :func:`fit`. ``state`` is always one that no step has taken over."""

    def __init__(
        self,
        step: Callable[..., Any],
        state: TrainState,
        steps: int,
        validate: Validate | None,
        validate_every: int | None,
        observe: Observe | None,
        log_every: int,
        loggers: Sequence[Logger],
        path: str | os.PathLike[str] | None,
        shown: bool,
    ) -> None:
        self.step, self.state, self.steps = step, state, steps
        self.validate, self.validate_every, self.log_every = validate, validate_every, log_every
        self.loggers, self.observe = loggers, observe
        if path is not None:  # now, not after hours of training
            check_target(path).parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.first = self.number = int(state.calls.max())
        self.history: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self.batches: Iterable[Any] = ()
        self.window = Window(last_bare=True)
        self.reading: tuple[int, int, Reading] | None = None  # a window that may not have arrived yet
        self.since = time.perf_counter()
        self.stepping = self.donates = False
        self.saved: int | None = None  # the number of the step whose state is in the file
        self.interrupts = Interrupts()
        self.display = _progress.display(shown=shown, first=self.first, last=self.first + steps)

    @property
    def result(self) -> Fit:
        return Fit(self.state, self.history, self.validation)

    def go(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        if self.observe is not None and self.first > 0:
            self.validate_on_schedule()
        for batch in islice(batches, self.steps):
            self.take(batch)
            self.display.advance(self.number)
            if self.number % self.log_every == 0:
                self.end_window()
            elif self.reading is not None and self.reading[2].arrived():
                self.deliver()
            self.validate_on_schedule()
        if self.number == self.first:
            raise ValueError(no_batches(batches))
        self.end_window()
        self.deliver()
        self.save()
        if self.validate is not None and not (self.validation and self.validation[-1]["step"] == self.number):
            self.validate_now()

    def take(self, batch: Any) -> None:
        """One step. The state that it was given is not touched again, for it may be donated."""
        given = self.state
        with self.interrupts.held:
            self.stepping = True
            result = self.step(given, batch)
            if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], TrainState)):
                raise TypeError(f"step must return (state, metrics), as ps.train_step does, got {_described(result)}")
            self.state, metrics = result
            self.stepping = False
            self.number += 1
        if self.number == self.first + 1:
            self.donates = _was_donated(given)
        self.window.add(metrics)

    def end_window(self) -> None:
        if not self.window.steps:
            return
        self.deliver()
        self.reading = (self.number, self.window.steps, Reading(self.window.pooled()))
        self.window = Window(last_bare=True)
        if self.reading[2].arrived():
            self.deliver()

    def deliver(self) -> None:
        """Write down the window that was being read, waiting for it where need be."""
        if self.reading is None:
            return
        number, steps, reading = self.reading
        self.reading = None
        scalars = reading.values()
        now = time.perf_counter()
        speed, self.since = steps / max(now - self.since, 1e-9), now
        self.history.append(_record(number, scalars))
        self.display.window(number, scalars, speed)
        self.log(number, scalars)

    def validate_on_schedule(self) -> None:
        if self.validate_every is None or self.number % self.validate_every != 0:
            return
        metrics = self.validate_now()
        if self.observe is not None:
            state = self.observe(self.state, metrics)
            if not isinstance(state, TrainState):
                raise TypeError(f"observe must return the state, got {_described(state)}")
            self.state = state

    def validate_now(self) -> Mapping[str, Any]:
        assert self.validate is not None
        self.deliver()
        began = time.perf_counter()
        metrics = self.validate(self.state)
        if not isinstance(metrics, Mapping):
            raise TypeError(f"validate must return a dict of metrics by name, got {_described(metrics)}")
        scalars = Reading(metrics).values()
        self.since += time.perf_counter() - began  # the window's speed is that of its steps
        self.validation.append(_record(self.number, scalars))
        self.display.validated(self.number, scalars)
        self.log(self.number, {f"val/{name}": value for name, value in scalars.items()})
        return metrics

    def log(self, number: int, scalars: dict[str, float]) -> None:
        for logger in self.loggers:
            logger(number, dict(scalars))

    def save(self) -> None:
        if self.path is not None and self.saved != self.number:
            place = self.batches.state_dict() if isinstance(self.batches, Pipeline) else None
            save_state(self.path, self.state, extra=None if place is None else {"data": place})
            self.saved = self.number

    def rescue(self, error: BaseException) -> None:
        """Hand the state over with the error: as its attribute, and in the file."""
        error.fit = self.result  # type: ignore[attr-defined]
        where = "`error.fit.state`"
        if self.stepping and self.donates and not isinstance(error, NonFiniteError):
            where += ", of which the step that failed may have written part, for it donates"
        elif self.number > self.first and self.path is not None:
            try:
                self.save()
                where += f", and in {os.fspath(self.path)!r}"
            except Exception as failure:
                where += f"; it could not be saved to {os.fspath(self.path)!r}: {failure}"
        error.add_note(f"fit stopped after step {self.number}: its state is {where}")


def _was_donated(state: TrainState) -> bool:
    try:
        state.calls  # noqa: B018 (reading it is the question)
    except DonatedStateError:
        return True
    return False


def _record(number: int, scalars: Mapping[str, float]) -> dict[str, Any]:
    if "step" in scalars:
        raise ValueError('a metric is named "step", the name of the step\'s number in the history: rename it')
    return {"step": number, **scalars}


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


def _described(result: Any) -> str:
    kind = type(result).__name__
    return f"a {kind} of {len(result)} entries" if isinstance(result, (tuple, list)) else f"a {kind}"
