"""from_torch and to_torch: a run of torch goes on here, and there again, with the same bits."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn
from torch.optim import lr_scheduler

import purestep as ps
from _optimizer_table import TORCH
from purestep import optimizers

OPTIONS = {
    "sgd": {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1},
    "adam": {"amsgrad": True, "weight_decay": 0.1},
    "adamw": {"betas": (0.8, 0.9)},
    "nadam": {"decoupled": True, "weight_decay": 0.1},
    "radam": {"betas": (0.8, 0.9), "weight_decay": 0.1},
    "adagrad": {"lr_decay": 0.1, "initial_accumulator_value": 0.2},
    "rmsprop": {"centered": True, "momentum": 0.5},
    "asgd": {"lambd": 0.1, "t0": 4.0},
    "rprop": {"etas": (0.4, 1.3)},
    "adafactor": {"weight_decay": 0.1},
    "muon": {"adjust": "match_rms_adamw"},
}


def network(name, dtype=torch.float32):
    torch.manual_seed(0)
    bias = name != "muon"
    return nn.Sequential(nn.Linear(3, 5, bias=bias), nn.Tanh(), nn.Linear(5, 2, bias=bias)).to(dtype)


def batch(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return {
        "x": torch.randn(6, 3, generator=generator, dtype=dtype),
        "y": torch.randint(0, 2, (6,), generator=generator),
    }


def objective(model, batch):
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def made(name, model, options=None):
    """Two groups, of different rates and decays."""
    row = TORCH[name]
    first, second = list(model[0].parameters()), list(model[2].parameters())
    groups = [{"params": second, "lr": 2 * row.rate}, {"params": first}]
    if "weight_decay" in row.theirs(list(network(name).parameters()), 0.1).param_groups[0]:
        groups[0]["weight_decay"] = 0.3
    return row.theirs(groups, row.rate, **(OPTIONS.get(name, {}) if options is None else options))


def run_torch(model, optimizer, steps, scheduler=None, skip=()):
    for step in steps:
        optimizer.zero_grad()
        given = batch(step, next(model.parameters()).dtype)
        F.cross_entropy(model(given["x"]), given["y"]).backward()
        for parameter in skip:
            parameter.grad = None
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def run_ours(model, optimizer, opt_state, steps, first=0):
    """On torch's own gradients, so that only the updates are compared."""
    names = [name for name, _ in model.named_parameters()]
    params = TensorDict({name: p.detach().clone() for name, p in model.named_parameters()})
    for step in steps:
        given = batch(step, params[names[0]].dtype)
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, (given["x"],)), given["y"])
        grads = TensorDict(dict(zip(names, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
        context = ps.UpdateContext(torch.tensor(first), ps.random.key(0))
        params, opt_state = optimizer.update(grads, opt_state, params, context)
        first += 1
    return params, opt_state


def same_bits(params, model):
    for name, parameter in model.named_parameters():
        assert torch.equal(params[name], parameter), name


def reloaded(name, model, optimizer):
    """Another model and optimizer, from state_dicts that went through a file."""
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, held = torch.load(file)
    twin = network(name)
    twin.load_state_dict(weights)
    other = made(name, twin)
    other.load_state_dict(held)
    return twin, other


@pytest.mark.parametrize("name", TORCH)
def test_there_and_back_again(name):
    """Torch for 10 updates, ours for 7, torch for 6: the bits of 23 in torch."""
    alone = network(name)
    optimizer = made(name, alone)
    run_torch(alone, optimizer, range(10))
    model, theirs = reloaded(name, alone, optimizer)
    run_torch(alone, optimizer, range(10, 17))
    rule, state = optimizers.from_torch(theirs, model)
    params, state = run_ours(model, rule, state, range(10, 17))
    same_bits(params, alone)

    run_torch(alone, optimizer, range(17, 23))
    back = network(name)
    with torch.no_grad():
        for key, parameter in back.named_parameters():
            parameter.copy_(params[key])
    theirs = made(name, back)
    optimizers.to_torch(state, theirs, back)
    run_torch(back, theirs, range(17, 23))
    same_bits(dict(back.named_parameters()), alone)
    held, right = theirs.state_dict(), optimizer.state_dict()
    assert held["param_groups"] == right["param_groups"]
    for index, entry in right["state"].items():
        assert entry.keys() == held["state"][index].keys()
        for key, value in entry.items():
            assert torch.equal(value, held["state"][index][key]), key
            assert value.dtype == held["state"][index][key].dtype, key


@pytest.mark.parametrize("name", TORCH)
def test_from_the_beginning_and_with_one_group(name):
    model = network(name)
    theirs = TORCH[name].theirs(list(model.parameters()), TORCH[name].rate, **OPTIONS.get(name, {}))
    rule, state = optimizers.from_torch(theirs, model)
    right = (
        TORCH[name]
        .ours(TORCH[name].rate, **OPTIONS.get(name, {}))
        .init(TensorDict({key: p.detach() for key, p in model.named_parameters()}))
    )
    assert {*state.keys()} == {*right.keys()}
    params, state = run_ours(model, rule, state, range(5))
    run_torch(model, theirs, range(5))
    same_bits(params, model)


@pytest.mark.parametrize("name", [name for name in TORCH if name != "muon"])
def test_parameters_that_came_late_have_their_own_counts(name):
    model = network(name)
    theirs = made(name, model)
    run_torch(model, theirs, range(4), skip=[model[0].bias, model[2].weight])
    rule, state = optimizers.from_torch(theirs, model)
    counts = state["1", "count"]
    assert isinstance(counts, TensorDict)
    assert counts["0.bias"] == 0
    params, state = run_ours(model, rule, state, range(4, 12))
    twin, other = copy.deepcopy((model, theirs))
    run_torch(twin, other, range(4, 12))
    same_bits(params, twin)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(params[key])
    optimizers.to_torch(state, theirs, model)
    run_torch(model, theirs, range(12, 15))
    run_torch(twin, other, range(12, 15))
    same_bits(dict(model.named_parameters()), twin)


def test_an_entry_that_torch_has_not_made_is_left_to_it():
    model = network("adamw")
    theirs = made("adamw", model)
    run_torch(model, theirs, range(2), skip=[model[0].bias])
    _, state = optimizers.from_torch(theirs, model)
    optimizers.to_torch(state, theirs, model)
    assert model[0].bias not in theirs.state
    assert model[0].weight in theirs.state


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, 0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 30),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda t: 0.9**t, lambda t: 1 / (1 + t)]),
    "warmup": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, 20)], [5]
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.2], total_steps=40),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=6),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_pair_with_a_scheduler_goes_on(name, scheduler):
    model = network(name)
    theirs = made(name, model)
    moves = SCHEDULERS[scheduler](theirs)
    run_torch(model, theirs, range(7), moves)
    rule, state = optimizers.from_torch(theirs, model, scheduler=moves)
    params, state = run_ours(model, rule, state, range(7, 30), first=moves.last_epoch)
    start = ps.init_state(model, rule, seed=0).replace(opt_state=state, step=torch.tensor(moves.last_epoch))
    run_torch(model, theirs, range(7, 30), moves)
    same_bits(params, model)  # rates agree to 1e-12, and float32 does not see it
    used = rule.hyperparams(start.opt_state, ps.UpdateContext(torch.tensor(moves.last_epoch), ps.random.key(0)))
    for label, group in enumerate(theirs.param_groups):
        assert used[f"learning_rate.{label}"].item() == pytest.approx(group["lr"], rel=1e-11)


