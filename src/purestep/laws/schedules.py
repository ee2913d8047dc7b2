"""The laws of schedules, as assertions, and a strategy that draws schedules over the whole algebra.

Run them over one's own schedules::

    @hypothesis.given(schedules())
    def test_laws(schedule):
        check_schedule(0.5 * my_schedule(peak=0.1) * schedule)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import purestep.schedules as ps
from purestep.laws._compare import LawViolation
from purestep.schedules import Schedule
from purestep.schedules._schedule import CONSTRUCTORS

TOLERANCE = 1e-12  # of two evaluations, relative to the largest value of the schedule and of its parts
SLOPE_TOLERANCE = 1e-5  # of a derivative against differences, relative to itself and to value over argument
DIFFERENCE = 2.0**-26
FAR = (10**4, 10**6, 2**24 + 1, 2**53 - 1, 2**62)


def check_schedule(
    schedule: Schedule,
    *,
    steps: Sequence[int] | None = None,
    bounds: tuple[float, float] | None = None,
    compiled: bool = False,
) -> None:
    """Raise ``LawViolation`` where a law of schedules fails; the message says which, at what step, and by how much.

    - pure: the same bits twice, whatever the default dtype, and the steps untouched;
    - vectorised, vmapped: the values one by one, as a tensor of any shape, and under ``vmap`` agree to 1e-12;
    - total: a finite value at every step, and within ``bounds``, if given;
    - differentiable: finite derivatives by the step and by every hyperparameter, equal to differences between;
    - written: ``repr`` can be evaluated back, a config goes through JSON, both to an equal schedule of equal hash;
    - tree: taken apart as a pytree and put together, it is the same;
    - compiled (on request, as it takes seconds): one graph for all steps, that agrees to 1e-12.

    ``steps`` are those to look at; without them the first, the far, and those around every number in the schedule.
    """
    chosen = torch.tensor(steps if steps is not None else _telling_steps(schedule))
    values = _check_pure(schedule, chosen)
    scale = max(float(part(chosen).detach().abs().max()) for part in _parts(schedule))
    _check_total(schedule, chosen, values, bounds)
    _check_execution(schedule, chosen, values, TOLERANCE * scale)
    _check_slopes(schedule, chosen, scale)
    _check_written(schedule)
    if compiled:
        _check_compiled(schedule, chosen, values, TOLERANCE * scale)


def schedules(*, max_leaves: int = 4) -> st.SearchStrategy[Schedule]:
    """Draw schedules: every constructor, and sums, products, joins and the rest of up to ``max_leaves`` of them."""
    return st.recursive(st.one_of(*BASIC.values()), _combined, max_leaves=max_leaves)


def _numbers(smallest: float, largest: float) -> st.SearchStrategy[float]:
    # Hundredths: what people write, and none of them subnormal.
    return st.integers(0, 100).map(lambda n: smallest + (largest - smallest) * n / 100)


def _or_tensor(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return numbers | numbers.map(lambda n: torch.tensor(n, dtype=torch.float64))


_rates = _or_tensor(_numbers(1e-4, 1.0))
_counts = st.integers(1, 40) | st.sampled_from([100, 1000, 12_345])
_exponents = st.sampled_from([0.25, 0.5, 1.0, 2.0])


@st.composite
def _warmup_cosines(draw: st.DrawFn) -> Schedule:
    peak, warmup = draw(_numbers(1e-3, 1.0)), draw(st.just(0) | _counts)
    return ps.warmup_cosine(
        peak,
        warmup,
        warmup + draw(_counts),
        initial=peak * draw(_numbers(0.0, 1.0)),
        floor=peak * draw(_numbers(0.0, 1.0)),
        power=draw(_exponents),
    )


# A strategy for each constructor by its name; our tests see to it that none is missing.
BASIC: dict[str, st.SearchStrategy[Schedule]] = {
    "constant": st.builds(ps.constant, _rates),
    "linear": st.builds(ps.linear, _or_tensor(_numbers(-1.0, 1.0)), _rates, _counts),
    "cosine": st.builds(
        lambda peak, part, steps, power: ps.cosine(peak, steps, floor=peak * part, power=power),
        _rates,
        _numbers(0.0, 1.0),
        _counts,
        _exponents,
    ),
    "warmup_cosine": _warmup_cosines(),
    "noam": st.builds(ps.noam, _counts, st.just(0) | _counts, factor=_rates),
}


def _combined(inner: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    return st.one_of(
        st.builds(lambda a, b: a * b, inner, inner | _rates),
        st.builds(lambda a, b: b * a, inner, _rates.filter(lambda r: not isinstance(r, Tensor))),
        st.builds(lambda a, b: a + b, inner, inner | _rates),
        st.builds(lambda a, b: a - b, inner, inner | _rates),
        st.builds(lambda a, b: a / b, inner, _rates),
        st.builds(lambda a, b, n: a.then(b, at=n), inner, inner, st.just(0) | _counts),
        st.builds(lambda a, n: a.shift(n), inner, st.integers(-40, 40)),
        st.builds(lambda a, low, width: a.clamp(min=low, max=low + width), inner, _rates, _rates),
        st.builds(lambda a, low: a.clamp(min=low), inner, _rates),
        st.builds(lambda a, n: a.repeat(every=n), inner, _counts),
    )


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


def _check_close(law: str, schedule: Schedule, steps: Tensor, found: Tensor, right: Tensor, tolerance: float) -> None:
    gap = (found - right).detach().abs()
    if not bool((gap <= tolerance).all()):
        worst = int(torch.nan_to_num(gap, nan=torch.inf).argmax())
        raise _fail(
            law,
            schedule,
            f"at step {int(steps[worst])} it is {float(found[worst])!r}, one by one {float(right[worst])!r}, "
            f"{float(gap[worst]):.2e} apart where {tolerance:.2e} is allowed",
        )


def _check_pure(schedule: Schedule, steps: Tensor) -> Tensor:
    """Return the values one by one."""
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
    return values


def _check_total(schedule: Schedule, steps: Tensor, values: Tensor, bounds: tuple[float, float] | None) -> None:
    low, high = bounds if bounds is not None else (-torch.inf, torch.inf)
    outside = ~values.isfinite() | (values < low) | (values > high)
    if bool(outside.any()):
        first = int(outside.nonzero()[0])
        right = "finite" if bounds is None else f"between {low} and {high}"
        raise _fail("total", schedule, f"at step {int(steps[first])} it is {float(values[first])}, not {right}")


def _check_execution(schedule: Schedule, steps: Tensor, values: Tensor, tolerance: float) -> None:
    vector = schedule(steps)
    for shape in ((0,), (1, 1), (1, len(steps))):
        result = schedule(steps[: torch.Size(shape).numel()].reshape(shape))
        if result.shape != shape or result.dtype != torch.float64:
            raise _fail("vectorised", schedule, f"for steps of shape {shape} it is {result.dtype}, {result.shape}")
    _check_close("vectorised", schedule, steps, vector, values, tolerance)
    _check_close("vmapped", schedule, steps, torch.vmap(schedule)(steps), values, tolerance)


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
    config = schedule.to_config()
    leaves, tree = pytree.tree_flatten(schedule)
    copies = {
        "its repr": eval(repr(schedule), {"torch": torch, **CONSTRUCTORS}),
        "its config": ps.from_config(json.loads(json.dumps(config))),
        "its pytree": pytree.tree_unflatten(leaves, tree),
    }
    for source, copy in copies.items():
        if copy != schedule or hash(copy) != hash(schedule):
            raise _fail("written", schedule, f"{source} gives {copy!r}, which is not equal to it")


def _check_compiled(schedule: Schedule, steps: Tensor, values: Tensor, tolerance: float) -> None:
    compiled = torch.compile(lambda step: schedule(step), fullgraph=True, dynamic=False)
    compiled(steps[0])
    with torch.compiler.set_stance("fail_on_recompile"):
        found = torch.stack([compiled(step) for step in steps])
    _check_close("compiled", schedule, steps, found, values, tolerance)
