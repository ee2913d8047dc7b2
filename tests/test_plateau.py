"""The plateau: torch's ReduceLROnPlateau as a pure machine, in a step and in a run."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn
from torch._dynamo.utils import counters

import purestep as ps
from _fit import kept
from purestep.schedules import plateau
from purestep.schedules.plateau import Plateau
from purestep.updates import FromContext, UpdateContext

metrics = st.one_of(
    st.floats(-2.0, 2.0), st.sampled_from([0.0, 1.0, 0.9999, 1.0001, -1.0, math.nan, math.inf, -math.inf])
)


@st.composite
def options(draw):
    return {
        "mode": draw(st.sampled_from(["min", "max"])),
        "factor": draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999])),
        "patience": draw(st.integers(0, 4)),
        "threshold": draw(st.sampled_from([0.0, 1e-4, 0.2, 1.0])),
        "threshold_mode": draw(st.sampled_from(["rel", "abs"])),
        "cooldown": draw(st.integers(0, 3)),
        "eps": draw(st.sampled_from([0.0, 1e-8, 1e-3, 0.04])),
    }


def run(machine, values):
    """Return the rates after each observation, and the states."""
    state, rates, states = machine.init(), [], []
    for value in values:
        state = machine.update(state, value)
        states.append(state)
        rates.append((machine.base * machine.scale(state)).item())
    return rates, states


def torch_run(given, values, base, floor):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=floor, **given)
    rates, counts = [], []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
        counts.append((scheduler.best, scheduler.num_bad_epochs, scheduler.cooldown_counter))
    return rates, counts


def assert_is_torchs(kind, given, values, base, floor):
    rates, states = run(kind(**given, base=base, floor=floor), values)
    right, counts = torch_run(given, values, base, floor)
    assert rates == pytest.approx(right, rel=1e-12, abs=0)
    assert [(s["best"].item(), s["bad"].item(), s["cooldown"].item()) for s in states] == counts


@settings(max_examples=60)
@given(options(), st.lists(metrics, max_size=40), st.sampled_from([1.0, 0.1, 3e-4]), st.sampled_from([0.0, 1e-4, 3e-4]))
def test_it_is_torchs(given, values, base, floor):
    assert_is_torchs(plateau, given, values, base, floor)


class Hasty(Plateau):
    """Takes an equal metric for a better one, as where ``<`` is written ``<=``."""

    def _is_better(self, value, best):
        return super()._is_better(value, best) | (value == best)


def test_the_comparison_with_torch_catches_a_mutant():
    given, values = {"patience": 1, "threshold": 0.0}, [1.0] * 6
    assert_is_torchs(plateau, given, values, 0.1, 0.0)
    with pytest.raises(AssertionError):
        assert_is_torchs(Hasty, given, values, 0.1, 0.0)


def test_a_metric_that_is_nan_is_a_bad_one_and_never_the_best():
    machine = plateau(patience=1, factor=0.5)
    rates, states = run(machine, [1.0, math.nan, math.nan, 0.5])
    assert rates == [1.0, 1.0, 0.5, 0.5]
    assert [s["best"].item() for s in states] == [1.0, 1.0, 1.0, 0.5]


def test_the_first_cut_comes_with_observation_patience_plus_two():
    assert run(plateau(patience=2), [1.0] * 4)[0] == pytest.approx([1.0, 1.0, 1.0, 0.1])


@given(options(), st.lists(metrics, min_size=1, max_size=12))
def test_vmapped_over_hyperparameters_and_metrics_it_is_the_same(given, values):
    factors, patiences = (0.1, 0.5, 0.9), (0, 1, 3)

    def scales(factor, patience, floor, observed):
        machine = plateau(**{**given, "factor": factor, "patience": patience, "floor": floor, "base": 2.0})
        state = machine.init()
        for value in observed:
            state = machine.update(state, value)
        return machine.scale(state)

    floors = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    observed = torch.tensor([values, values[::-1], [0.5] * len(values)], dtype=torch.float64)
    together = torch.vmap(scales)(torch.tensor(factors, dtype=torch.float64), torch.tensor(patiences), floors, observed)
    alone = [scales(f, p, b.item(), o) for f, p, b, o in zip(factors, patiences, floors, observed, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)


def test_compiled_it_is_the_same():
    machine = plateau(factor=0.5, patience=1, cooldown=1, floor=1e-3, base=0.1)
    compiled = torch.compile(machine.update, fullgraph=True, backend="eager")
    state = other = machine.init()
    for value in [1.0, math.nan, 1.0, 1.0, 0.5, 0.6, 0.6, 0.6]:
        value = torch.tensor(value)
        state, other = machine.update(state, value), compiled(other, value)
        assert (state == other).all()
    assert machine.scale(state) < 1


def test_a_state_of_many_is_many_states():
    machine = plateau(patience=0)
    many = torch.stack([machine.init(), machine.init()])
    for value in ([1.0, 1.0], [1.0, 0.5]):
        many = machine.update(many, torch.tensor(value))
    assert machine.scale(many).tolist() == [0.1, 1.0]


# In a step.

RATE = ps.schedules.linear(0.0, 0.1, 4)


def regression(rate, **others):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()

    def objective(model, batch):
        return ps.mean(F.mse_loss(model(batch["x"]), batch["y"], reduction="none"))

    optimizer = ps.sgd(rate, **others)
    return model, objective, optimizer


def batch(seed, length=6):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return TensorDict({"x": x, "y": x.sum(1, keepdim=True)}, batch_size=[length])


def reduced(state, machine, times):
    """The state after so many cuts."""
    own = state.aux["plateau"]
    for _ in range(times * (machine.patience + 1) + 1):
        own = machine.update(own, 1.0)
    return state.replace(aux=TensorDict({**dict(state.aux.items()), "plateau": own}, batch_size=[]))


def test_the_rate_of_a_step_is_the_schedules_times_the_scale():
    machine = plateau(factor=0.5, patience=0)
    model, objective, optimizer = regression(machine.times(RATE), momentum=machine.times(0.9))
    step = ps.train_step(model, objective, optimizer)
    state = ps.init_state(model, optimizer, seed=0, aux={"plateau": machine})
    plain = ps.train_step(model, objective, ps.sgd(0.25 * RATE, momentum=0.225))
    other = state = reduced(state, machine, 2)
    for seed in range(4):
        state, metrics = step(state, batch(seed))
        other, right = plain(other, batch(seed))
        assert metrics["learning_rate"] == right["learning_rate"] == 0.25 * RATE(seed)
    assert (state == other).all()
    assert (state.aux["plateau"] == other.aux["plateau"]).all()


@pytest.mark.compiler
def test_a_compiled_step_reads_the_scale_and_is_not_compiled_again():
    machine = plateau(factor=0.5, patience=0)
    model, objective, optimizer = regression(machine.times(RATE))
    step = ps.train_step(model, objective, optimizer)
    compiled = ps.compile(step, donate=True)
    start = ps.init_state(model, optimizer, seed=0, aux={"plateau": machine})
    state, other, graphs = start.clone(), start, 0
    for seed in range(6):
        if seed == 2:
            graphs = counters["stats"]["unique_graphs"]
        state, metrics = compiled(state, batch(seed))
        other, right = step(other, batch(seed))
        assert metrics["learning_rate"] == right["learning_rate"] == RATE(seed) * 0.5 ** max(0, seed - 1)
        state, other = (machine.observe(s, {"loss": ps.mean(torch.ones(3))}) for s in (state, other))
    assert counters["stats"]["unique_graphs"] == graphs
    torch.testing.assert_close(state.params["weight"], other.params["weight"], rtol=1e-12, atol=0)
    assert (state.aux == other.aux).all()


def test_two_plateaus_and_one_inside_the_other():
    outer, inner = plateau(name="outer", factor=0.5, patience=0), plateau(name="inner", factor=0.1, patience=0)
    value = outer.times(inner.times(0.8))
    states = {"outer": outer.update(outer.update(outer.init(), 1.0), 1.0), "inner": inner.init()}
    aux = TensorDict(states, batch_size=[])
    context = UpdateContext(torch.tensor(0), ps.random.key(0), aux=aux)
    assert isinstance(value, FromContext)
    assert value(context).item() == 0.4
    assert repr(value) == (
        "plateau(factor=0.5, patience=0, name='outer').times(plateau(patience=0, name='inner').times(0.8))"
    )


# In a run.


class Job:
    """A run that validates every 3 steps, with metrics that stop improving."""

    def __init__(self, **options):
        self.machine = plateau(factor=0.5, patience=1, **options)
        self.model, objective, self.optimizer = regression(self.machine.times(RATE), momentum=0.9)
        self.step = ps.train_step(self.model, objective, self.optimizer)
        self.validations = []

    def start(self):
        return ps.init_state(self.model, self.optimizer, seed=0, aux={"plateau": self.machine})

    def validate(self, state):
        self.validations.append(int(state.calls))
        return {"loss": ps.mean(state.params["weight"].abs().reshape(-1) * 0 + 1.0)}

    def fit(self, state, steps, **options):
        options = {"validate": self.validate, "validate_every": 3, "observe": self.machine.observe, **options}
        batches = [batch(seed) for seed in range(int(state.calls), int(state.calls) + steps)]
        return ps.fit(self.step, state, batches, steps=steps, progress=False, **options)


def test_fit_feeds_each_scheduled_validation():
    job = Job()
    result = job.fit(job.start(), 14)
    assert job.validations == [3, 6, 9, 12, 14]
    assert result.state.aux["plateau", "seen"] == 12  # the last validation is there only because the run ends
    assert result.state.aux["plateau", "scale"] == 0.5
    assert result.state.aux["plateau", "bad"] == 1


@pytest.mark.parametrize("stop", [3, 5, 6, 9])
def test_a_run_taken_up_again_is_the_unbroken_run(stop, tmp_path):
    job = Job()
    whole = job.fit(job.start(), 15).state
    job.fit(job.start(), stop, checkpoint=tmp_path / "run")
    state = kept(tmp_path / "run", job.start())
    state = job.fit(state, 15 - stop).state
    assert (state == whole).all()
    assert state.aux["plateau", "scale"] == 0.25


def test_a_run_interrupted_by_its_validation_is_taken_up_as_if_it_had_not_been(tmp_path):
    job = Job()
    whole = job.fit(job.start(), 15).state

    def interrupted(state):
        if state.calls == 6:
            raise OSError("the disk went away")
        return job.validate(state)

    with pytest.raises(OSError, match="went away"):
        job.fit(job.start(), 15, validate=interrupted, checkpoint=tmp_path / "run")
    state = kept(tmp_path / "run", job.start())
    assert (state.calls, state.aux["plateau", "seen"]) == (6, 3)
    assert (job.fit(state, 9).state == whole).all()


def test_a_second_observation_at_a_step_changes_nothing():
    machine = plateau(patience=0)
    model, _, optimizer = regression(machine.times(0.1))
    state = ps.init_state(model, optimizer, seed=0, aux={"plateau": machine})
    once = machine.observe(state, {"loss": 1.0})
    assert (machine.observe(once, {"loss": 2.0}) == once).all()
    later = once.replace(calls=once.calls + 1)
    assert machine.observe(later, {"loss": 2.0}).aux["plateau", "scale"] == 0.1
    assert state.aux["plateau", "seen"] == -1


def test_an_observer_of_one_s_own():
    job = Job()

    def observe(state, metrics):
        return job.machine.observe(state, {"loss": -metrics["loss"].value()})

    assert job.fit(job.start(), 6, observe=observe).state.aux["plateau", "best"] == -1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plateau(mode="low"), ValueError, "mode must be one of 'min', 'max', got 'low'"),
        (lambda: plateau(threshold_mode="r"), ValueError, "threshold_mode must be one of 'rel', 'abs', got 'r'"),
        (lambda: plateau(factor=1.0), ValueError, "factor must be a finite number at least 0 and below 1, got 1.0"),
        (lambda: plateau(factor=-0.1), ValueError, "factor must be a finite number at least 0 and below 1, got -0.1"),
        (lambda: plateau(factor=True), TypeError, "factor must be a finite number"),
        (
            lambda: plateau(factor=torch.ones(2)),
            ValueError,
            r"factor must be a number or a 0-d tensor, got shape \(2,\)",
        ),
        (lambda: plateau(patience=-1), ValueError, "patience must be an int of at least 0, got -1"),
        (lambda: plateau(patience=2.5), TypeError, "patience must be an int of at least 0, got 2.5"),
        (lambda: plateau(cooldown=True), TypeError, "cooldown must be an int of at least 0, got True"),
        (
            lambda: plateau(patience=torch.tensor([1, 2])),
            ValueError,
            r"patience must be a number or a 0-d tensor, got shape \(2,\)",
        ),
        (lambda: plateau(threshold=-1e-4), ValueError, "threshold must be a finite number at least 0, got -0.0001"),
        (lambda: plateau(floor=-1.0), ValueError, "floor must be a finite number at least 0, got -1.0"),
        (lambda: plateau(floor=2.0), ValueError, r"floor must be at most base \(1.0\), got 2.0"),
        (lambda: plateau(eps=math.nan), ValueError, "eps must be a finite number at least 0, got nan"),
        (lambda: plateau(base=0.0), ValueError, "base must be a finite number above 0, got 0.0"),
        (lambda: plateau(metric=1), TypeError, "metric must be a name, got 1"),
        (lambda: plateau(name=""), TypeError, "name must be a name, got ''"),
        (lambda: plateau().times("0.1"), TypeError, "value must be a number, a 0-d tensor or a schedule"),
        (lambda: plateau().update(plateau().init(), 1j), TypeError, "metric 'loss' must be a real number, got 1j"),
        (lambda: plateau().update(plateau().init(), True), TypeError, "metric 'loss' must be a real number, got True"),
        (
            lambda: plateau().update(plateau().init(), torch.ones(2)),
            ValueError,
            r"metric 'loss' must be of shape \(\) as the state's tensors are, got \(2,\)",
        ),
        (
            lambda: plateau().observe(Job().start(), {"accuracy": 1.0}),
            ValueError,
            "metrics lack 'loss'.* they have 'acc",
        ),
        (
            lambda: plateau(name="drop").observe(Job().start(), {"loss": 1.0}),
            ValueError,
            "state.aux lacks 'drop': give ps.init_state the plateau, aux={'drop': plateau}",
        ),
        (
            lambda: Job(name="drop").step(Job().start(), batch(0)),
            ValueError,
            "state.aux lacks 'drop': give ps.init_state the plateau",
        ),
        (lambda: Job().fit(Job().start(), 3, observe=1), TypeError, "observe must be a function .* got 1"),
        (
            lambda: Job().fit(Job().start(), 3, validate_every=None),
            ValueError,
            "validate_every must be given with observe, .* got None",
        ),
        (
            lambda: Job().fit(Job().start(), 3, observe=lambda state, metrics: None),
            TypeError,
            "observe must return the state, got a NoneType",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