def test_in_a_train_step_and_back_into_the_model():
    """The route of the documentation, in float64, where a step's own gradient may round otherwise than torch's."""
    model = network("adamw", torch.float64)
    theirs = made("adamw", model)
    run_torch(model, theirs, range(5))
    alone, other = copy.deepcopy((model, theirs))
    run_torch(alone, other, range(5, 12))

    rule, opt_state = optimizers.from_torch(theirs, model)
    state = ps.init_state(model, rule, seed=0).replace(opt_state=opt_state)
    step = ps.train_step(model, objective, rule)
    for t in range(5, 12):
        state, _ = step(state, batch(t, torch.float64))
    ps.load_into(model, state)
    optimizers.to_torch(state.opt_state, theirs, model)
    for key, parameter in alone.named_parameters():
        assert torch.allclose(dict(model.named_parameters())[key], parameter, rtol=1e-12), key
    assert [group["params"][0] for group in theirs.param_groups] == [model[2].weight, model[0].weight]
    assert all(theirs.state[p]["step"] == 12 for p in model.parameters())


def test_nothing_that_is_given_is_kept_or_changed():
    model = network("adam")
    theirs = made("adam", model)
    run_torch(model, theirs, range(3))
    before = copy.deepcopy(theirs.state_dict())
    _, state = optimizers.from_torch(theirs, model)
    for tree in (state["0"], state["1"]):
        tree["exp_avg"].apply_(lambda leaf: leaf.zero_())
    after = theirs.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for index, entry in before["state"].items():
        assert all(torch.equal(value, after["state"][index][key]) for key, value in entry.items())
    _, state = optimizers.from_torch(theirs, model)
    optimizers.to_torch(state, theirs, model)
    state["0", "exp_avg"].apply_(lambda leaf: leaf.zero_())
    assert theirs.state[model[2].weight]["exp_avg"].abs().max() > 0


