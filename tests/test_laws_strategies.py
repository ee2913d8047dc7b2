"""The strategies: what is drawn is small, usable, and prints as the call that makes it again."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import Phase, find, given, settings
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws


@given(problem=laws.problems(norm=None))
def test_a_problem_prints_as_what_makes_it_again(problem):
    again = eval(repr(problem), {"Problem": laws.Problem, "torch": torch})
    assert again == problem
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), problem.model.parameters(), strict=True))
    assert bool((again.batch == problem.batch).all())
    assert problem.batch["weight"].dtype == torch.float64
    assert all(parameter.dtype == torch.float64 for parameter in problem.model.parameters())


@given(length=st.integers(1, 9), data=st.data(), empty=st.booleans())
def test_partitions_add_up(length, data, empty):
    parts = data.draw(laws.partitions(length, empty=empty))
    assert sum(parts) == length
    assert min(parts) >= (0 if empty else 1)


@given(model=laws.models(norm=None), batch=laws.batches(max_length=3), objective=laws.objectives())
def test_any_model_takes_any_batch(model, batch, objective):
    result = objective(model, batch)
    loss = result[0] if isinstance(result, tuple) else result
    assert torch.isfinite(loss.value())


def test_drawing_touches_no_global_generator():
    before = torch.get_rng_state()
    laws.Problem("perceptron", "masked", 4, 1)
    assert torch.equal(before, torch.get_rng_state())


def evaluate(written, **names):
    known = {**vars(laws), **vars(ps), **vars(ps.data), "torch": torch, "cosine": ps.schedules.cosine}
    return eval(written, {**known, **names})


def printed(strategy, **names):
    """Draw, and return what was drawn beside what its printed form makes."""
    drawn = []

    @settings(max_examples=5, database=None, derandomize=True, phases=[Phase.generate])
    @given(drawn=strategy)
    def fails(drawn):
        raise AssertionError

    @settings(max_examples=12, database=None, derandomize=True)
    @given(value=strategy)
    def collects(value):
        drawn.append(value)

    collects()
    with pytest.raises(AssertionError) as caught:
        fails()
    note = next(note for note in caught.value.__notes__ if "drawn=" in note)
    return drawn, evaluate(note.split("drawn=", 1)[1].rpartition(")")[0].rstrip().removesuffix(","), **names)


MODEL = laws.make_model("perceptron", 0, norm=True)
OPTIMIZER = ps.adamw(0.1)
STRATEGIES = {
    "models": (laws.models(norm=None, dropout=None), nn.Module),
    "batches": (laws.batches(), TensorDict),
    "optimizers": (laws.optimizers(), ps.Optimizer),
    "gradient transformations": (laws.gradient_transformations(), ps.GradientTransformation),
    "orders": (laws.orders(), ps.data.IndexOrder),
    "train states": (laws.train_states(MODEL, OPTIMIZER), ps.TrainState),
    "problems": (laws.problems(norm=None, dropout=None), laws.Problem),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_drawn_prints_as_the_call_that_makes_it_again(name):
    strategy, kind = STRATEGIES[name]
    drawn, again = printed(strategy, model=MODEL, optimizer=OPTIMIZER)
    assert isinstance(again, kind)
    assert all(isinstance(value, kind) for value in drawn)
    assert len(drawn) > 1


def test_dropout_is_there_where_it_is_asked_for():
    def dropouts(model):
        return [part for part in model.modules() if isinstance(part, nn.Dropout)]

    for name in ("perceptron", "convolution", "two inputs", "tied tokens"):
        assert dropouts(laws.make_model(name, 0, dropout=True))
        assert not dropouts(laws.make_model(name, 0))
    assert dropouts(laws.Problem("perceptron", "masked", 3, dropout=True).model)
    few = settings(max_examples=30, phases=[Phase.generate], database=None)
    for wanted in (True, False):
        find(laws.models(dropout=None), lambda model: bool(dropouts(model)) is wanted, settings=few)  # noqa: B023


@given(problem=laws.problems(dropout=True, min_length=4), data=st.data())
@settings(max_examples=10)
def test_masks_are_those_of_the_whole_batch(problem, data):
    optimizer = ps.sgd(0.1)
    state = data.draw(laws.train_states(problem.model, optimizer))
    laws.check_accumulation(
        lambda k: ps.train_step(problem.model, problem.objective, optimizer, accumulate=k), state, problem.batch
    )


@given(state=laws.train_states(MODEL, OPTIMIZER))
@settings(max_examples=15)
def test_a_drawn_state_is_one_in_the_middle_of_training(state):
    first = ps.init_state(MODEL, OPTIMIZER, seed=0)
    assert {name: leaf.shape for name, leaf in state.params.items()} == {n: p.shape for n, p in first.params.items()}
    assert int(state.calls) - int(state.step) == int(state.aux["skipped"]) <= 2
    moved = int(state.step) > 0
    assert torch.equal(state.params["layers.0.weight"], first.params["layers.0.weight"]) is not moved
    assert torch.equal(state.buffers["layers.1.running_var"], first.buffers["layers.1.running_var"]) is not moved
    assert bool((state.opt_state["exp_avg"]["layers.0.weight"] != 0).any()) is moved
    step = ps.train_step(MODEL, laws.strategies.OBJECTIVES["single_term"], OPTIMIZER)
    after, _ = step(state, laws.make_batch(4, 0))
    assert int(after.step) == int(state.step) + 1


def test_the_same_arguments_make_the_same_state():
    one, other = (laws.make_train_state(MODEL, OPTIMIZER, seed=3, updates=2, skipped=1) for _ in range(2))
    assert bool((one == other).all())


ARGUMENTS = {
    "an architecture": (lambda: laws.models(architectures=["perceptrons"]), ValueError, r"did you mean 'perceptron'"),
    "an objective": (lambda: laws.problems(names=["mask"]), ValueError, r"names must be names of .* got 'mask'"),
    "an optimizer": (lambda: laws.optimizers(names=["adamv"]), ValueError, r"got 'adamv' \(did you mean 'adam'"),
    "a transformation": (lambda: laws.gradient_transformations(names=["clip"]), ValueError, r"got 'clip'"),
    "no chain": (lambda: laws.gradient_transformations(max_length=0), ValueError, "max_length must be an int of at le"),
    "no update": (
        lambda: laws.train_states(MODEL, OPTIMIZER, max_updates=-1),
        ValueError,
        "max_updates must be an",
    ),
    "no optimizer": (lambda: laws.train_states(MODEL, 3), TypeError, "optimizer must be an Optimizer"),
    "no position": (lambda: laws.orders(max_length=0), ValueError, "max_length must be an int of at least 1"),
    "no example": (lambda: laws.batches(min_length=0), ValueError, "min_length must be an int of at least 1, got 0"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_message(case):
    call, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        call()
