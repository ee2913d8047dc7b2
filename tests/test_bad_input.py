"""Bad input gets a clear error: what each message names, in one table."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.schedules import cosine

OPTIMIZER = ps.adamw(0.01)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def batch(length=6):
    return {"x": torch.ones(length, 3), "y": torch.zeros(length, dtype=torch.int64)}


def classify(model, batch):
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def state(model=None):
    return ps.init_state(model or net(), OPTIMIZER, seed=0)


def train(objective=classify, data=None, *, model=None, start=None, **options):
    """Build a training step and take it once."""
    step = ps.train_step(model or net(), objective, OPTIMIZER, **options)
    return step(state() if start is None else start, batch() if data is None else data)


def returns(make):
    return lambda model, batch: make(model(batch["x"]))


def donated_twice():
    small = nn.Linear(1, 1)
    step = ps.compile(lambda state, batch: (state.replace(step=state.step + 1), {}), donate=True)
    first = ps.init_state(small, ps.sgd(0.1), seed=0)
    step(first, {"x": torch.ones(1)})
    step(first, {"x": torch.ones(1)})


def tuple_key(model, batch):
    return ps.mean(model(batch["imgae"]))


def weight_of_parameters(model, batch):
    values = model(batch["x"])
    return ps.mean(values, weight=values.exp())


OTHER = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 2)))

# Each row: the call, the exception, and what the message must contain: the argument, its value, what would be right.
ROWS = {
    # what an objective returns
    "a bare tensor with accumulation": (
        lambda: train(returns(lambda out: out.mean()), accumulate=2),
        TypeError,
        ("returned a bare tensor", "accumulate > 1", "return ps.mean(values)"),
    ),
    "a loss with dimensions": (
        lambda: train(returns(lambda out: out.sum(-1))),
        ValueError,
        ("scalar loss", "shape (6,)", "return ps.mean(values)"),
    ),
    "a total with dimensions": (
        lambda: train(returns(lambda out: ps.Mean(out.sum(-1), torch.tensor(6.0)))),
        ValueError,
        ("the total of a Mean must be a 0-d tensor", "got shape (6,)"),
    ),
    "nothing": (lambda: train(lambda model, batch: None), TypeError, ("must return ps.mean(values)", "NoneType")),
    "a weight that is nan": (
        lambda: train(returns(lambda out: ps.mean(out, weight=torch.full((6, 1), float("nan"))))),
        ValueError,
        ("weight must be finite and at least 0", "got nan"),
    ),
    "a weight sum that is nan": (
        lambda: train(returns(lambda out: ps.Mean(out.sum(), torch.tensor(float("nan"))))),
        ValueError,
        ("the weight of a Mean must be a number", "got nan"),
    ),
    "a weight of the parameters": (
        lambda: train(weight_of_parameters),
        ValueError,
        ("weight depends on the parameters", "detach it"),
    ),
    "a weight sum of the parameters": (
        lambda: train(returns(lambda out: ps.Mean(out.sum(), out.exp().sum()))),
        ValueError,
        ("the weight of a Mean depends on the parameters", "detach it"),
    ),
    "a loss without parameters": (
        lambda: train(lambda model, batch: ps.mean(batch["x"])),
        ValueError,
        ("does not depend on any trainable parameter", "detaches"),
    ),
    "an objective that is none": (lambda: train("loss"), TypeError, ("objective must be a function", "'loss'")),
    "an objective of one argument": (
        lambda: train(lambda model: None),
        TypeError,
        ("objective must take (model, batch)",),
    ),
    "an objective of four arguments": (
        lambda: train(lambda model, batch, context, more: None),
        TypeError,
        ("objective must take (model, batch) or (model, batch, context)",),
    ),
    # accumulate
    "accumulate 0": (lambda: train(accumulate=0), ValueError, ("accumulate must be an int of at least 1", "got 0")),
    "accumulate below 0": (lambda: train(accumulate=-2), ValueError, ("accumulate must be", "at least 1", "got -2")),
    "accumulate a float": (lambda: train(accumulate=2.0), TypeError, ("accumulate must be an int", "got 2.0", "float")),
    "accumulate a bool": (lambda: train(accumulate=True), TypeError, ("accumulate must be an int", "True")),
    # batches
    "a leaf without a batch dimension": (
        lambda: train(data={**batch(), "scale": torch.tensor(2.0)}, accumulate=2),
        ValueError,
        ("batch must have a batch dimension", "batch['scale'] has shape ()"),
    ),
    "leaves that disagree": (
        lambda: train(data={**batch(), "y": torch.zeros(5, dtype=torch.int64)}, accumulate=2),
        ValueError,
        ("must agree about dimension 0", "batch['x'] (6, 3)", "batch['y'] (5,)"),
    ),
    "a leaf that is no tensor": (
        lambda: train(data={**batch(), "name": ["cat"] * 6}, accumulate=2),
        TypeError,
        ("batch['name'][0] must be a tensor", "'cat'", "str"),
    ),
    "an empty batch": (lambda: train(data={}, accumulate=2), ValueError, ("batch must hold at least one tensor",)),
    "a key that is missing": (
        lambda: train(tuple_key, {"image": torch.ones(6, 3)}),
        KeyError,
        ("asked for 'imgae'", "batch has 'image'", "did you mean 'image'"),
    ),
    "a key that is missing in a TensorDict": (
        lambda: train(tuple_key, TensorDict({"image": torch.ones(6, 3)}, batch_size=[6])),
        KeyError,
        ("asked for 'imgae'", "batch has 'image'", "did you mean 'image'"),
    ),
    # models and states
    "a model without parameters": (
        lambda: ps.init_state(nn.ReLU(), OPTIMIZER, seed=0),
        ValueError,
        ("model must have parameters", "ReLU"),
    ),
    "a model without parameters in a step": (
        lambda: ps.train_step(nn.ReLU(), classify, OPTIMIZER),
        ValueError,
        ("model must have parameters", "ReLU"),
    ),
    "a state of another model": (
        lambda: train(start=state(OTHER)),
        ValueError,
        ("state.params does not belong to this model", "lacks '2.weight', '2.bias'", "has '2.0.weight', '2.0.bias'"),
    ),
    "a state of another model, in evaluation": (
        lambda: ps.eval_step(net(), classify)(state(OTHER), batch()),
        ValueError,
        ("state.params does not belong to this model", "'2.0.weight'"),
    ),
    "a state with other buffers": (
        lambda: train(model=net(), start=state(nn.Sequential(*net(), nn.BatchNorm1d(2, affine=False)))),
        ValueError,
        ("state.buffers does not belong to this model", "'3.running_mean'"),
    ),
    "a state that is none": (lambda: train(start={"w": 1}), TypeError, ("state must be a TrainState", "got dict")),
    "a state of another optimizer": (
        lambda: train(start=ps.init_state(net(), ps.sgd(0.1), seed=0)),
        ValueError,
        ("state.opt_state does not belong to this optimizer", "Give ps.init_state the optimizer"),
    ),
    "a state of fewer trainable parameters": (
        lambda: train(start=ps.init_state(net(), OPTIMIZER, seed=0, trainable="2.*")),
        ValueError,
        ("state.opt_state does not belong to this optimizer and these trainable parameters", "trainable="),
    ),
    "a state of more trainable parameters": (
        lambda: train(trainable="2.*"),
        ValueError,
        ("state.opt_state does not belong to this optimizer and these trainable parameters", "trainable="),
    ),
    "a module in the state's place": (lambda: train(start=net()), TypeError, ("state must be a TrainState",)),
    "a trainable that names nothing": (
        lambda: train(trainable="haed.*"),
        ValueError,
        ("trainable='haed.*' names no parameter", "the model has '0.weight'"),
    ),
    "a trainable that names nothing, in the state": (
        lambda: ps.init_state(net(), OPTIMIZER, seed=0, trainable=["2.*", "1.*"]),
        ValueError,
        ("trainable='1.*' names no parameter",),
    ),
    # optimizers and schedules
    "torch's optimizer in a step": (
        lambda: ps.train_step(net(), classify, torch.optim.AdamW(net().parameters())),
        TypeError,
        ("optimizer must be a purestep Optimizer such as ps.adamw(rate)", "torch.optim.AdamW"),
    ),
    "an optimizer's constructor": (
        lambda: ps.train_step(net(), classify, ps.adamw),
        TypeError,
        ("optimizer must be an Optimizer such as ps.adamw(rate)",),
    ),
    "a transformation in a step": (
        lambda: ps.update_step(ps.clip_by_global_norm(1.0)),
        TypeError,
        ("optimizer must be an Optimizer", "ps.chain(transformation, ps.sgd(rate))"),
    ),
    "a negative rate": (lambda: ps.adamw(-0.1), ValueError, ("rate must be a finite number at least 0", "-0.1")),
    "a schedule called with a negative step": (
        lambda: cosine(peak=0.1, total_steps=10)(-1),
        ValueError,
        ("step must be", "at least 0", "-1"),
    ),
    "a schedule called with a negative tensor": (
        lambda: cosine(peak=0.1, total_steps=10)(torch.tensor([3, -2])),
        ValueError,
        ("step must be at least 0", "-2"),
    ),
    "a negative seed": (
        lambda: ps.init_state(net(), OPTIMIZER, seed=-1),
        ValueError,
        ("seed must be an int of at least 0", "-1"),
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_message(name):
    call, error, fragments = ROWS[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.compiler
def test_a_donated_state_that_is_given_again():
    with pytest.raises(ps.DonatedStateError, match=r"was donated to the compiled step.*state\.clone\(\)"):
        donated_twice()


def test_nothing_is_lost_by_an_error():
    """A step that fails leaves its state and the module as they were, and can be taken again."""
    model, start = net(), state()
    kept, values = start.clone(), copy.deepcopy(model.state_dict())
    step = ps.train_step(model, classify, OPTIMIZER)
    with pytest.raises(KeyError):
        step(start, {"x": torch.ones(2, 3)})
    assert bool((start.params == kept.params).all())
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    after, _ = step(start, batch())
    assert after.step.item() == 1
