"""L-BFGS: its direction against the dense matrix, its line searches, and its steps against torch's."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import _line_search, laws
from purestep._accumulate import Accumulation
from purestep._line_search import Backtracking, Point, StrongWolfe, begin
from purestep.lbfgs import lbfgs_step
from purestep.optimizers.lbfgs import direction, lbfgs, remember
from purestep.updates import UpdateContext


class Place(nn.Module):
    """A point to move, in two parameters."""

    def __init__(self, x):
        super().__init__()
        x = torch.as_tensor(x, dtype=torch.float64)
        self.first = nn.Parameter(x[:1].clone())
        self.rest = nn.Parameter(x[1:].clone())

    def forward(self):
        return torch.cat([self.first, self.rest])


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x):
    """Of condition 1000, and turned."""
    size = len(x)
    turned = x + 0.3 * x.roll(1)
    return 0.5 * (torch.logspace(-1.5, 1.5, size, dtype=x.dtype) * (turned - 1).square()).sum()


def least_squares(x):
    """Many rows, and one of them weighs most."""
    rows = torch.cos(torch.arange(1, 41, dtype=x.dtype)[:, None] * torch.arange(1, len(x) + 1, dtype=x.dtype))
    return (rows @ x - torch.sin(torch.arange(40, dtype=x.dtype))).square().mean() + 5 * (x.sum() - 2).square()


PROBLEMS = {
    "rosenbrock, 2": (rosenbrock, [-1.2, 1.0]),
    "rosenbrock, 10": (rosenbrock, [-1.2, 1.0] * 5),
    "quadratic": (quadratic, [0.0] * 12),
    "least squares": (least_squares, [0.0] * 6),
}
NOTHING = torch.zeros(1)
lbfgs_module = sys.modules["purestep.lbfgs"]  # (`purestep.lbfgs` may be the optimizer)


def objective_of(function):
    return lambda model, batch: function(model())


def run_torch(function, start, iterations, *, line_search, rate=1.0, history=10):
    x = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    options = {"max_iter": 1, "max_eval": 26, "tolerance_grad": 0, "tolerance_change": 1e-9}
    optimizer = torch.optim.LBFGS([x], rate, history_size=history, line_search_fn=line_search, **options)
    evaluations = [0]

    def closure():
        evaluations[0] += 1
        optimizer.zero_grad()
        loss = function(x)
        loss.backward()
        return loss

    for _ in range(iterations):
        optimizer.step(closure)
        yield x.detach().clone(), evaluations[0]


def run_ours(function, start, iterations, *, line_search, rate=1.0, history=10, **options):
    model, optimizer = Place(start), lbfgs(rate, history=history)
    step = lbfgs_step(model, objective_of(function), optimizer, line_search=line_search, **options)
    state, evaluations = ps.init_state(model, optimizer, seed=0), 0
    for _ in range(iterations):
        state, metrics = step(state, NOTHING)
        evaluations += 1 + int(metrics.get("evaluations", 0))
        yield torch.cat([state.params["first"], state.params["rest"]]), evaluations


# Roundings grow along the way: Rosenbrock's valley doubles them at each turn.
@pytest.mark.parametrize("history", [3, 10])
@pytest.mark.parametrize(
    ("name", "iterations"), [("rosenbrock, 2", 20), ("rosenbrock, 10", 25), ("quadratic", 20), ("least squares", 8)]
)
def test_with_a_line_search_it_takes_torchs_steps(name, iterations, history):
    function, start = PROBLEMS[name]
    options = {"line_search": "strong_wolfe", "history": history}
    both = zip(
        run_ours(function, start, iterations, **options), run_torch(function, start, iterations, **options), strict=True
    )
    for (got, tried), (right, counted) in both:
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-10)
        assert tried == counted


@pytest.mark.parametrize("name", ["rosenbrock, 2", "quadratic"])
def test_without_one_too(name):
    function, start = PROBLEMS[name]
    options = {"line_search": None, "rate": 0.01, "history": 4}
    for (got, _), (right, _) in zip(
        run_ours(function, start, 25, **options), run_torch(function, start, 25, **options), strict=True
    ):
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_it_reaches_torchs_minimum_in_as_many_evaluations(name):
    """What torch reaches after 60 iterations, with a tenth more evaluations at most."""
    function, start = PROBLEMS[name]
    *_, (right, counted) = run_torch(function, start, 60, line_search="strong_wolfe")
    bar = function(right).item() + 1e-13
    for place, tried in run_ours(function, start, 66, line_search="strong_wolfe"):  # noqa: B007
        if function(place) <= bar:
            break
    assert function(place) <= bar
    assert tried <= 1.1 * counted


def test_backtracking_converges_too():
    function, start = PROBLEMS["least squares"]
    *_, (right, _) = run_torch(function, start, 40, line_search="strong_wolfe")
    *_, (place, tried) = run_ours(function, start, 40, line_search="backtracking")
    assert function(place).item() == pytest.approx(function(right).item(), rel=1e-12)
    assert tried < 200


def pairs(count, size, seed=0):
    """Steps and changes of the gradient of a positive-definite quadratic."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    steps = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return steps, steps @ (root @ root.T + torch.eye(size))


