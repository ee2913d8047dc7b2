"""Bad hyperparameters: each raises, and says which, what it was, and what would be right."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import purestep.schedules as ps
from purestep.schedules import Schedule, constant, cosine, from_config, linear, noam, warmup_cosine

C = constant(1.0)
BAD: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: constant(math.nan), ValueError, "value must be a finite number, got nan"),
    (lambda: constant(math.inf), ValueError, "value must be a finite number, got inf"),
    (lambda: constant("0.1"), TypeError, "value must be a finite number or a 0-d tensor, got '0.1' of type str"),
    (lambda: constant(True), TypeError, "value must be a finite number or a 0-d tensor, got True of type bool"),
    (lambda: constant(1j), TypeError, "value must be a finite number or a 0-d tensor, got 1j of type complex"),
    (lambda: constant(C), TypeError, "value must be a finite number or a 0-d tensor, got constant(value=1.0)"),
    (lambda: constant(torch.ones(3)), ValueError, "value must be a 0-d tensor, got one of shape (3,)"),
    (
        lambda: constant(torch.tensor(1j)),
        TypeError,
        "value must be a tensor of real numbers, got one of torch.complex64",
    ),
    (lambda: constant(), TypeError, "constant: missing a required argument: 'value'"),
    (lambda: cosine(0.1, 10, flor=0.0), TypeError, "cosine has no hyperparameter 'flor' (did you mean 'floor'?)"),
    (lambda: cosine(0.1, 10, 0.0), TypeError, "cosine: too many positional arguments; its hyperparameters are 'peak'"),
    (lambda: linear(0.0, 1.0, 0), ValueError, "steps must be at least 1, got 0"),
    (lambda: linear(0.0, 1.0, -5), ValueError, "steps must be at least 1, got -5"),
    (lambda: linear(0.0, 1.0, 2.5), TypeError, "steps must be an int, got 2.5 of type float"),
    (lambda: cosine(0.1, 0), ValueError, "total_steps must be at least 1, got 0"),
    (lambda: cosine(0.1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: cosine(-0.1, 10), ValueError, "floor must be at most peak (-0.1), got 0.0"),
    (lambda: cosine(0.1, 10, power=0), ValueError, "power must be above 0, got 0"),
    (lambda: warmup_cosine(0.1, -1, 10), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: warmup_cosine(0.1, 10, 10), ValueError, "warmup_steps must be below total_steps (10), got 10"),
    (lambda: warmup_cosine(0.1, 20, 10), ValueError, "warmup_steps must be below total_steps (10), got 20"),
    (lambda: warmup_cosine(0.1, 1, 10, initial=0.2), ValueError, "initial must be at most peak (0.1), got 0.2"),
    (lambda: warmup_cosine(0.1, 1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: warmup_cosine(0.1, 1, 10).replace(peak=math.nan), ValueError, "peak must be a finite number, got nan"),
    (lambda: noam(0, 10), ValueError, "d_model must be at least 1, got 0"),
    (lambda: noam(8, -1), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: noam(8, 1, factor=-1.0), ValueError, "factor must be at least 0, got -1.0"),
    (lambda: C * "a", TypeError, "right must be a schedule or a finite number or a 0-d tensor, got 'a' of type str"),
    (lambda: C + math.nan, ValueError, "right must be a finite number, got nan"),
    (lambda: C / 0, ValueError, "right must be a number other than 0 to divide a schedule by, got 0"),
    (lambda: C / C, TypeError, "right must be a finite number or a 0-d tensor, got constant(value=1.0)"),
    (lambda: 1 / C, TypeError, "unsupported operand"),
    (lambda: C.then(0.1, at=3), TypeError, "second must be a schedule, got 0.1 of type float"),
    (lambda: C.then(C, at=-1), ValueError, "at must be at least 0, got -1"),
    (lambda: C.then(C, at=1.5), TypeError, "at must be an int, got 1.5 of type float"),
    (lambda: C.shift(0.5), TypeError, "by must be an int, got 0.5 of type float"),
    (lambda: C.repeat(every=0), ValueError, "every must be above 0, got 0"),
    (lambda: C.repeat(every=5, decay=0.0), ValueError, "decay must be above 0 and at most 1, got 0.0"),
    (lambda: C.repeat(every=5, decay=2), ValueError, "decay must be above 0 and at most 1, got 2"),
    (lambda: ps.join([C, C], at=[]), ValueError, "schedules must hold one more than at (0), got 2"),
    (lambda: ps.join([C], at=[3]), ValueError, "schedules must hold one more than at (1), got 1"),
    (lambda: ps.join([C, C], at=[-1]), ValueError, "at[0] must be at least 0, got -1"),
    (lambda: ps.join([C, C, C], at=[5, 5]), ValueError, "at[1] must be above the one before it (5), got 5"),
    (lambda: ps.join([C, C], at=[2.5]), TypeError, "at must be an int, got 2.5 of type float"),
    (lambda: ps.join([C, 0.1], at=[2]), TypeError, "schedules must be a schedule, got 0.1 of type float"),
    (lambda: ps.join(C, at=[]), TypeError, "schedules must be a tuple whose elements are each a schedule"),
    (lambda: ps.maximum(), TypeError, "schedules must hold at least one schedule, got ()"),
    (lambda: ps.maximum(0.1, 0.2), TypeError, "schedules must hold at least one schedule, got (0.1, 0.2)"),
    (lambda: ps.maximum(schedules=C), TypeError, "schedules must be a tuple, got constant(value=1.0) of type Schedule"),
    (lambda: ps.minimum(C, math.nan), ValueError, "schedules must be a finite number, got nan"),
    (lambda: ps.minimum(C, "a"), TypeError, "schedules must be a schedule or a finite number or a 0-d tensor, got 'a'"),
    (lambda: ps.polynomial(0.1, 0), ValueError, "total_steps must be at least 1, got 0"),
    (lambda: ps.polynomial(0.1, 10, power=0.0), ValueError, "power must be above 0, got 0.0"),
    (lambda: ps.polynomial(0.1, 10, k_decay=-1.0), ValueError, "k_decay must be above 0, got -1.0"),
    (lambda: ps.polynomial(0.1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: ps.exponential(0.1, 0.0), ValueError, "rate must be above 0 and at most 1, got 0.0"),
    (lambda: ps.exponential(0.1, 1.1), ValueError, "rate must be above 0 and at most 1, got 1.1"),
    (lambda: ps.exponential(0.1, 0.9, every=0), ValueError, "every must be at least 1, got 0"),
    (lambda: ps.exponential(0.1, 0.9, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (
        lambda: ps.exponential(0.1, 0.9, staircase=1),
        TypeError,
        "staircase must be one of True, False, got 1 of type int",
    ),
    (lambda: ps.step_decay(0.1, 0), ValueError, "every must be at least 1, got 0"),
    (lambda: ps.step_decay(0.1, 1.5), TypeError, "every must be an int, got 1.5 of type float"),
    (lambda: ps.step_decay(0.1, 5, rate=-0.1), ValueError, "rate must be above 0 and at most 1, got -0.1"),
    (lambda: ps.tanh_decay(0.1, 10, lower=3.0), ValueError, "lower must be below upper (3.0), got 3.0"),
    (lambda: ps.tanh_decay(0.1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: ps.tanh_decay(0.1, 0), ValueError, "total_steps must be at least 1, got 0"),
    (lambda: ps.sigmoid_decay(0.1, 10, steepness=0), ValueError, "steepness must be above 0, got 0"),
    (lambda: ps.sigmoid_decay(0.1, 10, midpoint=math.inf), ValueError, "midpoint must be a finite number, got inf"),
    (lambda: ps.sigmoid_decay(0.1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: ps.sigmoid_decay(0.1, 0), ValueError, "total_steps must be at least 1, got 0"),
    (lambda: ps.one_minus_sqrt(0.1, -1), ValueError, "total_steps must be at least 1, got -1"),
    (lambda: ps.one_minus_sqrt(0.1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: ps.multi_step(0.1, []), ValueError, "boundaries must hold at least one step, got ()"),
    (lambda: ps.multi_step(0.1, [0]), ValueError, "boundaries[0] must be at least 1, got 0"),
    (lambda: ps.multi_step(0.1, [5, 3]), ValueError, "boundaries[1] must be above the one before it (5), got 3"),
    (lambda: ps.multi_step(0.1, [5, 5]), ValueError, "boundaries[1] must be above the one before it (5), got 5"),
    (lambda: ps.multi_step(0.1, [2.5]), TypeError, "boundaries must be an int, got 2.5 of type float"),
    (
        lambda: ps.multi_step(0.1, 5),
        TypeError,
        "boundaries must be a tuple whose elements are each an int or a 0-d tensor",
    ),
    (lambda: ps.multi_step(0.1, [5], rate=0), ValueError, "rate must be above 0 and at most 1, got 0"),
    (lambda: ps.piecewise_constant([1.0], [5]), ValueError, "values must hold one more than boundaries (1), got 1"),
    (lambda: ps.piecewise_constant([1.0], []), ValueError, "boundaries must hold at least one step, got ()"),
    (lambda: ps.piecewise_constant([1.0, math.nan], [5]), ValueError, "values must be a finite number, got nan"),
    (
        lambda: ps.piecewise_interpolate([1.0, 2.0, 3.0], [5, 4]),
        ValueError,
        "boundaries[1] must be above the one before it (5), got 4",
    ),
    (
        lambda: ps.piecewise_interpolate([1.0, 2.0], [5], kind="cubic"),
        TypeError,
        "kind must be one of 'linear', 'cosine', got 'cubic' of type str",
    ),
    (lambda: ps.multiplicative(0.1, []), ValueError, "factors must hold at least one factor, got ()"),
    (lambda: ps.multiplicative(0.1, [1.0, -1.0]), ValueError, "factors[1] must be at least 0, got -1.0"),
    (lambda: ps.warm_restarts(0.1, 0), ValueError, "period must be at least 1, got 0"),
    (lambda: ps.warm_restarts(0.1, 2.5), TypeError, "period must be an int, got 2.5 of type float"),
    (lambda: ps.warm_restarts(0.1, 5, multiplier=0.5), ValueError, "multiplier must be at least 1, got 0.5"),
    (lambda: ps.warm_restarts(0.1, 5, decay=1.5), ValueError, "decay must be above 0 and at most 1, got 1.5"),
    (lambda: ps.warm_restarts(0.1, 5, floor=0.5), ValueError, "floor must be at most peak (0.1), got 0.5"),
    (lambda: ps.warm_restarts(0.1, 5, cycles=0), ValueError, "cycles must be at least 1, got 0"),
    (lambda: ps.one_cycle(0.1, 1), ValueError, "total_steps must be at least 2, got 1"),
    (lambda: ps.one_cycle(0.0, 10), ValueError, "peak must be above 0, got 0.0"),
    (
        lambda: ps.one_cycle(0.1, 10, warmup_fraction=0),
        ValueError,
        "warmup_fraction must be above 0 and below 1, got 0",
    ),
    (
        lambda: ps.one_cycle(0.1, 10, warmup_fraction=1.0),
        ValueError,
        "warmup_fraction must be above 0 and below 1, got 1",
    ),
    (
        lambda: ps.one_cycle(0.1, 10, warmup_fraction=0.5, three_phase=True),
        ValueError,
        "warmup_fraction must be above 0 and below 0.5, got 0.5",
    ),
    (
        lambda: ps.one_cycle(0.1, 10, warmup_fraction=0.01),
        ValueError,
        "warmup_fraction must leave a step or more to each phase of total_steps (10), got 0.01, whose warm-up has 0",
    ),
    (lambda: ps.one_cycle(0.1, 10, start_divisor=0.5), ValueError, "start_divisor must be at least 1, got 0.5"),
    (lambda: ps.one_cycle(0.1, 10, end_divisor=0), ValueError, "end_divisor must be at least 1, got 0"),
    (lambda: ps.one_cycle(0.1, 10, anneal="exp"), TypeError, "anneal must be one of 'cosine', 'linear', got 'exp'"),
    (lambda: ps.one_cycle_momentum(0.95, 0.85, 10), ValueError, "low must be at most high (0.85), got 0.95"),
    (lambda: ps.one_cycle_momentum(0.85, 0.95, 0), ValueError, "total_steps must be at least 2, got 0"),
    (lambda: ps.cyclic(0.1, 0.01, 5), ValueError, "low must be at most high (0.01), got 0.1"),
    (lambda: ps.cyclic(0.01, 0.1, 0), ValueError, "up_steps must be at least 1, got 0"),
    (lambda: ps.cyclic(0.01, 0.1, 5, down_steps=0), ValueError, "down_steps must be at least 1, got 0"),
    (lambda: ps.cyclic(0.01, 0.1, 5, gamma=1.1), ValueError, "gamma must be above 0 and at most 1, got 1.1"),
    (
        lambda: ps.cyclic(0.01, 0.1, 5, mode="sine"),
        TypeError,
        "mode must be one of 'triangular', 'triangular2', 'exp_r",
    ),
    (lambda: ps.cyclic_momentum(0.95, 0.85, 5), ValueError, "low must be at most high (0.85), got 0.95"),
    (lambda: ps.inverse_sqrt(0.1, -1), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: ps.inverse_sqrt(0.1, 5, timescale=0), ValueError, "timescale must be above 0, got 0"),
    (lambda: ps.wsd(0.1, -1, 5, 5), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: ps.wsd(0.1, 5, -1, 5), ValueError, "stable_steps must be at least 0, got -1"),
    (lambda: ps.wsd(0.1, 5, 5, 0), ValueError, "decay_steps must be at least 1, got 0"),
    (lambda: ps.wsd(0.1, 5, 5, 5, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: ps.wsd(0.1, 5, 5, 5, initial=0.2), ValueError, "initial must be at most peak (0.1), got 0.2"),
    (
        lambda: ps.wsd(0.1, 5, 5, 5, decay="sqrt"),
        TypeError,
        "decay must be one of 'linear', 'cosine', 'one_minus_sqrt'",
    ),
    (lambda: ps.tri_stage(0.0, 5, 5, 5), ValueError, "peak must be above 0, got 0.0"),
    (lambda: ps.tri_stage(0.1, 5, 5, 0), ValueError, "decay_steps must be at least 1, got 0"),
    (lambda: ps.tri_stage(0.1, 5, -5, 5), ValueError, "hold_steps must be at least 0, got -5"),
    (lambda: ps.tri_stage(0.1, 5, 5, 5, final=0.0), ValueError, "final must be above 0, got 0.0"),
    (lambda: ps.tri_stage(0.1, 5, 5, 5, final=0.2), ValueError, "final must be at most peak (0.1), got 0.2"),
    (lambda: ps.tri_stage(0.1, 5, 5, 5, initial=0.2), ValueError, "initial must be at most peak (0.1), got 0.2"),
    (lambda: ps.swa_anneal(C, 0.05, -1, 5), ValueError, "start must be at least 0, got -1"),
    (lambda: ps.swa_anneal(C, 0.05, 5, -1), ValueError, "steps must be at least 0, got -1"),
    (lambda: ps.swa_anneal("C", 0.05, 5, 1), TypeError, "inner must be a schedule or a finite number or a 0-d tensor"),
    (lambda: ps.warmup(0.1, 5), TypeError, "inner must be a schedule, got 0.1 of type float"),
    (lambda: ps.warmup(C, -5), ValueError, "steps must be at least 0, got -5"),
    (lambda: ps.warmup(C, 5, kind="exponential"), ValueError, "initial must be above 0, got 0.0"),
    (
        lambda: ps.warmup(linear(0.0, 1.0, 5), 5, initial=0.1, kind="exponential"),
        ValueError,
        "inner must begin above 0 for an exponential warm-up, got linear(start=0.0, end=1.0, steps=5), 0.0 at step 0",
    ),
    (
        lambda: ps.warmup(C, 5, kind="sqrt"),
        TypeError,
        "kind must be one of 'linear', 'exponential', 'constant', 'cosine'",
    ),
    (lambda: ps.warmup_linear(0.1, 10, 10), ValueError, "warmup_steps must be below total_steps (10), got 10"),
    (lambda: ps.warmup_linear(0.1, 1, 10, floor=0.2), ValueError, "floor must be at most peak (0.1), got 0.2"),
    (lambda: ps.warmup_exponential(0.1, -1, 0.9), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: ps.warmup_exponential(0.1, 1, 1.9), ValueError, "rate must be above 0 and at most 1, got 1.9"),
    (
        lambda: ps.warmup_exponential(0.1, 1, 0.9, initial=0.2),
        ValueError,
        "initial must be at most peak (0.1), got 0.2",
    ),
    (lambda: ps.warmup_constant(0.1, -1), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: ps.warmup_constant(0.1, 1, initial=0.2), ValueError, "initial must be at most peak (0.1), got 0.2"),
    (lambda: ps.resnet_warmup(0.1, -1), ValueError, "warmup_steps must be at least 0, got -1"),
    (lambda: ps.resnet_warmup(0.1, 5, warm=0.2), ValueError, "warm must be at most peak (0.1), got 0.2"),
    (lambda: ps.function(3), TypeError, "f must be a function, got 3 of type int"),
    (lambda: ps.function(C), TypeError, "f must be a function, got constant(value=1.0) of type Schedule"),
    (lambda: ps.function(lambda step: 0.1)(3), TypeError, "function must return a tensor like step: torch.float64, ()"),
    (lambda: ps.noise(C, -1), ValueError, "seed must be at least 0, got -1"),
    (lambda: ps.noise(C, 1 << 53), ValueError, "seed must be below 2**53, got 9007199254740992"),
    (lambda: ps.noise(C, 0.5), TypeError, "seed must be an int, got 0.5 of type float"),
    (lambda: ps.noise(C, 1, scale=-0.1), ValueError, "scale must be at least 0, got -0.1"),
    (lambda: ps.noise(C, 1, spread=0.0), ValueError, "spread must be above 0, got 0.0"),
    (lambda: ps.noise(C, 1, start=5, stop=5), ValueError, "start must be below stop (5), got 5"),
    (lambda: ps.noise(C, 1, start=-5), ValueError, "start must be at least 0, got -5"),
    (lambda: ps.noise(C, 1, kind="gamma"), TypeError, "kind must be one of 'normal', 'uniform', got 'gamma'"),
    (lambda: C.clamp(), ValueError, "min or max must be a number, got None for both"),
    (lambda: C.clamp(min=2, max=1), ValueError, "min must be at most max (1), got 2"),
    (lambda: C.plot(0), ValueError, "steps must be an int of at least 1, got 0"),
    (lambda: from_config([1]), TypeError, "config must be a dict, as to_config returns, got [1] of type list"),
    (
        lambda: from_config({"peak": 1}),
        ValueError,
        "config must name its constructor under 'schedule', got the keys 'peak'",
    ),
    (lambda: from_config({"schedule": "cosin"}), ValueError, "got 'cosin' (did you mean 'cosine'"),
    (
        lambda: from_config({"schedule": ["cosine"]}),
        ValueError,
        "config['schedule'] must be the name of a schedule, got ['cosine']",
    ),
    (
        lambda: from_config({"schedule": "maximum", "schedules": 5}),
        TypeError,
        "schedules must be a tuple, got 5 of type int",
    ),
    *(
        (
            lambda value=value: from_config({"schedule": "constant", "value": value}),
            ValueError,
            "a tensor in a config must be {'tensor': a number, 'dtype': the name of a dtype, such as 'float64'}, "
            f"got {value!r}",
        )
        for value in ({"tensor": 1.0}, {"tensor": 1.0, "dtype": "nn"}, {"tensor": "1", "dtype": "float64"})
    ),
    (
        lambda: from_config({"schedule": "multiply", "left": 1, "right": 2}),
        TypeError,
        "left or right must be a schedule",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_hyperparameters(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_tensors_are_taken_as_they_are() -> None:
    """Their values may not be known: they may be traced, batched, or on a device."""
    bad = torch.tensor(-1.0)
    for one in (
        cosine(bad, 10),
        ps.multi_step(0.1, [torch.tensor(5), torch.tensor(3)]),
        ps.one_cycle(0.1, 10, warmup_fraction=torch.tensor(2.0)),
        ps.warmup(constant(bad), 5, initial=0.1, kind="exponential"),
        ps.noise(C, torch.tensor(3), scale=bad),
    ):
        assert isinstance(one, Schedule)
