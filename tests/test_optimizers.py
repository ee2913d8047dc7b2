"""Optimizers against torch's own, bit for bit, and their derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.schedules import cosine
from purestep.updates import UpdateContext

SHAPES = {"scalar": (), "vector": (7,), "matrix": (5, 3), "kernel": (4, 3, 2, 2), "empty": (0, 3)}


def parameters(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}
    values["transposed"] = torch.randn(6, 4, generator=generator, dtype=dtype).t()
    values["strided"] = torch.randn(10, generator=generator, dtype=dtype)[::2]
    return values


def gradients(params, step):
    """Gradients of many sizes; one leaf never has any, and at step 7 no leaf has."""
    generator = torch.Generator().manual_seed(1000 + step)
    grads = {}
    for position, (name, leaf) in enumerate(params.items()):
        size = 0.0 if step == 7 or name == "vector" else 10.0 ** (position - 4)
        grads[name] = size * torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
    return grads


def run_torch(make, params, steps, rates=None):
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    optimizer = make(list(leaves.values()))
    for step in range(steps):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        for name, grad in gradients(params, step).items():
            leaves[name].grad = grad
        optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}, optimizer


def run_ours(optimizer, params, steps):
    tree = TensorDict(params)
    state = optimizer.init(tree)
    for step in range(steps):
        context = UpdateContext(torch.tensor(step), ps.random.key(0))
        tree, state = optimizer.update(TensorDict(gradients(params, step)), state, tree, context)
    return tree, state


def assert_same_bits(got, right):
    for name, leaf in right.items():
        assert got[name].dtype == leaf.dtype
        assert torch.equal(got[name], leaf), f"{name}: off by {(got[name] - leaf).abs().max()}"


SGD = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.4},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
    {"momentum": 0.5, "dampening": 1.0, "maximize": True},
    {"maximize": True},
]
ADAMW = [
    {},
    {"weight_decay": 0.0},
    {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.3},
    {"amsgrad": True},
    {"maximize": True, "betas": (0.0, 0.0)},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.2},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_has_torchs_bits(options, dtype):
    params = parameters(dtype)
    right, torch_optimizer = run_torch(lambda ps_: torch.optim.SGD(ps_, 0.03, foreach=False, **options), params, 50)
    got, state = run_ours(ps.sgd(0.03, **options), params, 50)
    assert_same_bits(got, right)
    if "momentum" in options:
        names = list(params)
        buffers = [torch_optimizer.state[p]["momentum_buffer"] for p in torch_optimizer.param_groups[0]["params"]]
        assert_same_bits(state["momentum_buffer"], dict(zip(names, buffers, strict=True)))
        assert state["count"].item() == 50
    else:
        assert list(state.keys()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", ADAMW, ids=str)
def test_adamw_has_torchs_bits(options, dtype):
    params = parameters(dtype)
    right, torch_optimizer = run_torch(lambda ps_: torch.optim.AdamW(ps_, 0.03, foreach=False, **options), params, 50)
    got, state = run_ours(ps.adamw(0.03, **options), params, 50)
    assert_same_bits(got, right)
    for kept in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] * options.get("amsgrad", False))):
        moments = [torch_optimizer.state[p][kept] for p in torch_optimizer.param_groups[0]["params"]]
        assert_same_bits(state[kept], dict(zip(params, moments, strict=True)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda rate: ps.sgd(rate, momentum=0.9), lambda p: torch.optim.SGD(p, 1.0, momentum=0.9, foreach=False)),
        (lambda rate: ps.adamw(rate), lambda p: torch.optim.AdamW(p, 1.0, foreach=False)),
    ],
    ids=["sgd", "adamw"],
)
def test_a_schedule_has_the_bits_of_a_rate_set_by_hand(ours, theirs):
    rate = cosine(peak=0.1, total_steps=40)
    params = parameters(torch.float32)
    right, _ = run_torch(theirs, params, 50, rates=[rate(step).item() for step in range(50)])
    got, _ = run_ours(ours(rate), params, 50)
    assert_same_bits(got, right)


def test_a_rate_in_a_tensor_has_the_bits_of_its_number():
    params = parameters(torch.float32)
    right, _ = run_ours(ps.adamw(0.03), params, 5)
    got, _ = run_ours(ps.adamw(torch.tensor(0.03, dtype=torch.float64)), params, 5)
    assert_same_bits(got, dict(right.items()))


def test_the_decay_mask_says_what_decays():
    params = parameters(torch.float64)
    zeros = TensorDict({name: torch.zeros_like(leaf) for name, leaf in params.items()})
    optimizer = ps.adamw(0.1, weight_decay=0.5, decay_mask=ps.matrices_only)
    context = UpdateContext(torch.tensor(0), ps.random.key(0))
    after, _ = optimizer.update(zeros, optimizer.init(TensorDict(params)), TensorDict(params), context)
    for name, leaf in params.items():
        factor = 0.95 if leaf.dim() >= 2 else 1.0
        assert torch.allclose(after[name], leaf * factor), name

    groups = [
        {"params": [leaf.clone() for leaf in params.values() if leaf.dim() >= 2], "weight_decay": 0.5},
        {"params": [leaf.clone() for leaf in params.values() if leaf.dim() < 2], "weight_decay": 0.0},
    ]
    for group in groups:
        for leaf in group["params"]:
            leaf.grad = torch.ones_like(leaf)
    torch.optim.AdamW(groups, 0.1, foreach=False).step()
    ones = TensorDict({name: torch.ones_like(leaf) for name, leaf in params.items()})
    after, _ = optimizer.update(ones, optimizer.init(ones), TensorDict(params), context)
    matrices = iter(groups[0]["params"])
    others = iter(groups[1]["params"])
    assert_same_bits(after, {name: next(matrices if p.dim() >= 2 else others) for name, p in params.items()})


def test_a_mask_by_name():
    params = TensorDict({"a": torch.ones(2), "b": torch.ones(2)})
    optimizer = ps.adamw(0.1, weight_decay=0.5, decay_mask=lambda name, parameter: name == "b")
    context = UpdateContext(torch.tensor(0), ps.random.key(0))
    after, _ = optimizer.update(params.apply(torch.zeros_like), optimizer.init(params), params, context)
    assert after["a"].tolist() == [1, 1]
    assert after["b"].tolist() == pytest.approx([0.95, 0.95])


def test_a_fresh_optimizer_corrects_its_bias_wherever_training_is():
    """The count is the optimizer's own: the first update at step 10,000 has the size of a first update."""
    params = TensorDict({"w": torch.ones(3, dtype=torch.float64)})
    optimizer = ps.adamw(0.1, weight_decay=0.0)
    context = UpdateContext(torch.tensor(10_000), ps.random.key(0))
    after, _ = optimizer.update(params, optimizer.init(params), params, context)
    assert after["w"].tolist() == pytest.approx([0.9, 0.9, 0.9])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ps.sgd(0.1, momentum=-0.5), ValueError, "momentum must be a finite number at least 0, got -0.5"),
        (lambda: ps.sgd(0.1, weight_decay="x"), TypeError, "weight_decay must be a number, a 0-d tensor or a schedule"),
        (lambda: ps.sgd(0.1, nesterov=True), ValueError, "nesterov=True needs momentum above 0"),
        (lambda: ps.sgd(0.1, momentum=0.9, dampening=0.1, nesterov=True), ValueError, "dampening=0.1"),
        (
            lambda: ps.adamw(0.1, betas=(0.9, 1.0)),
            ValueError,
            "betas[1] must be a finite number at least 0 and below 1",
        ),
        (lambda: ps.adamw(0.1, betas=0.9), TypeError, "betas must be two numbers in [0, 1), got 0.9"),
        (lambda: ps.adamw(0.1, eps=-1e-8), ValueError, "eps must be a finite number at least 0"),
        (lambda: ps.adamw(0.1, decay_mask=True), TypeError, "decay_mask must be a function (name, parameter) -> bool"),
    ],
)
def test_hyperparameters_out_of_range(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


# Through three updates, by the rate and by the gradients.
RULES = {
    "sgd": lambda rate: ps.sgd(rate, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda rate: ps.adamw(rate, weight_decay=0.1),
    "adamw with amsgrad": lambda rate: ps.adamw(rate, amsgrad=True),
    "clipped": lambda rate: ps.chain(ps.clip_by_global_norm(0.1), ps.adamw(rate)),
}


def meta_loss(make, rate, scale, target):
    """The loss after three updates on a quadratic, whose gradient `scale` multiplies."""
    optimizer = make(rate)
    params = TensorDict({"w": torch.tensor([0.5, -1.0], dtype=torch.float64), "b": torch.zeros(()).double()})
    state = optimizer.init(params)
    for step in range(3):
        grads = params.apply(lambda leaf: scale * (leaf - target))
        params, state = optimizer.update(grads, state, params, UpdateContext(torch.tensor(step), ps.random.key(0)))
    return sum((leaf - target).square().sum() for leaf in params.values())


@pytest.mark.parametrize("name", RULES)
def test_a_meta_gradient_is_what_differences_give(name):
    start = [torch.tensor(value, dtype=torch.float64) for value in (0.05, 1.3, 0.7)]
    slopes = torch.func.grad(lambda *args: meta_loss(RULES[name], *args), argnums=(0, 1, 2))(*start)
    h = 1e-5
    for position, slope in enumerate(slopes):
        ends = []
        for sign in (1, -1):
            moved = [value + sign * h * (i == position) for i, value in enumerate(start)]
            ends.append(meta_loss(RULES[name], *moved).item())
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", RULES)
def test_a_meta_gradient_is_finite_where_the_gradient_is_zero(name):
    rate = torch.tensor(0.05, dtype=torch.float64)
    scale = torch.tensor(0.0, dtype=torch.float64)
    target = torch.tensor(0.7, dtype=torch.float64)
    slopes = torch.func.grad(lambda *args: meta_loss(RULES[name], *args), argnums=(0, 1, 2))(rate, scale, target)
    assert all(math.isfinite(slope) for slope in slopes)
    leaves = [value.clone().requires_grad_() for value in (rate, scale, target)]
    by_autograd = torch.autograd.grad(meta_loss(RULES[name], *leaves), leaves)
    assert all(math.isfinite(slope) for slope in by_autograd)
    for one, other in zip(slopes, by_autograd, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-9, abs=1e-12)


class Scaled(nn.Module):
    """With a 0-d parameter, as a contrastive model's temperature is."""

    def __init__(self, dtype):
        super().__init__()
        self.line = nn.Linear(3, 1, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, x):
        return self.line(x) * self.scale


ZERO_DIMENSIONS = {
    "adamw": lambda: ps.adamw(ps.schedules.constant(0.1)),
    "adamw, masked": lambda: ps.adamw(0.1, decay_mask=lambda name, p: True),
    "sgd": lambda: ps.sgd(0.1, momentum=ps.schedules.constant(0.9), weight_decay=0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ZERO_DIMENSIONS)
def test_a_parameter_without_dimensions_keeps_its_dtype(name, dtype):
    model, optimizer = Scaled(dtype), ZERO_DIMENSIONS[name]()
    step = ps.train_step(model, lambda m, x: ps.mean(m(x).float().square()), optimizer, accumulate=3)
    state, x = ps.init_state(model, optimizer, seed=0), torch.randn(6, 3, dtype=dtype)
    alone, _ = step(step(state, x)[0], x)
    together, _ = torch.vmap(step, in_dims=(0, None))(torch.stack([state, state]), x)
    for after in (alone, together):
        leaves = [*after.params.values(), *(after.opt_state.get("momentum_buffer", after.params)).values()]
        assert {leaf.dtype for leaf in leaves} == {dtype}
