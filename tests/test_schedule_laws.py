"""The laws of schedules catch what breaks them: a schedule for each law, that keeps the laws before it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purestep as ps
from purestep.integrations import torch_scheduler
from purestep.laws import LawViolation, check_schedule
from purestep.schedules import constant, cosine, function, linear, noam, schedule, warmup_cosine

# --- schedules that break a law ---------------------------------------------------------------------------------------

CALLS = iter(range(10**9))


@schedule
def broken_counts_its_calls(step: Tensor, peak: float) -> Tensor:
    return step * 0 + peak * next(CALLS)


@schedule
def broken_default_dtype(step: Tensor, peak: float) -> Tensor:
    return step * 0 + torch.tensor(peak)


@schedule
def broken_writes_its_step(step: Tensor, peak: float) -> Tensor:
    return step.add_(1) * 0 + peak


@schedule
def broken_infinite_start(step: Tensor, peak: float) -> Tensor:
    return peak * step**-0.5


@schedule
def broken_grows(step: Tensor, rate: float) -> Tensor:
    return torch.exp(rate * step)


@schedule
def broken_looks_at_its_neighbours(step: Tensor, peak: float) -> Tensor:
    return step * 0 + (peak if step.sum() < 10 else 0.5 * peak)


@schedule
def broken_float32(step: Tensor, peak: float, length: int) -> Tensor:
    return (peak / (1 + step.float() / length)).double() if step.ndim else peak / (1 + step / length)


@schedule
def broken_assigns_by_mask(step: Tensor, peak: float) -> Tensor:
    value = step * 0 + peak
    value[step > 3] = 0.5 * peak
    return value


@schedule
def broken_by_tensors(step: Tensor, peak: float) -> Tensor:
    return step * 0 + (1.001 * peak if isinstance(peak, Tensor) else peak)


@schedule
def broken_reads_its_peak(step: Tensor, peak: float) -> Tensor:
    return step * 0 + (peak if peak > 0.5 else 2 * peak)


@schedule
def broken_ripples(step: Tensor, start: float, end: float, steps: int) -> Tensor:
    part = torch.clamp(step / steps, max=1.0)
    return start + (end - start) * part + 1e-3 * torch.sin(step.clamp(max=100))


@schedule
def broken_detached(step: Tensor, peak: float) -> Tensor:
    return step * 0 + torch.as_tensor(peak, dtype=step.dtype).detach()


@schedule
def broken_single_where(step: Tensor, peak: float, warmup_steps: int) -> Tensor:
    count = step.clamp(min=0.0)
    return torch.where(step < warmup_steps, peak * step / warmup_steps, peak * torch.where(count > 0, count**-0.5, 1.0))


@schedule
def broken_compiled(step: Tensor, peak: float) -> Tensor:
    return step * 0 + (1.001 * peak if torch.compiler.is_compiling() else peak)


@schedule
def broken_pole(step: Tensor, peak: float, at: int) -> Tensor:
    return torch.where(step == at, peak * 1e3, peak + step * 0)


def made_inside() -> Any:
    @schedule
    def broken_has_no_home(step: Tensor, peak: float) -> Tensor:
        return step * 0 + peak

    return broken_has_no_home(0.1)


BROKEN: list[tuple[Any, dict[str, Any], str, str]] = [
    (broken_counts_its_calls(0.1), {}, "pure", r"its value at step 0 changed from call to call"),
    (broken_default_dtype(0.1), {}, "pure", r"its value at step 0 changed from call to call"),
    (broken_writes_its_step(0.1), {}, "pure", r"it wrote into the steps it was given"),
    (broken_infinite_start(0.1), {}, "total", r"at step 0 it is inf, not finite"),
    (broken_grows(0.1), {}, "total", r"at step 10000 it is inf, not finite"),
    (linear(1.0, 0.1, 9), {"bounds": (0.2, 1.0)}, "total", r"at step 9 it is 0.1, not between 0.2 and 1.0"),
    (broken_pole(0.1, 7), {"bounds": (0.0, 1.0)}, "total", r"at step 7 it is 100.0, not between 0.0 and 1.0"),
    (broken_looks_at_its_neighbours(0.1), {}, "vectorised", r"at step 0 it is 0.05, one by one 0.1, 5.00e-02 apart"),
    (broken_float32(0.1, 77), {}, "vectorised", r"at step \d+ it is .*, one by one .* apart where 1.00e-13 is allowed"),
    (broken_assigns_by_mask(0.1), {}, "vectorised", r"it raised RuntimeError: .*vmap"),
    (broken_by_tensors(0.1), {}, "batched", r"it is 0.1001\d*, of numbers in place of tensors 0.1, 1.00e-04 apart"),
    (broken_reads_its_peak(0.1), {}, "batched", r"it raised RuntimeError: .*vmap"),
    (
        broken_ripples(0.0, 1.0, 10**5),
        {"monotone": [(0, 10**5, "rising")]},
        "monotone",
        r"it is rising from step 0 to 100000, but from step \d+ to \d+ it goes from .* to .*, 1.80e-03 the wrong way",
    ),
    (
        warmup_cosine(0.1, 10, 100),
        {"monotone": [(0, 10, "rising"), (9, 20, "falling")]},
        "monotone",
        r"it is falling from step 9 to 20, but from step 9 to 10 it goes from 0.09\d* to 0.1, 1.00e-02 the wrong way",
    ),
    (broken_detached(0.1), {}, "differentiable", r"its derivative by peak at step 0.382 is 0, but the differences"),
    (broken_single_where(0.1, 4), {}, "differentiable", r"its derivative by step at step 0 is nan"),
    (made_inside(), {}, "written", r"it raised (Attribute|Pickling)Error: Can't (pickle|get) local object"),
    (function(lambda step: 0 * step), {}, "written", r"it raised SyntaxError: invalid syntax"),
]


@pytest.mark.parametrize(("broken", "arguments", "law", "message"), BROKEN, ids=lambda value: None)
def test_a_broken_law_is_found_and_named(broken, arguments, law, message):
    with pytest.raises(LawViolation) as caught:
        check_schedule(broken, **arguments)
    assert f"- {law}: {broken!r} breaks the law {law!r}: " in str(caught.value)
    assert re.search(message, str(caught.value)), str(caught.value)


@pytest.mark.compiler
def test_a_schedule_that_is_another_when_compiled_is_found():
    check_schedule(broken_compiled(0.1))
    with pytest.raises(LawViolation, match=r"breaks the law 'compiled': at step 0 it is 0.1001\d*, one by one 0.1"):
        check_schedule(broken_compiled(0.1), compiled=True, steps=[0, 1])


class Forgets(torch_scheduler.ScheduleLR):
    def load_state_dict(self, state_dict):
        super().load_state_dict({"last_epoch": 0})


class Late(torch_scheduler.ScheduleLR):
    def get_lr(self):
        return [self.schedule_of(0)(max(self.last_epoch - 1, 0)).item()]


class Keeps(torch_scheduler.ScheduleLR):
    def state_dict(self):
        return {**super().state_dict(), "base": 0.1}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Forgets, r"at step \d+ it is 0.\d+, unbroken, not from \d+, 0.0\d+, .* apart where 0.00e\+00 is allowed"),
        (Late, r"at step \d+ it is 0.\d+, of itself 0.\d+, .* apart where 0.00e\+00 is allowed"),
        (Keeps, r"the state_dict of its torch scheduler is no single int: \{'last_epoch': \d+, 'base': 0.1\}"),
    ],
)
def test_a_torch_scheduler_that_does_not_resume_is_found(broken, message, monkeypatch):
    made = cosine(0.1, 100)
    check_schedule(made)
    monkeypatch.setattr(torch_scheduler, "ScheduleLR", broken)
    with pytest.raises(LawViolation, match=f"breaks the law 'resumable': {message}"):
        check_schedule(made)


# --- and pass what keeps them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "arguments"),
    [
        (warmup_cosine(0.1, 10, 100), {"monotone": [(0, 10, "rising"), (10, 2**62, "falling")], "bounds": (0.0, 0.1)}),
        (linear(-1.0, 1.0, 7), {"monotone": [(0, 10**9, "rising")], "bounds": (-1.0, 1.0)}),
        (constant(0.3), {"monotone": [(0, 5, "rising"), (0, 5, "falling")]}),
        (noam(64, 10) * 0.5 + cosine(0.1, 7).repeat(every=7), {"steps": [0, 3, 10**6]}),
        (constant(torch.tensor(0.1)), {"bounds": (0.0, 0.11)}),
    ],
)
def test_sound_schedules_pass(one, arguments):
    check_schedule(one, **arguments)


@pytest.mark.parametrize(
    ("phase", "error", "message"),
    [
        ((-1, 5, "rising"), ValueError, "monotone's first step must be an int of at least 0, got -1"),
        ((0.5, 5, "rising"), TypeError, "monotone's first step must be an int of at least 0, got 0.5"),
        ((5, 5, "rising"), ValueError, "monotone's last step must be an int of at least 6, got 5"),
        ((0, 5, "up"), ValueError, "monotone's direction must be 'rising' or 'falling', got 'up'"),
        ((0, 5), ValueError, "monotone must hold phases (first, last, 'rising' or 'falling'), got (0, 5)"),
    ],
)
def test_bad_phases(phase, error, message):
    with pytest.raises(error) as caught:
        check_schedule(constant(0.1), monotone=[phase])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": 0.1}, TypeError, "schedule must be a schedule, got 0.1 of type float"),
        ({"steps": []}, ValueError, "steps must hold at least one step, got []"),
        ({"steps": [-1]}, ValueError, "steps must be an int of at least 0, got -1"),
        ({"steps": [0.5]}, TypeError, "steps must be an int of at least 0, got 0.5"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be the least and the largest value, got (1.0, 0.0)"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error) as caught:
        check_schedule(**{"schedule": constant(0.1), **arguments})
    assert message in str(caught.value)


# --- what a schedule costs a compiled step ----------------------------------------------------------------------------


@pytest.mark.compiler
def test_a_schedule_adds_no_kernel_to_a_compiled_step():
    rate = linear(0.0, 0.1, 2).then(cosine(0.1, 9), at=2) * noam(8, 4)
    own, with_schedule = calls_of_compiled_step(0.1), calls_of_compiled_step(rate)
    assert len(with_schedule) <= len(own), f"{with_schedule} where a constant rate has {own}"
    assert any("cos" in name for name in with_schedule), "the schedule is computed in the graph"


def calls_of_compiled_step(rate: Any) -> list[str]:
    """The kernels that the code of a small compiled step calls, products included."""
    from torch._inductor.utils import run_and_get_code

    def objective(model: Callable[..., Tensor], batch: dict[str, Tensor]) -> ps.Mean:
        return ps.mean(F.mse_loss(model(batch["x"]), batch["y"], reduction="none").sum(1))

    model, optimizer = nn.Linear(3, 2), ps.sgd(rate)
    step, state = ps.train_step(model, objective, optimizer), ps.init_state(model, optimizer, seed=0)
    _, sources = run_and_get_code(ps.compile(step), state, {"x": torch.ones(4, 3), "y": torch.ones(4, 2)})
    assert len(sources) == 1, "one graph"
    return re.findall(r"^\s+(cpp_\w+|extern_kernels\.\w+|aten\.\w+)\(", sources[0], re.MULTILINE)
