"""The one state: how it begins, what it shares, and how it is read back into a module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import purestep as ps


def make_model():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


OPTIMIZER = ps.adamw(0.01)


def storages(tree):
    return {leaf.untyped_storage().data_ptr() for leaf in tree.values(include_nested=True, leaves_only=True)}


def test_a_state_begins_as_a_copy_of_the_model():
    model = make_model()
    state = ps.init_state(model, OPTIMIZER, seed=7)
    for name, parameter in model.named_parameters():
        assert torch.equal(state.params[name], parameter)
        assert state.params[name].data_ptr() != parameter.data_ptr()
        assert not state.params[name].requires_grad
    assert list(state.params.keys()) == [name for name, _ in model.named_parameters()]
    assert list(state.buffers.keys()) == [name for name, _ in model.named_buffers()]
    assert (state.step.item(), state.calls.item()) == (0, 0)
    assert state.step.dtype == state.calls.dtype == state.key.dtype == torch.int64
    assert torch.equal(state.key, ps.random.key(7))
    assert state.batch_size == torch.Size([])
    assert {name: leaf.item() for name, leaf in state.aux.items()} == {"skipped": 0}


def test_optimizer_state_has_the_names_of_what_is_trained():
    state = ps.init_state(make_model(), OPTIMIZER, seed=0, trainable="3.*")
    assert list(state.opt_state["exp_avg"].keys()) == ["3.weight", "3.bias"]
    assert len(list(state.params.keys())) == 6


def test_a_seed_beyond_32_bits_is_another_seed():
    keys = {tuple(ps.init_state(make_model(), OPTIMIZER, seed=seed).key.tolist()) for seed in (1, 1 << 32, 1 << 33)}
    assert len(keys) == 3


def test_from_meta_the_state_owns_the_storage_that_was_built():
    built = []

    def make():
        built.append(make_model())
        return built[-1]

    model, state = ps.init_state_from_meta(make, OPTIMIZER, seed=3)
    structure, values = built
    assert model is structure
    assert all(parameter.is_meta for parameter in model.parameters())
    for name, parameter in [*values.named_parameters(), *values.named_buffers()]:
        leaf = {**dict(state.params.items()), **dict(state.buffers.items())}[name]
        assert leaf.data_ptr() == parameter.data_ptr(), name


def test_from_meta_the_state_trains_like_any_other():
    model, state = ps.init_state_from_meta(make_model, OPTIMIZER, seed=3)
    torch.manual_seed(3)
    plain = make_model()
    expected = ps.init_state(plain, OPTIMIZER, seed=3)
    assert bool((state.params == expected.params).all())
    batch = {"x": torch.randn(5, 4), "y": torch.tensor([0, 1, 2, 0, 1])}

    def objective(model, batch):
        return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))

    after, _ = ps.train_step(model, objective, OPTIMIZER)(state, batch)
    right, _ = ps.train_step(plain, objective, OPTIMIZER)(expected, batch)
    assert bool((after.params == right.params).all())


def test_from_meta_the_values_depend_on_the_seed_and_on_nothing_before():
    before = torch.get_rng_state()
    first = ps.init_state_from_meta(make_model, OPTIMIZER, seed=3)[1]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = ps.init_state_from_meta(make_model, OPTIMIZER, seed=3)[1]
    other = ps.init_state_from_meta(make_model, OPTIMIZER, seed=4)[1]
    assert bool((first.params == again.params).all())
    assert not bool((first.params["0.weight"] == other.params["0.weight"]).any())


def test_from_meta_tied_weights_are_one_leaf():
    model, state = ps.init_state_from_meta(tied, OPTIMIZER, seed=0)
    assert list(state.params.keys()) == ["0.weight", "0.bias", "2.bias"]

    def objective(model, batch):
        return ps.mean(model(batch["x"]).square())

    after, _ = ps.train_step(model, objective, OPTIMIZER)(state, {"x": torch.ones(2, 4)})
    assert not torch.equal(after.params["0.weight"], state.params["0.weight"])


def test_replace_shares_the_rest_and_changes_nothing():
    state = ps.init_state(make_model(), OPTIMIZER, seed=0)
    later = state.replace(step=torch.tensor(5))
    assert (later.step.item(), state.step.item()) == (5, 0)
    assert storages(later.params) == storages(state.params)
    assert isinstance(later, ps.TrainState)


def test_replace_puts_another_tree_in_a_fields_place():
    """A fresh optimizer's state takes the old one's place whole, and is not merged into it."""
    model = make_model()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    fresh = ps.init_state(model, ps.sgd(0.1), seed=0).opt_state
    assert list(state.replace(opt_state=fresh).opt_state.keys()) == []
    assert set(state.opt_state.keys()) == {"exp_avg", "exp_avg_sq", "count"}


def test_clone_shares_nothing():
    state = ps.init_state(make_model(), OPTIMIZER, seed=0)
    other = state.clone()
    assert isinstance(other, ps.TrainState)
    assert not storages(other.params) & storages(state.params)
    other.params["0.weight"].zero_()
    other.opt_state["count"].add_(1)
    assert state.params["0.weight"].any()
    assert state.opt_state["count"].item() == 0


def test_states_stack_into_an_ensemble_and_come_apart():
    states = [ps.init_state(make_model(), OPTIMIZER, seed=seed) for seed in (0, 1)]
    states[1].params["0.weight"].add_(1)
    together = torch.stack(states)
    assert isinstance(together, ps.TrainState)
    assert together.batch_size == torch.Size([2])
    assert together.params["0.weight"].shape == (2, 6, 4)
    assert torch.equal(together[1].params["0.weight"], states[1].params["0.weight"])
    assert together.step.shape == (2,)
    assert together.key.shape == (2, 2)


def test_a_state_moves_to_another_device():
    state = ps.init_state(make_model(), OPTIMIZER, seed=0).to("meta")
    assert all(leaf.is_meta for leaf in state.params.values())
    assert state.step.is_meta
    placed = ps.init_state(make_model(), OPTIMIZER, seed=0, device="meta")
    assert all(leaf.is_meta for leaf in (placed.params["0.weight"], placed.key, placed.opt_state["count"]))


def test_load_into_writes_values_and_buffers_into_the_module():
    model, other = make_model(), make_model()
    state = ps.init_state(other, OPTIMIZER, seed=0)
    state.buffers["1.running_mean"].fill_(3.0)
    assert ps.load_into(model, state) is model
    assert torch.equal(model[0].weight, other[0].weight)
    assert model[1].running_mean.tolist() == [3.0] * 6
    assert model[0].weight.requires_grad
    assert model[0].weight.data_ptr() != state.params["0.weight"].data_ptr()


def test_load_into_refuses_another_model_and_writes_nothing():
    state = ps.init_state(nn.Sequential(nn.Linear(4, 6)), OPTIMIZER, seed=0)
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"state does not belong to this model: it lacks '1.weight'"):
        ps.load_into(model, state)
    wide = ps.init_state(nn.Sequential(nn.Linear(4, 7)), OPTIMIZER, seed=0)
    with pytest.raises(
        ValueError, match=r"state\['0.weight'\] must have the model's shape and dtype, \(6, 4\) .*got \(7, 4\)"
    ):
        ps.load_into(nn.Sequential(nn.Linear(4, 6)), wide)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


BAD = {
    "no module": (lambda: ps.init_state("net", OPTIMIZER, seed=0), TypeError, "model must be a torch.nn.Module"),
    "torch's optimizer": (
        lambda: ps.init_state(make_model(), torch.optim.SGD(make_model().parameters(), 0.1), seed=0),
        TypeError,
        "optimizer must be a purestep Optimizer such as ps.adamw(rate)",
    ),
    "a transformation": (
        lambda: ps.init_state(make_model(), ps.clip_by_global_norm(1.0), seed=0),
        TypeError,
        "close the chain with one",
    ),
    "no optimizer": (lambda: ps.init_state(make_model(), None, seed=0), TypeError, "got None"),
    "a negative seed": (
        lambda: ps.init_state(make_model(), OPTIMIZER, seed=-1),
        ValueError,
        "seed must be an int of at least 0, got -1",
    ),
    "a seed that is too large": (
        lambda: ps.init_state(make_model(), OPTIMIZER, seed=1 << 64),
        ValueError,
        "seed must be below 2**64",
    ),
    "a seed that is no int": (lambda: ps.init_state(make_model(), OPTIMIZER, seed=1.0), TypeError, "got 1.0"),
    "from_meta: a module": (
        lambda: ps.init_state_from_meta(make_model(), OPTIMIZER, seed=0),
        TypeError,
        "make_model must be a function that builds the module, got Sequential",
    ),
    "from_meta: no module comes out": (
        lambda: ps.init_state_from_meta(lambda: 3, OPTIMIZER, seed=0),
        TypeError,
        "model must be a torch.nn.Module, got 3",
    ),
    "from_meta: a negative seed": (
        lambda: ps.init_state_from_meta(make_model, OPTIMIZER, seed=-1),
        ValueError,
        "seed must be an int of at least 0, got -1",
    ),
    "from_meta: a seed that is too large": (
        lambda: ps.init_state_from_meta(make_model, OPTIMIZER, seed=1 << 64),
        ValueError,
        "seed must be below 2**64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
