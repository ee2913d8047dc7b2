"""The loop: batches through a step, with what people want to see and keep of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from purestep.checkpoint.manager import Manager
from purestep.fit._arguments import check
from purestep.fit._interrupt import Interrupts, Stopped
from purestep.fit._places import Feed
from purestep.fit._run import Fit, Logger, Observe, Run, Validate
from purestep.fit._saving import Saving
from purestep.state import TrainState


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
    checkpoint: str | os.PathLike[str] | Manager | None = None,
    resume: str | os.PathLike[str] | None = None,
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
        state: where the run begins. A donating step takes it over: use the state that comes back.
        batches: any iterable, endless or finite. Batches belong on the state's device.
        steps: how many steps the run is to have from ``state`` on, at least 1, those before a ``resume`` included.
        validate: ``state -> metrics``, for instance
            ``lambda state: ps.evaluate(eval_step, state, test_batches)``; called after the last step too.
        validate_every: steps between two validations; by default only the one at the end.
        observe: ``(state, metrics) -> state``, pure, such as the ``observe`` of :func:`purestep.schedules.plateau`:
            called with the metrics of each validation that ``validate_every`` asks for (not with those of one that is
            there only because the run ends). A run whose state stands at such a step validates before its first step,
            as the run before it may have been interrupted in between: an observation that was made already must change
            nothing. With ``resume`` it does so where the run was interrupted in between.
        log_every: steps in a window; the last one may be shorter.
        loggers: functions ``(step, scalars)``, called with each window's values by name, and with each validation's
            as ``"val/" + name``. Where one has a ``close()``, it is called at the end.
        checkpoint: a folder for checkpoints, or a :class:`purestep.checkpoint.Manager`, which also says how often to
            save and what to keep. The run is saved after its last step (before the last validation, unless the manager
            chooses by that), whenever it is stopped, and every ``every`` steps: its state, the place of ``batches``,
            the optimizer's settings, the metrics of the window that is not full, and the scores of a validation at that
            step, as ``"val/" + name``. A run that is not resumed needs a folder without checkpoints of later steps.
        resume: ``None`` begins with ``state``. ``"auto"`` goes on from the newest whole checkpoint in ``checkpoint``,
            and begins with ``state`` where there is none; a path goes on from the checkpoint that is there, or from
            the newest in that folder. ``state`` gives the structure then. ``batches`` go on where they were left: they
            have ``state_dict()`` and ``load_state_dict(...)``, such as a pipeline or a loader, or are a list, of which
            those that were used are left out. Others, such as a generator, have no place that could be saved: with
            them the run goes on with whatever they yield next.
        progress: show a bar where the output is a terminal or a notebook, and one line a window elsewhere.

    Returns:
        A :class:`Fit`. A loss that was returned as a bare tensor cannot be pooled, and neither can a plain tensor such
        as the learning rate: the history has that of the window's last step. A run that is resumed has the records
        since then. One that was complete already, or whose batches had come to their end, takes no step and writes
        nothing; ``validate`` is called for its state.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, a step that does not return ``(state, metrics)``, metrics
            that are not single numbers, or no batch at all; a checkpoint that does not fit ``state`` or ``batches``.
        CheckpointError, FileNotFoundError: ``resume`` is a damaged checkpoint, or none.
        CheckpointLockedError: another run saves into the folder.
        OSError: a checkpoint cannot be written. Of one that is written in the background, the next step says so.
        Stopped: SIGTERM or SIGINT came, and the run is saved in ``checkpoint``.

    **When it is stopped.** Whatever a step, a batch, a validation or a logger raises comes out as it is, with the
    attribute ``fit``: the :class:`Fit` so far, whose state is the one after the last step that was finished. If there
    was a step, the run is saved in ``checkpoint`` as it was then; a batch whose step failed counts as not used.

    With a ``checkpoint``, SIGTERM and SIGINT (Ctrl-C) let the step that is under way finish, while a batch that is
    waited for and a validation are left at once; then the run is saved and :class:`Stopped` is raised, with which a
    program ends with the exit code 75. A second signal ends it at once with 128 and its number; the newest checkpoint
    is whole. Without one, Ctrl-C is a ``KeyboardInterrupt``: during a step it is heard at its end, a second one at
    once (in a notebook the state is ``sys.last_value.fit.state``). Only Python's own handlers are replaced, in the main
    thread, while ``fit`` runs.

    One case is not safe: a donating step that fails inside its graph, or is left by a second signal, may have written
    part of its state. That state is not saved. :class:`NonFiniteError` is no such case: it comes before the first
    write.
    """
    check(
        step, state, batches, steps, validate, validate_every, observe, log_every, loggers, checkpoint, resume, progress
    )
    saving = Saving(checkpoint, step)
    interrupts = Interrupts(saves=checkpoint is not None)
    with interrupts, _closing(saving):
        feed = Feed(batches, keeps=checkpoint is not None)
        begun = int(state.calls.max())
        found = saving.find(resume, state, begun, feed)
        state = state if found is None else found.state
        run = Run(
            step,
            state,
            begun,
            begun + steps,
            found,
            validate,
            validate_every,
            observe,
            log_every,
            loggers,
            saving,
            feed,
            interrupts,
        )
        del state, found  # held here, the first state would take up memory for the whole run
        try:
            with ExitStack() as stack:
                for logger in loggers:
                    if hasattr(logger, "close"):
                        stack.callback(logger.close)
                stack.enter_context(run.shown(progress))
                run.go()
            interrupts.check()
        except BaseException as error:
            run.rescue(error)
            if isinstance(error, Stopped) and progress:  # a SystemExit says nothing by itself
                print(f"{error} after step {run.number}; resume from {saving.folder!r}", flush=True)
            raise
        return run.result


@contextmanager
def _closing(saving: Saving) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        saving.close(error)
        raise
    saving.close(None)
