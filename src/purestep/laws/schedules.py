"""The laws of schedules, as assertions.

Run them over one's own schedules::

    @hypothesis.given(schedules())
    def test_laws(schedule):
        check_schedule(0.5 * my_schedule(peak=0.1) * schedule)
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import purestep.schedules as ps
from purestep._checks import integer
from purestep.integrations.torch_scheduler import to_torch
from purestep.laws._compare import LawViolation
from purestep.laws._drawn_schedules import schedules  # noqa: F401  (the package has it from here: this module has its name)
from purestep.laws._report import LawDoesNotApplyError, LawReport, check_laws
from purestep.schedules import Schedule
from purestep.schedules._schedule import CONSTRUCTORS

TOLERANCE = 1e-12  # of two evaluations, relative to the largest value of the schedule and of its parts
SLOPE_TOLERANCE = 1e-5  # of a derivative against differences, relative to itself and to value over argument
DIFFERENCE = 2.0**-26
FAR = (10**4, 10**6, 2**24 + 1, 2**53 - 1, 2**62)
PHASE_STEPS = 10_000  # a phase said to be monotone is looked at in all its steps, or in so many
TORCH_STEPS = 24  # that a torch scheduler is taken through

SCHEDULE_LAWS = (
    "pure",
    "total",
    "vectorised",
    "batched",
    "monotone",
    "differentiable",
    "written",
    "resumable",
    "compiled",
)

Phase: TypeAlias = tuple[int, int, Literal["rising", "falling"]]


def check_schedule(
    schedule: Schedule,
    *,
    steps: Sequence[int] | None = None,
    bounds: tuple[float, float] | None = None,
    monotone: Sequence[Phase] = (),
    compiled: bool = False,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Raise ``LawViolation`` where laws of schedules fail; its report says which, at what step, and by how much.

    - pure: the same bits twice, whatever the default dtype, and the steps untouched;
    - total: a finite value at every step, and within ``bounds``, if given;
    - vectorised: the values one by one, as a tensor of any shape, and under ``vmap`` agree to 1e-12;
    - batched: with its hyperparameters as tensors, alone and ``vmap``-ped over several, it has the same values;
    - monotone: it never falls in a phase that is said to be rising, nor rises in one that is falling;
    - differentiable: finite derivatives by the step and by every hyperparameter, equal to differences between;
    - written: ``repr`` can be evaluated back and parsed, a config goes through JSON, it pickles, and it is put together
      from its pytree: each time to an equal schedule of equal hash;
    - resumable: the ``LRScheduler`` of ``to_torch`` gives its values, also resumed from its ``state_dict`` at a step
      (a different one for each schedule), which is one integer;
    - compiled (on request, as it takes seconds): one graph for all steps, that agrees to 1e-12.

    Args:
        schedule: what is checked.
        steps: those to look at; without them the first, the far, and those around every number in the schedule.
        bounds: the least and the largest value that it may have.
        monotone: phases ``(first, last, "rising" or "falling")``, both steps included.
        compiled: whether to compile it.
        laws, skip: names of the laws to look at, and of those to leave out.

    Returns:
        The report, where all laws hold.

    Raises:
        LawViolation: with the report.
        LawDoesNotApplyError: ``laws`` has ``"monotone"`` or ``"compiled"``, and nothing was given to look at.
        ValueError, TypeError: no schedule; no steps; bounds or a phase that are none; names of no law.
    """
    _check_arguments(schedule, steps, bounds)
    _check_phases(monotone)
    chosen = torch.tensor(steps if steps is not None else _telling_steps(schedule))
    values = torch.stack([schedule(int(step)) for step in chosen])
    scale = max(float(part(chosen).detach().abs().max()) for part in _parts(schedule))
    near = TOLERANCE * scale
    bundle: dict[str, Callable[[], Any]] = {
        "pure": lambda: _check_pure(schedule, chosen),
        "total": lambda: _check_total(schedule, chosen, values, bounds),
        "vectorised": lambda: _check_execution(schedule, chosen, values, near),
        "batched": lambda: _check_batched(schedule, chosen, values, near),
        "monotone": lambda: _check_each_phase(schedule, monotone, near),
        "differentiable": lambda: _check_slopes(schedule, chosen, scale),
        "written": lambda: _check_written(schedule),
        "resumable": lambda: _check_resumable(schedule),
        "compiled": lambda: _check_compiled_if(compiled, schedule, chosen, values, near),
    }
    return check_laws(f"the schedule {schedule!r}", bundle, laws=laws, skip=skip)