def dense(steps, changes, size):
    """BFGS's matrix itself, from the newest pair's scale on: (6.17) and (6.20) of Nocedal & Wright."""
    matrix = torch.eye(size, dtype=torch.float64)
    if len(steps):
        matrix = matrix * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y in zip(steps, changes, strict=True):
        rho = 1 / (y @ s)
        left = torch.eye(size, dtype=torch.float64) - rho * torch.outer(s, y)
        matrix = left @ matrix @ left.T + rho * torch.outer(s, s)
    return matrix


def remembered(steps, changes, history):
    size = steps.shape[1]
    state = lbfgs(history=history).init(TensorDict({"w": torch.zeros(size, dtype=torch.float64)}))
    zero = torch.zeros(size, dtype=torch.float64)
    for s, y in zip(steps, changes, strict=True):
        state = remember(state, (zero, zero), (s, y))
    return state


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_the_direction_is_that_of_the_dense_matrix(count):
    steps, changes = pairs(count, 6)
    state = remembered(steps, changes, 4)
    g = torch.linspace(-1, 2, 6, dtype=torch.float64)
    right = -dense(steps[-4:], changes[-4:], 6) @ g
    assert torch.allclose(direction(state, g), right, rtol=1e-10)
    assert state["count"] == count
    assert (state["inverse_curvatures"] > 0).sum() == min(count, 4)


def test_the_dense_matrix_catches_pairs_in_the_wrong_order():
    steps, changes = pairs(4, 6)
    state = remembered(steps.flip(0), changes.flip(0), 4)
    g = torch.linspace(-1, 2, 6, dtype=torch.float64)
    assert not torch.allclose(direction(state, g), -dense(steps, changes, 6) @ g, rtol=1e-3)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ([1.0, 0.0], [-1.0, 0.0]),
        ([1.0, 0.0], [0.0, 1.0]),
        ([0.0, 0.0], [1.0, 0.0]),
        ([1.0, 0.0], [math.nan, 0.0]),
        ([1.0, 0.0], [math.inf, 0.0]),
    ],
    ids=["negative curvature", "none", "no step", "not a number", "infinite"],
)
def test_a_pair_without_curvature_is_not_kept(step, change):
    steps, changes = pairs(2, 2)
    state = remembered(steps, changes, 3)
    zero = torch.zeros(2, dtype=torch.float64)
    place = (torch.tensor(step, dtype=torch.float64), torch.tensor(change, dtype=torch.float64))
    after = remember(state, (zero, zero), place)
    for name in ("steps", "grad_changes", "inverse_curvatures", "scale"):
        assert torch.equal(after[name], state[name]), name
    assert torch.equal(after["last_params"], place[0])


def test_a_small_pair_is_kept():
    """torch's bound is 1e-10 whatever the length, which stops near a minimum."""
    steps, changes = pairs(2, 2)
    state = remembered(1e-8 * steps, 1e-8 * changes, 3)
    assert torch.allclose(state["inverse_curvatures"][1:], 1e16 / (steps * changes).sum(1), rtol=1e-10)


