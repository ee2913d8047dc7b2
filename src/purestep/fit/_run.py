"""One run of the loop: what it holds, and what it does between two steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from purestep.fit import _progress
from purestep.fit._arguments import described
from purestep.fit._interrupt import Interrupts, LeftAtOnce, Stopped
from purestep.fit._places import END, Feed
from purestep.fit._saving import Found, Saving
from purestep.fit._window import Reading, Window
from purestep.fit.evaluation import no_batches
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


class Run:
    """One call of :func:`purestep.fit`. ``state`` is always one that no step has taken over."""

    def __init__(
        self,
        step: Callable[..., Any],
        state: TrainState,
        begun: int,
        last: int,
        found: Found | None,
        validate: Validate | None,
        validate_every: int | None,
        observe: Observe | None,
        log_every: int,
        loggers: Sequence[Logger],
        saving: Saving,
        feed: Feed,
        interrupts: Interrupts,
    ) -> None:
        self.step, self.state, self.last = step, state, last
        self.validate, self.validate_every, self.log_every = validate, validate_every, log_every
        self.loggers, self.observe = loggers, observe
        self.saving, self.feed, self.interrupts = saving, feed, interrupts
        self.first = self.number = begun if found is None else found.number
        self.resumed = found is not None
        self.validated = None if found is None else found.validated  # after which step, as the schedule asks for it
        self.history: list[dict[str, Any]] = []
        self.validation: list[dict[str, Any]] = []
        self.window = Window(last_bare=True) if found is None else found.window
        self.reading: tuple[int, int, Reading] | None = None  # a window that may not have arrived yet
        self.since = time.perf_counter()
        self.stepping = self.donates = False
        self.changed = False  # since it was found, or handed in
        self.display: _progress.Display = _progress.Silent()
        saving.begin(self.number, feed)

    @property
    def result(self) -> Fit:
        return Fit(self.state, self.history, self.validation)

    def shown(self, progress: bool) -> _progress.Display:
        self.display = _progress.display(shown=progress, first=self.first, last=self.last)
        return self.display

    def go(self) -> None:
        if self.first > 0 and self.validated != self.number and (self.resumed or self.observe is not None):
            self.validate_on_schedule()
        while self.number < self.last:
            self.saving.check()
            with self.interrupts.open:
                batch = self.feed.fetch()
            if batch is END:
                break
            self.take(batch)
            self.display.advance(self.number)
            if self.number % self.log_every == 0:
                over, self.window = self.window, Window(last_bare=True)
                self.read(over)
            elif self.reading is not None and self.reading[2].arrived():
                self.deliver()
            self.validate_on_schedule()
            if self.saving.due(self.number):
                self.save()
            self.interrupts.check()
        self.finish()

    def finish(self) -> None:
        """What follows the last step. A run that was complete has had it, but for a validation of its state."""
        if self.number > self.first:
            if self.window.steps:
                self.read(self.window)  # which is not over for the run that goes on from here
            self.deliver()
        elif not (self.resumed and (self.number >= self.last or self.feed.knows_its_place)):
            raise ValueError(no_batches(self.feed.batches))
        if not self.saving.keeps_best:
            self.save()
            self.saving.wait()
        if self.validate is not None and not (self.validation and self.validation[-1]["step"] == self.number):
            self.validate_now()
        self.save()
        self.saving.wait()

    def take(self, batch: Any) -> None:
        """One step. The state that it was given is not touched again, for it may be donated."""
        given = self.state
        with self.interrupts.held:
            self.stepping = True
            result = self.step(given, batch)
            if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], TrainState)):
                raise TypeError(f"step must return (state, metrics), as ps.train_step does, got {described(result)}")
            after, metrics = result
            place = self.feed.here()
            # Together: no handler of a signal, of the program's own, runs between assignments.
            self.state, self.number, self.feed.place = after, self.number + 1, place
            self.stepping, self.changed = False, True
            del after
            if self.number == self.first + 1:
                self.donates = _was_donated(given)
                self.saving.check_counts(self.number, self.state)
            self.window.add(metrics)

    def read(self, window: Window) -> None:
        """Have the numbers of a window brought to the host."""
        self.deliver()
        self.reading = (self.number, window.steps - window.resumed, Reading(window.pooled()))
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
                raise TypeError(f"observe must return the state, got {described(state)}")
            self.state, self.changed = state, True
        self.validated = self.number

    def validate_now(self) -> Mapping[str, Any]:
        assert self.validate is not None
        self.deliver()
        began = time.perf_counter()
        with self.interrupts.open:
            metrics = self.validate(self.state)
            if not isinstance(metrics, Mapping):
                raise TypeError(f"validate must return a dict of metrics by name, got {described(metrics)}")
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
        self.deliver()  # a window that is over is nothing that a run could go on with
        self.keep()

    def keep(self) -> None:
        if not self.changed:
            return
        self.saving.save(self.number, self.state, self.feed, self.window, self.validated, self.scores())

    def scores(self) -> dict[str, float] | None:
        """The numbers of the validation after the last step, if there was one."""
        found = self.validation[-1] if self.validation else {}
        if found.get("step") != self.number:
            return None
        return {f"val/{name}": value for name, value in found.items() if name != "step"}

    def rescue(self, error: BaseException) -> None:
        """Hand the state over with the error: as its attribute, and in the checkpoint."""
        error.fit = self.result  # type: ignore[attr-defined]
        where = "`error.fit.state`"
        if self.stepping and self.donates and not isinstance(error, NonFiniteError):
            where += ", of which the step that failed may have written part, for it donates"
        elif self.changed and self.saving.manager is not None and not isinstance(error, LeftAtOnce):
            with suppress(Exception):  # a logger, which may be what failed
                self.deliver()
            try:
                self.keep()
                self.saving.wait()
                where += f", and in {self.saving.folder!r}"
            except Exception as failure:
                where += f"; it could not be saved to {self.saving.folder!r}: {failure}"
                if isinstance(error, Stopped):  # which says that it was
                    failure.fit = self.result  # type: ignore[attr-defined]
                    failure.add_note(f"fit was {error} after step {self.number}: its state is {where}")
                    raise
        heard = self.interrupts.heard
        if heard is not None and not isinstance(error, (Stopped, LeftAtOnce)):
            where += f"; {signal.Signals(heard).name} was heard as well"
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