def _check_each_phase(schedule: Schedule, phases: Sequence[Phase], tolerance: float) -> None:
    if not phases:
        raise LawDoesNotApplyError("monotone= is not given")
    for phase in phases:
        _check_monotone(schedule, phase, tolerance)


def _check_compiled_if(asked: bool, schedule: Schedule, steps: Tensor, values: Tensor, tolerance: float) -> None:
    if not asked:
        raise LawDoesNotApplyError("compiled=True is not given")
    _check_compiled(schedule, steps, values, tolerance)


def _telling_steps(schedule: Schedule) -> list[int]:
    """The first steps, far ones, and those at and beside every whole number in the schedule, and their sums."""
    whole = sorted({int(leaf) for leaf in pytree.tree_leaves(schedule) if float(leaf).is_integer() and leaf > 0})
    sums = [sum(whole[: n + 1]) for n in range(len(whole))]
    beside = {n + side for n in (*whole, *sums) for side in (-1, 0, 1)}
    return sorted({*range(8), *FAR, *(n for n in beside if n <= FAR[-1])})


def _parts(schedule: Schedule) -> Iterator[Schedule]:
    yield schedule
    for value in pytree.tree_leaves(list(schedule.hyperparameters.values()), is_leaf=lambda v: isinstance(v, Schedule)):
        if isinstance(value, Schedule):
            yield from _parts(value)


def _fail(law: str, schedule: Schedule, what: str) -> LawViolation:
    return LawViolation(f"{schedule!r} breaks the law {law!r}: {what}")


@contextmanager
def _under(law: str, schedule: Schedule) -> Iterator[None]:
    """Tell what is raised inside by the law that it breaks."""
    try:
        yield
    except LawViolation:
        raise
    except Exception as error:
        raise _fail(law, schedule, f"it raised {type(error).__name__}: {error}") from error


def _check_close(
    law: str,
    schedule: Schedule,
    steps: Tensor,
    found: Tensor,
    right: Tensor,
    tolerance: float,
    *,
    than: str = "one by one",
) -> None:
    gap = (found - right).detach().abs()
    if not bool((gap <= tolerance).all()):
        worst = int(torch.nan_to_num(gap, nan=torch.inf).argmax())
        raise _fail(
            law,
            schedule,
            f"at step {int(steps[worst])} it is {float(found[worst])!r}, {than} {float(right[worst])!r}, "
            f"{float(gap[worst]):.2e} apart where {tolerance:.2e} is allowed",
        )


def _of_tensors(schedule: Schedule, factor: float = 1.0) -> Schedule:
    """The schedule with a tensor for each number; all of them times ``factor``."""
    return pytree.tree_map(lambda leaf: torch.as_tensor(leaf, dtype=torch.float64) * factor, schedule)


def _check_pure(schedule: Schedule, steps: Tensor) -> None:
    values = torch.stack([schedule(int(step)) for step in steps])
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            again = torch.stack([schedule(step) for step in steps])
            if not torch.equal(again, values):
                worst = int((again != values).nonzero()[0])
                raise _fail("pure", schedule, f"its value at step {int(steps[worst])} changed from call to call")
    finally:
        torch.set_default_dtype(default)
    given = steps.to(torch.float64)
    schedule(given)
    if not torch.equal(given, steps.to(torch.float64)):
        raise _fail("pure", schedule, "it wrote into the steps it was given")


def _check_total(schedule: Schedule, steps: Tensor, values: Tensor, bounds: tuple[float, float] | None) -> None:
    low, high = bounds if bounds is not None else (-torch.inf, torch.inf)
    outside = ~values.isfinite() | (values < low) | (values > high)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        right = "finite" if bounds is None else f"between {low} and {high}"
        raise _fail("total", schedule, f"at step {int(steps[first])} it is {float(values[first])}, not {right}")


def _check_execution(schedule: Schedule, steps: Tensor, values: Tensor, tolerance: float) -> None:
    with _under("vectorised", schedule):
        vector = schedule(steps)
        for shape in ((0,), (1, 1), (1, len(steps))):
            result = schedule(steps[: torch.Size(shape).numel()].reshape(shape))
            if result.shape != shape or result.dtype != torch.float64:
                raise _fail("vectorised", schedule, f"for steps of shape {shape} it is {result.dtype}, {result.shape}")
        _check_close("vectorised", schedule, steps, vector, values, tolerance)
        batch = torch.vmap(schedule)(steps)
        _check_close("vectorised", schedule, steps, batch, values, tolerance, than="outside vmap")