def searched(machine, function, trial, evaluations=25):
    """Drive a search over a function of the length; return it, and how often the function was asked."""

    def point(t):
        with torch.enable_grad():
            moved = t.detach().clone().requires_grad_()
            value = function(moved)
            (slope,) = torch.autograd.grad(value, moved)
        return Point(t, value.detach(), slope, slope[None])

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    search = begin(point(zero), torch.tensor(trial, dtype=torch.float64), one)
    for _ in range(evaluations):
        if bool(search.done):
            break
        search = machine.advance(search, point(search.trial))
    return search


def wolfe(search, c1=1e-4, c2=0.9):
    start, low = search.start, search.low
    falls = low.value <= start.value + c1 * low.t * start.slope
    return bool(falls & (low.slope.abs() <= -c2 * start.slope))


@given(
    st.lists(st.floats(-1.0, 1.0), min_size=3, max_size=5),
    st.sampled_from([0.01, 0.3, 1.0, 20.0]),
    st.floats(0.05, 0.9),
)
@settings(max_examples=25, deadline=None)
def test_a_search_ends_where_wolfes_conditions_hold(coefficients, trial, c2):
    """Waves above a parabola: many minima, bounded below."""

    def function(t):
        waves = sum(a * torch.sin((i + 1) * t + i) for i, a in enumerate(coefficients))
        return waves + 0.05 * t.square() - 3.0 * t

    search = searched(StrongWolfe(1e-4, c2, 1e-12), function, trial, 60)
    assume(search.start.slope < 0)
    assert search.done
    assert wolfe(search, c2=c2)
    assert torch.equal(search.low.value, function(search.low.t))


def test_backtracking_does_not_see_the_slope():
    """Which is what the test above would tell."""
    search = searched(Backtracking(1e-4, 0.5, 1e-9), lambda t: 0.05 * t.square() - 3.0 * t, 0.01)
    assert search.done
    assert not wolfe(search)


@pytest.mark.parametrize("trial", [1.0, 100.0])
def test_a_search_keeps_away_from_what_is_not_finite(trial):
    """The logarithm has no value beyond 2."""
    for machine in (StrongWolfe(1e-4, 0.9, 1e-9), Backtracking(1e-4, 0.5, 1e-9)):
        search = searched(machine, lambda t: -t - 0.01 * torch.log(2 - t), trial)
        assert search.done
        assert 0 < search.low.t < 2
        assert search.low.value < search.start.value


def test_a_search_that_is_not_downhill_stays():
    for function in (lambda t: t, lambda t: 0.0 * t, lambda t: t * math.nan):
        search = searched(StrongWolfe(1e-4, 0.9, 1e-9), function, 1.0)
        assert (search.low.t, search.tried) == (0, 0)


def test_a_search_that_runs_out_keeps_the_best():
    search = searched(StrongWolfe(1e-4, 1e-6, 0.0), lambda t: (t - 3.7) ** 4 - torch.sin(9 * t), 0.1, evaluations=4)
    assert not search.done
    assert search.tried == 4
    assert search.low.value < search.start.value
    rising = searched(Backtracking(1e-4, 0.5, 1e-9), lambda t: torch.where(t > 0.01, t, -t), 1.0, evaluations=3)
    assert (rising.low.t, rising.tried) == (0, 3)


def test_a_tiny_interval_is_given_up():
    """Where the value jumps there is no length with a flat slope."""
    search = searched(StrongWolfe(1e-4, 0.1, 1e-3), lambda t: torch.where(t < 0.7, -t, 1 + t), 1.0, 60)
    assert search.done
    assert search.tried < 30
    assert abs(search.high.t - search.low.t) < 1e-3
    assert search.low.t == pytest.approx(0.7, abs=1e-3)


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


def test_the_searches_are_pure():
    """A machine that is done stays as it is, whatever it is told."""
    for machine in (StrongWolfe(1e-4, 0.9, 1e-9), Backtracking(1e-4, 0.5, 1e-9)):
        search = searched(machine, lambda t: (t - 1) ** 2, 1.0)
        other = search.low._replace(value=search.low.value - 5)
        after = machine.advance(search, other)
        assert all(torch.equal(a, b) for a, b in zip(after.low, search.low, strict=True))
        assert (after.tried, after.trial, after.stage) == (search.tried, search.trial, _line_search.DONE)
