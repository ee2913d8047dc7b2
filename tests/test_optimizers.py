"""Optimizers against torch's own, bit for bit, and the laws that they keep."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _against_torch import assert_same_bits, context, gradients, parameters, run_ours, run_torch
from _optimizer_table import TORCH
from purestep import laws, optimizers
from purestep.schedules import cosine

CASES = [(name, options) for name, row in TORCH.items() for options in row.grid]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name} {options}" for name, options in CASES])
def test_an_optimizer_has_torchs_bits(name, options, dtype):
    row = TORCH[name]
    params = parameters(dtype, shapes=row.shapes)
    steps = 50 if dtype == torch.float32 else 20
    right, theirs = run_torch(lambda leaves: row.theirs(leaves, row.rate, **options), params, steps)
    got, state = run_ours(row.ours(row.rate, **options), params, steps)
    assert all(leaf.isfinite().all() for leaf in right.values())
    assert_same_bits(got, right)
    held = {name: theirs.state[p] for name, p in zip(params, theirs.param_groups[0]["params"], strict=True)}
    for key, tree in state.items():
        if key == "count":
            assert tree == steps
        elif isinstance(tree, torch.Tensor):
            assert all(torch.equal(own[key], tree) for own in held.values()), key
        else:
            assert_same_bits(tree, {name: own[key] for name, own in held.items() if key in own})


# What parity catches: AdamW as others write it.


def adamw_written(average, square, root, decay_first):
    def update(grads, state, params, context):
        t, after, moved = state["count"].item() + 1, {"m": {}, "v": {}}, {}
        for name, p in params.items():
            g = grads[name]
            m, v = average(state["m", name], g, 0.9), square(state["v", name], g, 0.999)
            after["m"][name], after["v"][name] = m, v
            direction = root(m, v, t)
            if decay_first:
                moved[name] = (p * (1 - 0.03 * 0.01)).sub(direction, alpha=0.03)
            else:
                moved[name] = p - 0.03 * (direction + 0.01 * p)
        return TensorDict(moved), TensorDict({**after, "count": state["count"] + 1})

    def init(params):
        zeros = params.apply(torch.zeros_like)
        return TensorDict({"m": zeros, "v": zeros.clone(), "count": torch.tensor(0)})

    return ps.Optimizer(init, update)


def lerp(m, g, beta):
    return m.lerp(g, 1 - beta)


def naive(m, g, beta):
    return beta * m + (1 - beta) * g


def two_products(v, g, beta):
    return (v * beta).addcmul(g, g, value=1 - beta)


def corrected(m, v, t):
    return (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def as_in_torch(m, v, t):
    return m / (1 - 0.9**t) / (v.sqrt() / (1 - 0.999**t) ** 0.5 + 1e-8)


def one_late(m, v, t):
    return as_in_torch(m, v, t + 1)


MUTANTS = {
    "a moving average": (naive, two_products, as_in_torch, True),
    "a squared average": (lerp, lambda v, g, beta: naive(v, g * g, beta), as_in_torch, True),
    "corrected moments": (lerp, two_products, corrected, True),
    "decay in the step": (lerp, two_products, as_in_torch, False),
    "a count too many": (lerp, two_products, one_late, True),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_parity_sees_another_order_of_operations(name):
    params = parameters(torch.float32)
    right, _ = run_torch(lambda leaves: TORCH["adamw"].theirs(leaves, 0.03), params, 50)
    got, _ = run_ours(adamw_written(*MUTANTS[name]), params, 50)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_bits(got, right)
    assert_same_bits(run_ours(ps.adamw(0.03), params, 50)[0], right)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 17)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)))


def test_two_hundred_steps_of_a_transformer_have_torchs_bits():
    torch.manual_seed(0)
    ours = Transformer()
    theirs = Transformer()
    theirs.load_state_dict(ours.state_dict())
    optimizer, rule = torch.optim.AdamW(theirs.parameters(), lr=1e-2, foreach=False), ps.adamw(1e-2)

    def losses(model, tokens, reduction):
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten(), reduction=reduction)

    step = ps.train_step(ours, lambda model, tokens: ps.mean(losses(model, tokens, "none")), rule)
    state = ps.init_state(ours, rule, seed=0)
    for t in range(200):
        tokens = torch.randint(0, 17, (4, 8), generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        losses(theirs, tokens, "mean").backward()
        optimizer.step()
        state, _ = step(state, tokens)
    assert_same_bits(state.params, {name: p.detach() for name, p in theirs.named_parameters()})


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_holds_is_what_ours_holds(name):
    """No tree more, none less."""
    row = TORCH[name]
    for options in row.grid:
        params = parameters(torch.float32, shapes=row.shapes)
        _, theirs = run_torch(lambda leaves, o=options: row.theirs(leaves, row.rate, **o), params, 1)
        keys = {key for own in theirs.state.values() for key in own} - {"step"}
        if name == "sgd" and "momentum" not in options:
            keys = set()
        assert {*row.ours(row.rate, **options).init(TensorDict(params)).keys()} - {"count"} == keys


@pytest.mark.parametrize("name", TORCH)
def test_a_schedule_has_the_bits_of_a_rate_set_by_hand(name):
    row = TORCH[name]
    rate = cosine(peak=3 * row.rate, total_steps=40)
    params = parameters(torch.float32, shapes=row.shapes)
    rates = [rate(step).item() for step in range(50)]
    right, _ = run_torch(lambda leaves: row.theirs(leaves, rates[0]), params, 50, rates=rates)
    got, _ = run_ours(row.ours(rate), params, 50)
    assert_same_bits(got, right)


@pytest.mark.parametrize("name", TORCH)
def test_a_hyperparameter_in_a_tensor_has_the_bits_of_its_number(name):
    row = TORCH[name]
    params = parameters(torch.float32, shapes=row.shapes)
    numbers = {"rate": row.rate, **row.hyperparameters}
    right, _ = run_ours(row.with_hyperparameters(numbers), params, 6)
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()}
    got, _ = run_ours(row.with_hyperparameters(tensors), params, 6)
    assert_same_bits(got, dict(right.items()))


@pytest.mark.parametrize("name", TORCH)
def test_somebody_who_differentiates_gets_the_same_bits(name):
    """Tensor after tensor, with safe roots, where otherwise all tensors go in one call; zero gradients among them."""
    row = TORCH[name]
    for options in row.grid:
        params = parameters(torch.float32, shapes=row.shapes)
        rule = row.ours(row.rate, **options)
        right, _ = run_ours(rule, params, 3)
        tree, state = TensorDict(params), rule.init(TensorDict(params))
        for step in range(3):
            grads = {leaf_name: grad.clone().requires_grad_() for leaf_name, grad in gradients(params, step).items()}
            tree, state = rule.update(TensorDict(grads), state, tree, context(step))
        assert all(leaf.requires_grad for leaf in tree.values())
        if name == "adafactor":  # its scale depends on the gradients, so it is a tensor then
            assert all(torch.allclose(tree[key], leaf, rtol=1e-6, atol=1e-7) for key, leaf in right.items())
        else:
            assert_same_bits(tree.detach(), dict(right.items()))


@pytest.mark.parametrize("name", TORCH)
def test_hyperparameters_may_be_vmapped(name):
    row = TORCH[name]
    params = TensorDict(parameters(torch.float64, shapes=row.shapes))
    numbers = {"rate": row.rate, **row.hyperparameters}
    several = {key: torch.tensor([value, 0.9 * value], dtype=torch.float64) for key, value in numbers.items()}

    def run(h):
        return run_ours(row.with_hyperparameters(h), params, 3)[0]

    together = torch.vmap(run)(several)
    for member in range(2):
        alone = run({key: value[member] for key, value in several.items()})
        for leaf_name, leaf in alone.items():
            assert torch.allclose(together[leaf_name][member], leaf, rtol=1e-10, atol=1e-12), leaf_name


LAWS = {
    **{name: (functools.partial(row.make, **row.options), row.smooth, row.skip) for name, row in TORCH.items()},
    "muon": (lambda rate: optimizers.muon(rate, others=optimizers.sgd(rate)), False, ("ensemble",)),
    "muon in float64": (lambda rate: optimizers.muon(rate, others=optimizers.sgd(rate), ns_dtype=None), True, ()),
    "radam, rectified": (lambda rate: optimizers.radam(rate, betas=(0.9, 0.999), decoupled=True), True, ()),
    "adam with amsgrad": (lambda rate: optimizers.adam(rate, amsgrad=True, maximize=True), True, ()),
}


@pytest.mark.parametrize("name", LAWS)
def test_optimizers_keep_the_laws(name):
    make, smooth, skip = LAWS[name]
    laws.check_optimizer(make, smooth=smooth, skip=skip)


@pytest.fixture
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["asgd", "nadam"])
def test_where_torchs_scalars_are_float64_so_are_ours_and_the_rule_is_smooth(name, float64_by_default):
    row = TORCH[name]
    params = parameters(torch.float64)
    right, _ = run_torch(lambda leaves: row.theirs(leaves, row.rate), params, 20)
    got, state = run_ours(row.ours(row.rate), params, 20)
    assert_same_bits(got, right)
    assert all(state[key].dtype == torch.float64 for key in ("eta", "mu", "mu_product") if key in state.keys())  # noqa: SIM118
    laws.check_optimizer(row.make, laws=["derivatives", "finite"])