def test_a_rate_in_a_tensor_and_a_mapping_of_names():
    model = network("adamw")
    theirs = torch.optim.AdamW(list(model.parameters())[:2], lr=torch.tensor(0.03), foreach=False)
    rule, state = optimizers.from_torch(theirs, {"w": model[0].weight, "b": model[0].bias})
    assert list(state["exp_avg"].keys()) == ["w", "b"]
    used = rule.hyperparams(state, ps.UpdateContext(torch.tensor(0), ps.random.key(0)))
    assert used["learning_rate"].item() == pytest.approx(0.03)


def frozen():
    model = network("adamw")
    model[0].requires_grad_(False)
    return model, torch.optim.AdamW(model[2].parameters())


def test_frozen_parameters_may_be_in_no_group():
    model, theirs = frozen()
    rule, state = optimizers.from_torch(theirs, model)
    assert list(state["exp_avg"].keys()) == ["2.weight", "2.bias"]
    step = ps.train_step(model, objective, rule)
    after, _ = step(ps.init_state(model, rule, seed=0).replace(opt_state=state), batch(0))
    assert torch.equal(after.params["0.weight"], model[0].weight)


class Own(torch.optim.AdamW):
    pass


def bad(name):
    model, other = network("adamw"), network("adamw")
    adamw = torch.optim.AdamW(model.parameters())
    half = torch.optim.AdamW(model[0].parameters())
    nested = nn.Linear(2, 2)
    complex_model = nn.Linear(2, 2, dtype=torch.complex64)
    cases = {
        "own": lambda: optimizers.from_torch(Own(model.parameters()), model),
        "lbfgs": lambda: optimizers.from_torch(torch.optim.LBFGS(model.parameters()), model),
        "none": lambda: optimizers.from_torch(ps.adamw(0.1), model),
        "model": lambda: optimizers.from_torch(adamw, list(model.parameters())),
        "stranger": lambda: optimizers.from_torch(adamw, other),
        "left": lambda: optimizers.from_torch(half, model),
        "scheduler": lambda: optimizers.from_torch(adamw, model, scheduler=0.1),
        "others": lambda: optimizers.from_torch(
            adamw, model, scheduler=lr_scheduler.StepLR(torch.optim.SGD(nested.parameters(), 0.1), 2)
        ),
        "plateau": lambda: optimizers.from_torch(adamw, model, scheduler=lr_scheduler.ReduceLROnPlateau(adamw)),
        "complex": lambda: optimizers.from_torch(torch.optim.SGD(complex_model.parameters()), complex_model),
        "other state": lambda: optimizers.to_torch(
            ps.init_state(model, ps.sgd(0.1, momentum=0.9), seed=0).opt_state, adamw, model
        ),
        "chain": lambda: optimizers.to_torch(
            ps.init_state(model, ps.chain(ps.clip_by_global_norm(1.0), ps.adamw(0.1)), seed=0).opt_state, adamw, model
        ),
        "other parameters": lambda: optimizers.to_torch(
            ps.init_state(nn.Sequential(nn.Linear(3, 4)), ps.adamw(0.1), seed=0).opt_state, adamw, model
        ),
        "groups": lambda: optimizers.to_torch(
            ps.init_state(model, ps.adamw(0.1), seed=0).opt_state, made("adamw", model), model
        ),
    }
    return cases[name]


BAD = {
    "own": (TypeError, "got Own"),
    "lbfgs": (TypeError, "optimizer must be one of torch.optim's SGD, Adam, AdamW, "),
    "none": (TypeError, "got Optimizer"),
    "model": (TypeError, "model must be a module or a mapping from names to parameters, got list"),
    "stranger": (ValueError, "every parameter of optimizer must be one of model's, and 4 is not, the first of shape"),
    "left": (ValueError, "optimizer leaves out '2.weight', '2.bias', which requires a gradient: freeze it with"),
    "scheduler": (TypeError, "scheduler must be one of torch.optim.lr_scheduler, got float"),
    "others": (ValueError, "scheduler must be one that moves this optimizer's rates, got one of another optimizer"),
    "plateau": (ValueError, "ReduceLROnPlateau is no function of the step"),
    "complex": (TypeError, "sgd needs parameters of a real floating-point dtype, got torch.complex64 as 'weight'"),
    "other state": (ValueError, "state must be this optimizer's, with ['count', 'exp_avg', 'exp_avg_sq'], got"),
    "chain": (ValueError, "of a chain give the part of its optimizer"),
    "other parameters": (ValueError, "'exp_avg' of '0.weight' of shape (5, 3), got shape (4, 3)"),
    "groups": (ValueError, "state must have a part for each group, ['0', '1'], got"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_or_written_is_refused(name):
    error, message = BAD[name]
    with pytest.raises(error) as caught:
        bad(name)()
    assert message in str(caught.value)