def _check_batched(schedule: Schedule, steps: Tensor, values: Tensor, tolerance: float) -> None:
    if not pytree.tree_leaves(schedule):
        return
    # Neighbours may be no schedules of use: they are compared where they are finite.
    with _under("batched", schedule):
        each = [_of_tensors(schedule, factor) for factor in (1.0, 1 - 2.0**-10, 1 - 2.0**-9)]
        alone = [one(steps) for one in each]
        _check_close("batched", schedule, steps, alone[0], values, tolerance, than="of numbers in place of tensors")
        batch = pytree.tree_map(lambda *leaves: torch.stack(leaves), *each)
        for found, right in zip(torch.vmap(lambda one: one(steps))(batch), alone, strict=True):
            seen = right.isfinite()
            allowed = TOLERANCE * float(right[seen].abs().max()) + tolerance
            _check_close("batched", schedule, steps[seen], found[seen], right[seen], allowed, than="alone")


def _check_arguments(schedule: Schedule, steps: Sequence[int] | None, bounds: tuple[float, float] | None) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule must be a schedule, got {schedule!r} of type {type(schedule).__name__}")
    if steps is not None and len([integer("steps", step, minimum=0) for step in steps]) == 0:
        raise ValueError(f"steps must hold at least one step, got {steps!r}")
    if bounds is not None and not (len(bounds) == 2 and bounds[0] <= bounds[1]):
        raise ValueError(f"bounds must be the least and the largest value, got {bounds!r}")


