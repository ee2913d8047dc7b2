"""A step of L-BFGS: the laws of steps, its derivatives, policies, and what it refuses."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _lbfgs import NOTHING, Place, objective_of, rosenbrock
from purestep import laws
from purestep._accumulate import Accumulation
from purestep.lbfgs import lbfgs_step
from purestep.optimizers.lbfgs import lbfgs
from purestep.updates import UpdateContext

lbfgs_module = sys.modules["purestep.lbfgs"]  # (`purestep.lbfgs` may be the optimizer)


def make_model(*, norm=False, dropout=False):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6, bias=not norm),
        nn.BatchNorm1d(6) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Dropout(0.5) if dropout else nn.Identity(),
        nn.Linear(6, 2),
    ).double()


def make_batch(length=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=torch.float64)
    return TensorDict({"x": x, "y": torch.randint(0, 2, (length,), generator=generator)}, batch_size=[length])


def objective(model, batch):
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none")) + 0.05 * ps.mean(logits.square())
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


OPTIMIZER = lbfgs(history=3)


@pytest.mark.parametrize("line_search", ["strong_wolfe", "backtracking"])
def test_it_keeps_the_laws_of_steps(line_search):
    """A vmapped step makes all evaluations, and must end where the eager one does, which stops."""
    model = make_model(dropout=True)

    def make(count):
        options = {"line_search": line_search, "max_evaluations": 4, "c2": 0.5, "accumulate": count}
        return lbfgs_step(model, objective, OPTIMIZER, **options)

    state = ps.init_state(model, OPTIMIZER, seed=0)
    for seed in range(2):
        state, _ = make(1)(state, make_batch(seed=seed))
    laws.check_step(make(1), state, make_batch(), model=model, make=make, skip=("own streams",))


def test_the_loss_falls_under_one_mask_and_buffers_are_the_first_passes():
    """With dropout, the loss at the new parameters under the masks of the step is below that at the old ones."""
    model = make_model(norm=True, dropout=True)
    step, state = lbfgs_step(model, objective, OPTIMIZER), ps.init_state(model, OPTIMIZER, seed=0)
    loss = ps.loss_step(model, objective)
    for seed in range(6):
        after, metrics = step(state, make_batch(seed=seed))
        before = loss(state, make_batch(seed=seed))
        there = loss(state.replace(params=after.params), make_batch(seed=seed))[0].value()
        assert metrics["loss"].value() == before[0].value()
        slope = ps.grad_step(model, objective)(state, make_batch(seed=seed)).mean()
        fall = sum((slope[k] * (after.params[k] - p)).sum() for k, p in state.params.items())
        assert there <= before[0].value() + 1e-4 * fall
        assert fall < 0
        for name, leaf in before[1].items():
            assert torch.equal(after.buffers[name], leaf), name
        state = after


class Restless(Accumulation):
    """Other masks at each evaluation: the search compares two functions."""

    asked = 0

    def __call__(self, state, batch):
        self.asked += 1
        return super().__call__(state.replace(calls=state.calls + self.asked - 1), batch)


def test_other_masks_at_each_evaluation_are_caught(monkeypatch):
    monkeypatch.setattr(lbfgs_module, "Accumulation", Restless)
    with pytest.raises(AssertionError):
        test_the_loss_falls_under_one_mask_and_buffers_are_the_first_passes()


def test_without_a_search_it_is_a_training_step():
    model = make_model(dropout=True)
    state = ps.init_state(model, OPTIMIZER, seed=0)
    one = lbfgs_step(model, objective, OPTIMIZER, line_search=None, accumulate=2)
    laws.check_same(one, ps.train_step(model, objective, OPTIMIZER, accumulate=2), state, make_batch(), steps=3)


def test_what_is_frozen_stays_and_dtypes_are_kept():
    model = make_model()
    model[0].float()

    def mixed(model, batch):
        return ps.mean(F.cross_entropy(model[4](torch.tanh(model[0](batch["x"].float())).double()), batch["y"],
                                       reduction="none"))  # fmt: skip

    trainable = ["0.weight", "4.*"]
    step = lbfgs_step(model, mixed, OPTIMIZER, trainable=trainable)
    state = ps.init_state(model, OPTIMIZER, seed=0, trainable=trainable)
    before = dict(state.params.items())
    for _ in range(3):
        state, metrics = step(state, make_batch())
    assert state.params["0.bias"] is before["0.bias"]
    assert {name: leaf.dtype for name, leaf in state.params.items()} == {k: p.dtype for k, p in before.items()}
    assert state.opt_state["steps"].shape == (3, 6 * 3 + 2 * 6 + 2)
    assert state.opt_state["steps"].dtype == torch.float64
    assert metrics["learning_rate"] == 1


def test_a_rate_may_be_a_schedule_and_is_the_first_trial():
    model = make_model()
    optimizer = lbfgs(ps.schedules.linear(start=1.0, end=0.25, steps=4))
    step = lbfgs_step(model, objective, optimizer, line_search="backtracking", max_evaluations=1)
    state, lengths = ps.init_state(model, optimizer, seed=0), []
    for _ in range(5):
        state, metrics = step(state, make_batch())
        lengths.append(metrics["step_length"].item())
        assert metrics["evaluations"] == 1
    assert lengths[1:] == [0.8125, 0.625, 0.4375, 0.25]


@pytest.mark.parametrize("line_search", ["strong_wolfe", "backtracking", None])
def test_derivatives_are_what_differences_give(line_search):
    model, optimizer = make_model(), lbfgs(history=2)
    start, final = ps.init_state(model, optimizer, seed=0), ps.loss_step(model, objective, training=False)
    along = {k: torch.cos(7 * p) for k, p in start.params.items()}

    def outcome(rate, move):
        rule = lbfgs(rate, history=2)
        step = lbfgs_step(model, objective, rule, line_search=line_search, c2=0.3)
        state = start.replace(params=TensorDict({k: p + move * along[k] for k, p in start.params.items()}))
        for seed in range(4):
            state, _ = step(state, make_batch(seed=seed))
        return final(state, make_batch())[0].value()

    numbers = [torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.0)]
    slopes = torch.func.grad(outcome, argnums=(0, 1))(*numbers)
    for i, slope in enumerate(slopes):
        ends = [outcome(*[v + s * 1e-6 * (j == i) for j, v in enumerate(numbers)]).item() for s in (1, -1)]
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("line_search", ["strong_wolfe", "backtracking", None])
def test_where_the_gradient_is_zero_it_stays(line_search):
    model, optimizer = make_model(), lbfgs(history=2)
    state = ps.init_state(model, optimizer, seed=0)

    def outcome(rate):
        rule = lbfgs(rate, history=2)
        step = lbfgs_step(model, lambda m, b: ps.mean(0.0 * m(b["x"])), rule, line_search=line_search)
        after, _ = step(*step(state, make_batch())[:1], make_batch())
        return sum(p.sum() for p in after.params.values())

    slope, value = torch.func.grad_and_value(outcome)(torch.tensor(0.3, dtype=torch.float64))
    assert slope == 0
    assert value.item() == pytest.approx(sum(p.sum() for p in state.params.values()).item(), rel=1e-14)


def test_a_trial_that_is_not_finite_is_only_too_long():
    model = Place([1.0, 1.0])
    step = lbfgs_step(model, lambda m, b: -torch.log(2 - m()).sum() - 3 * m().sum(), lbfgs(8.0))
    state = ps.init_state(model, lbfgs(8.0), seed=0)
    for _ in range(12):
        state, metrics = step(state, NOTHING)
        assert torch.isfinite(metrics["loss"].value())
    assert torch.cat(list(state.params.values())).tolist() == pytest.approx([5 / 3, 5 / 3], rel=1e-9)


@pytest.mark.parametrize("line_search", ["strong_wolfe", "backtracking"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_in_the_place_of_a_direction_that_is_not_finite_it_goes_down_the_gradient(value, line_search, monkeypatch):
    """What is remembered may overflow; the gradient is what the policy looks at."""
    monkeypatch.setattr(lbfgs_module, "direction", lambda state, grads: torch.full_like(grads, value).copysign(-grads))
    step = lbfgs_step(Place([-1.2, 1.0]), objective_of(rosenbrock), lbfgs(), line_search=line_search)
    state = ps.init_state(Place([-1.2, 1.0]), lbfgs(), seed=0)
    after, metrics = step(state, NOTHING)
    assert metrics["step_length"] > 0
    assert rosenbrock(torch.cat(list(after.params.values()))) < metrics["loss"].value()


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_loss_that_is_not_finite_reaches_the_policy(policy):
    model = Place([3.0, 3.0])
    step = lbfgs_step(model, lambda m, b: torch.log(2 - m()).sum(), lbfgs(), on_nonfinite=policy)
    state = ps.init_state(model, lbfgs(), seed=0)
    if policy == "raise":
        with pytest.raises(ps.NonFiniteError):
            step(state, NOTHING)
    else:
        after, metrics = step(state, NOTHING)
        assert torch.equal(after.params["rest"], state.params["rest"])
        assert (after.step, after.calls, metrics["skipped"], metrics["evaluations"]) == (0, 1, 1, 0)
        assert all(torch.equal(leaf, state.opt_state[name]) for name, leaf in after.opt_state.items())


def test_a_compiled_step_is_the_eager_one():
    """It makes all its evaluations, where the eager one stops."""
    model, optimizer = Place([-1.2, 1.0]), lbfgs(history=1)
    state = ps.init_state(model, optimizer, seed=0)
    step = lbfgs_step(model, objective_of(rosenbrock), optimizer, max_evaluations=2)
    others = {"donated": ps.compile(step, donate=True)}
    laws.check_execution_invariant(step, state, NOTHING, others=others, steps=3)


def test_the_optimizer_keeps_the_laws_of_optimizers():
    laws.check_optimizer(lambda rate: lbfgs(rate, history=2), smooth=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"line_search": "wolfe"}, ValueError, "line_search must be one of 'strong_wolfe', 'backtracking', None"),
        ({"max_evaluations": 0}, ValueError, "max_evaluations must be an int of at least 1, got 0"),
        ({"c1": 0.0}, ValueError, "c1 must be a finite number above 0 and below 1, got 0.0"),
        ({"c1": 0.5, "c2": 0.4}, ValueError, "c2 must be a finite number above 0.5 and below 1, got 0.4"),
        ({"shrink": 1.0}, ValueError, "shrink must be a finite number above 0 and below 1, got 1.0"),
        ({"tolerance_change": -1.0}, ValueError, "tolerance_change must be a finite number at least 0"),
        ({"accumulate": 0}, ValueError, "accumulate must be"),
        ({"trainable": "9.*"}, ValueError, "names no parameter"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be one of"),
        ({"optimizer": ps.sgd(0.1)}, TypeError, "optimizer must be ps.optimizers.lbfgs(...) itself"),
        ({"optimizer": ps.chain(ps.clip_by_global_norm(1.0), lbfgs())}, TypeError, "a search goes along, got a"),
    ],
)
def test_arguments_out_of_range(options, error, message):
    with pytest.raises(error) as caught:
        lbfgs_step(make_model(), objective, **{"optimizer": OPTIMIZER, **options})
    assert message in str(caught.value)


def test_what_does_not_belong_is_refused():
    model = make_model()
    step = lbfgs_step(model, objective, OPTIMIZER)
    with pytest.raises(ValueError, match=r"state.opt_state is not of ps.optimizers.lbfgs: .*lbfgs keeps"):
        step(ps.init_state(model, ps.adamw(0.1), seed=0), make_batch())
    with pytest.raises(ValueError, match="does not belong to these trainable parameters: it is of 14 numbers"):
        step(ps.init_state(model, OPTIMIZER, seed=0, trainable="4.*"), make_batch())
    taken = lbfgs_step(model, lambda m, b: (objective(m, b)[0], {"evaluations": ps.mean(b["x"])}), OPTIMIZER)
    with pytest.raises(ValueError, match="a metric of the objective is named 'evaluations'"):
        taken(ps.init_state(model, OPTIMIZER, seed=0), make_batch())
    with pytest.raises(ValueError, match="history must be an int of at least 1, got 0"):
        lbfgs(history=0)
    with pytest.raises(ValueError, match="rate must be a finite number at least 0, got -1"):
        lbfgs(-1.0)
    with pytest.raises(TypeError, match="lbfgs needs parameters of a real floating-point dtype"):
        lbfgs().init(TensorDict({"w": torch.ones(2, dtype=torch.int64)}))
    params = TensorDict({"w": torch.ones(2)})
    context = UpdateContext(torch.tensor(0), ps.random.key(0))
    with pytest.raises(ValueError, match="must have its parameter's shape"):
        OPTIMIZER.update(TensorDict({"w": torch.ones(3)}), OPTIMIZER.init(params), params, context)