def _check_phases(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if not isinstance(phase, tuple | list) or len(phase) != 3:
            raise ValueError(f"monotone must hold phases (first, last, 'rising' or 'falling'), got {phase!r}")
        first, last, direction = phase
        integer("monotone's first step", first, minimum=0)
        integer("monotone's last step", last, minimum=first + 1)
        if direction not in ("rising", "falling"):
            raise ValueError(f"monotone's direction must be 'rising' or 'falling', got {direction!r}")


def _check_monotone(schedule: Schedule, phase: Phase, tolerance: float) -> None:
    first, last, direction = phase
    if last - first <= PHASE_STEPS:
        steps = torch.arange(first, last + 1)
    else:
        spread = torch.linspace(first, last, PHASE_STEPS, dtype=torch.float64).long()
        telling = torch.tensor([step for step in _telling_steps(schedule) if first <= step <= last], dtype=torch.int64)
        steps = torch.cat([spread, telling]).unique()
    values = schedule(steps).detach()
    wrong = -values.diff() if direction == "rising" else values.diff()
    if bool((wrong > tolerance).any()):
        worst = int(wrong.argmax())
        raise _fail(
            "monotone",
            schedule,
            f"it is {direction} from step {first} to {last}, but from step {int(steps[worst])} to "
            f"{int(steps[worst + 1])} it goes from {float(values[worst])!r} to {float(values[worst + 1])!r}, "
            f"{float(wrong[worst]):.2e} the wrong way where {tolerance:.2e} is allowed",
        )


def _check_slopes(schedule: Schedule, steps: Tensor, scale: float) -> None:
    leaves, tree = pytree.tree_flatten(schedule)
    arguments = [torch.as_tensor(leaf, dtype=torch.float64) for leaf in leaves]
    names = [pytree.keystr(path).removeprefix(".") for path, _ in pytree.tree_flatten_with_path(schedule)[0]]

    def value(step: Tensor, *hyperparameters: Tensor) -> Tensor:
        return pytree.tree_unflatten(hyperparameters, tree)(step)

    slopes = torch.vmap(
        torch.func.grad(value, argnums=tuple(range(len(arguments) + 1))), in_dims=(0, *[None] * len(arguments))
    )
    # Between whole steps, where a hyperparameter's small change moves no step over a corner.
    between = steps[steps <= 10**5].to(torch.float64) + 0.382
    for at, differences in ((steps.to(torch.float64), False), (between, True)):
        for n, (name, slope) in enumerate(zip(["step", *names], slopes(at, *arguments), strict=True)):
            if not bool(slope.isfinite().all()):
                first = int((~slope.isfinite()).nonzero()[0])
                raise _fail(
                    "differentiable",
                    schedule,
                    f"its derivative by {name} at step {float(at[first]):g} is {slope[first]}",
                )
            if differences:
                _check_differences(schedule, value, [at, *arguments], n, name, slope, scale)


def _check_differences(
    schedule: Schedule,
    value: Callable[..., Tensor],
    arguments: list[Tensor],
    n: int,
    name: str,
    slope: Tensor,
    scale: float,
) -> None:
    """The derivative lies between the differences to both sides: equal to both where smooth, a side's at a corner."""
    size = arguments[n].abs() + (arguments[n] == 0)

    def at(shift: float) -> Tensor:
        return value(*[a + shift * size if i == n else a for i, a in enumerate(arguments)])

    here = at(0.0)
    sides = torch.stack([(at(DIFFERENCE) - here), (here - at(-DIFFERENCE))]) / (DIFFERENCE * size)
    tolerance = SLOPE_TOLERANCE * (slope.abs() + scale / size)
    gap = torch.maximum(sides.amin(0) - slope, slope - sides.amax(0))
    if not bool((gap <= tolerance).all()):
        worst = int((gap - tolerance).argmax())
        raise _fail(
            "differentiable",
            schedule,
            f"its derivative by {name} at step {float(arguments[0][worst]):g} is {float(slope[worst]):.9g}, but the "
            f"differences to both sides are {float(sides[0, worst]):.9g} and {float(sides[1, worst]):.9g}",
        )


def _check_written(schedule: Schedule) -> None:
    ways: dict[str, Callable[[], Any]] = {
        "its repr": lambda: eval(repr(schedule), {"torch": torch, **CONSTRUCTORS}),
        "its repr, parsed,": lambda: ps.parse(repr(schedule)),
        "its config": lambda: ps.from_config(json.loads(json.dumps(schedule.to_config()))),
        "its pickle": lambda: pickle.loads(pickle.dumps(schedule)),
        "its pytree": lambda: pytree.tree_map(lambda leaf: leaf, schedule),
    }
    for source, read in ways.items():
        with _under("written", schedule):
            copy = read()
        if copy != schedule or hash(copy) != hash(schedule):
            raise _fail("written", schedule, f"{source} gives {copy!r}, which is not equal to it")


def _check_resumable(schedule: Schedule) -> None:
    stop = random.Random(repr(schedule)).randrange(1, TORCH_STEPS)
    steps = torch.arange(TORCH_STEPS)
    right = torch.stack([schedule(int(step)).detach() for step in steps])
    with _under("resumable", schedule):
        whole = _TorchRun(schedule)
        unbroken = whole.rates(TORCH_STEPS)
        _check_close("resumable", schedule, steps, unbroken, right, 0.0, than="of itself")
        before = _TorchRun(schedule)
        before.rates(stop)
        kept = json.loads(json.dumps(before.scheduler.state_dict()))
        if [type(value) for value in kept.values()] != [int]:
            raise _fail("resumable", schedule, f"the state_dict of its torch scheduler is no single int: {kept}")
        after = _TorchRun(schedule)
        after.scheduler.load_state_dict(kept)
        found = after.rates(TORCH_STEPS - stop)
        _check_close("resumable", schedule, steps[stop:], found, right[stop:], 0.0, than=f"unbroken, not from {stop},")


class _TorchRun:
    """An optimizer under the schedule's torch scheduler."""

    def __init__(self, schedule: Schedule) -> None:
        self.optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        self.scheduler = to_torch(schedule, self.optimizer)

    def rates(self, steps: int) -> Tensor:
        """Return the rates of the next steps."""
        rates = []
        for _ in range(steps):
            rates.append(float(self.optimizer.param_groups[0]["lr"]))
            self.optimizer.step()
            self.scheduler.step()
        return torch.tensor(rates, dtype=torch.float64)


def _check_compiled(schedule: Schedule, steps: Tensor, values: Tensor, tolerance: float) -> None:
    tensors = _of_tensors(schedule)
    compiled = torch.compile(lambda step: torch.stack([schedule(step), tensors(step)]), fullgraph=True, dynamic=False)
    with _under("compiled", schedule):
        compiled(steps[0])
        with torch.compiler.set_stance("fail_on_recompile"):
            numbers, of_tensors = torch.stack([compiled(step) for step in steps], dim=1)
        _check_close("compiled", schedule, steps, numbers, values, tolerance)
        _check_close("compiled", schedule, steps, of_tensors, values, tolerance, than="of numbers, one by one,")
