"""Gradient transformations against their formulas written out, against optimizers they make up, and against torch."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _rules import SHAPES, assert_close, assert_same_bits, context, gradients, moved, transformed, tree
from purestep import transforms

PARAMS = tree()


def each(fn, grads):
    """``fn(name, gradient)`` for each leaf of each of some gradients, in order of the steps."""
    return [{name: fn(name, one[name]) for name in SHAPES} for one in grads]


def remembering(fn):
    """``fn(t, memory, g, p) -> (memory, g)`` from 1 on and with a memory of zero, as a function for :func:`each`."""
    memory, count = {}, {}

    def step(name, grad):
        count[name] = count.get(name, 0) + 1
        before = memory.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
        memory[name], after = fn(count[name], before, grad, PARAMS[name])
        return after

    return step


def adam(t, memory, g, p):
    m, v = 0.8 * memory[0] + 0.2 * g, 0.95 * memory[1] + 0.05 * g * g
    return (m, v), (m / (1 - 0.8**t)) / (torch.sqrt(v / (1 - 0.95**t) + 1e-4) + 1e-3)


def rms(t, memory, g, p):
    v = 0.9 * memory[0] + 0.1 * g * g
    return (v, None), g / (torch.sqrt(v + 1e-4) + 1e-3)


def heavy_ball(t, memory, g, p):
    b = 0.9 * memory[0] + g
    return (b, None), b


def nesterov(t, memory, g, p):
    b = 0.9 * memory[0] + g
    return (b, None), g + 0.9 * b


def average(t, memory, g, p):
    m = 0.9 * memory[0] + 0.1 * g
    return (m, None), m / (1 - 0.9**t)


def trust(name, g):
    size, norm = PARAMS[name].norm(), g.norm()
    return 0.3 * size / (norm + 0.01) * g if size > 0 and norm > 0 else g


def units(tensor):
    """The rows of a weight, one after the other; a vector whole."""
    return tensor.flatten(1).unbind(0) if tensor.dim() > 1 else [tensor.flatten()]


def agc(name, g):
    rows = []
    for row, own in zip(units(g), units(PARAMS[name]), strict=True):
        most = 0.1 * max(own.norm().item(), 1e-3)
        rows.append(row * most / row.norm() if row.norm() > most else row)
    return torch.cat(rows).reshape(g.shape) if rows else g


def centred(name, g):
    return torch.stack([row - row.mean() for row in units(g)]).reshape(g.shape) if g.dim() > 1 and g.numel() else g


FORMULAS = {
    "scale": (transforms.scale(-3), lambda name, g: -3 * g),
    "clip_by_value": (transforms.clip_by_value(0.3), lambda name, g: g.clip(-0.3, 0.3)),
    "clip_by_norm": (
        transforms.clip_by_norm(0.5, eps=0.1),
        lambda name, g: g * min(1.0, 0.5 / (g.norm().item() + 0.1)),
    ),
    "adaptive_clip": (transforms.adaptive_clip(0.1), agc),
    "centralize": (transforms.centralize(), centred),
    "add_decayed_weights": (transforms.add_decayed_weights(0.1), lambda name, g: g + 0.1 * PARAMS[name]),
    "add_decayed_weights, masked": (
        transforms.add_decayed_weights(0.1, mask="*e*"),
        lambda name, g: g + 0.1 * PARAMS[name] * ("e" in name),
    ),
    "scale_by_sign": (transforms.scale_by_sign(), lambda name, g: (g > 0).double() - (g < 0).double()),
    "scale_by_trust_ratio": (transforms.scale_by_trust_ratio(coefficient=0.3, eps=0.01), trust),
    "normalize per leaf": (transforms.normalize(per_leaf=True, eps=0.1), lambda name, g: g / (g.norm() + 0.1)),
    "trace": (transforms.trace(0.9), remembering(heavy_ball)),
    "trace, nesterov": (transforms.trace(0.9, nesterov=True), remembering(nesterov)),
    "ema": (transforms.ema(0.9), remembering(average)),
    "scale_by_adam": (transforms.scale_by_adam(betas=(0.8, 0.95), eps=1e-3, eps_root=1e-4), remembering(adam)),
    "scale_by_rms": (transforms.scale_by_rms(decay=0.9, eps=1e-3, eps_root=1e-4), remembering(rms)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_written_out(name):
    rule, formula = FORMULAS[name]
    grads = [*gradients(4), tree(scale=0.0), tree(9)]
    got, _ = transformed(rule, grads, PARAMS)
    assert_close([dict(one.items()) for one in got], each(formula, grads), relative=1e-13)


def test_one_norm_over_all_leaves():
    [got], _ = transformed(transforms.normalize(), [tree(1)], PARAMS)
    norm = math.sqrt(sum(leaf.square().sum().item() for leaf in tree(1).values()))
    assert_close(got, {name: leaf / norm for name, leaf in tree(1).items()}, relative=1e-14)
    assert transforms.global_norm(got).item() == pytest.approx(1)


def test_a_scheduled_average_is_weighted_by_its_own_decays():
    betas = [0.0, 0.5, 0.9, 0.2]
    rule = transforms.ema(lambda step: torch.tensor(betas, dtype=torch.float64)[step])
    grads = gradients(4)
    got, _ = transformed(rule, grads, PARAMS)
    weights: list[float] = []
    for beta in betas:
        weights = [w * beta for w in weights] + [1 - beta]
    right = {n: sum(w * g[n] for w, g in zip(weights, grads, strict=True)) / sum(weights) for n in SHAPES}
    assert_close(got[-1], right)


# What chains of them make up.
def adamw_of_parts(rate, decay):
    return ps.chain(transforms.scale_by_adam(), transforms.add_decayed_weights(decay), ps.sgd(rate))


@pytest.mark.parametrize("rate", [0.03, ps.schedules.cosine(peak=0.05, total_steps=30)], ids=["number", "schedule"])
def test_adams_direction_decay_and_sgd_are_adamw(rate):
    grads = gradients(30)
    assert_close(
        moved(adamw_of_parts(rate, 0.1), grads, PARAMS)[0], moved(ps.adamw(rate, weight_decay=0.1), grads, PARAMS)[0]
    )


def test_decay_before_adams_direction_is_l2_and_not_adamw():
    grads = gradients(5)
    l2 = ps.chain(transforms.add_decayed_weights(0.1), transforms.scale_by_adam(), ps.sgd(0.03))
    got = moved(l2, grads, PARAMS)[0][-1]
    leaves = {n: leaf.clone().requires_grad_() for n, leaf in PARAMS.items()}
    optimizer = torch.optim.Adam(list(leaves.values()), lr=0.03, weight_decay=0.1, foreach=False)
    for one in grads:
        for name, leaf in leaves.items():
            leaf.grad = one[name].clone()
        optimizer.step()
    assert_close(got, {n: leaf.detach() for n, leaf in leaves.items()})
    assert not torch.allclose(got["weight"], moved(adamw_of_parts(0.03, 0.1), grads, PARAMS)[0][-1]["weight"])


def test_rms_and_sgd_are_torchs_rmsprop():
    grads = gradients(10)
    got = moved(ps.chain(transforms.scale_by_rms(decay=0.95, eps=1e-5), ps.sgd(0.03)), grads, PARAMS)[0][-1]
    leaves = {n: leaf.clone().requires_grad_() for n, leaf in PARAMS.items()}
    optimizer = torch.optim.RMSprop(list(leaves.values()), lr=0.03, alpha=0.95, eps=1e-5, foreach=False)
    for one in grads:
        for name, leaf in leaves.items():
            leaf.grad = one[name].clone()
        optimizer.step()
    assert_close(got, {n: leaf.detach() for n, leaf in leaves.items()})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("parts", "whole"),
    [
        (transforms.trace(0.9), {"momentum": 0.9}),
        (transforms.trace(0.9, nesterov=True), {"momentum": 0.9, "nesterov": True}),
        (transforms.add_decayed_weights(0.1), {"weight_decay": 0.1}),
        (
            ps.chain(transforms.add_decayed_weights(0.1), transforms.trace(0.7)),
            {"weight_decay": 0.1, "momentum": 0.7},
        ),
    ],
    ids=["momentum", "nesterov", "decay", "decay and momentum"],
)
def test_sgd_of_parts_has_sgds_bits(parts, whole, dtype):
    grads, params = gradients(10, dtype=dtype), tree(dtype=dtype)
    got, _ = moved(ps.chain(parts, ps.sgd(0.03)), grads, params)
    assert_same_bits(got, moved(ps.sgd(0.03, **whole), grads, params)[0])


def test_clip_by_value_has_the_bits_of_torchs():
    grads = tree(1, dtype=torch.float32)
    leaves = [nn.Parameter(leaf.clone()) for leaf in grads.values()]
    for leaf in leaves:
        leaf.grad = leaf.detach().clone()
    nn.utils.clip_grad_value_(leaves, 0.3, foreach=False)
    [got], _ = transformed(transforms.clip_by_value(0.3), [grads], grads)
    assert_same_bits(list(got.values()), [leaf.grad for leaf in leaves])


def test_clip_by_norm_is_torchs_of_one_parameter_at_a_time():
    grads = tree(1)
    leaves = [nn.Parameter(leaf.clone()) for leaf in grads.values()]
    for leaf in leaves:
        leaf.grad = leaf.detach().clone()
        nn.utils.clip_grad_norm_([leaf], 0.5)
    [got], _ = transformed(transforms.clip_by_norm(0.5, eps=1e-6), [grads], grads)
    assert_close(list(got.values()), [leaf.grad for leaf in leaves])


# Hyperparameters of other kinds than numbers.
KINDS = {
    "clip_by_value": transforms.clip_by_value,
    "clip_by_norm": transforms.clip_by_norm,
    "adaptive_clip": transforms.adaptive_clip,
    "scale": transforms.scale,
    "scale_by_trust_ratio": lambda value: transforms.scale_by_trust_ratio(coefficient=value),
    "add_decayed_weights": transforms.add_decayed_weights,
    "add_noise": transforms.add_noise,
    "trace": transforms.trace,
    "ema": transforms.ema,
    "scale_by_rms": lambda value: transforms.scale_by_rms(decay=value),
    "scale_by_adam": lambda beta: transforms.scale_by_adam(betas=(beta, beta)),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_tensor_and_a_schedule_are_their_number(name):
    grads, value = gradients(3), torch.tensor(0.3, dtype=torch.float64)
    right, _ = transformed(KINDS[name](0.3), grads, PARAMS)
    assert_same_bits(transformed(KINDS[name](value), grads, PARAMS)[0], right)
    assert_same_bits(transformed(KINDS[name](lambda step: value + 0 * step), grads, PARAMS)[0], right)
    traced, _ = transformed(KINDS[name](value.clone().requires_grad_()), grads, PARAMS)
    assert_close([dict(t.items()) for t in traced], [dict(t.items()) for t in right])


@pytest.mark.parametrize("name", KINDS)
def test_the_derivative_by_it_is_what_differences_give(name):
    grads = gradients(3, seed=17)

    def outcome(value):
        after, _ = transformed(KINDS[name](value), grads, PARAMS)
        return torch.stack([(leaf * PARAMS[n]).sum() for one in after for n, leaf in one.items()]).sum()

    point, h = torch.tensor(0.3, dtype=torch.float64), 1e-6
    slope = torch.func.grad(outcome)(point)
    difference = (outcome(point + h) - outcome(point - h)) / (2 * h)
    assert slope.item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-7)
    assert slope.abs() > 1e-6


# Derivatives where a rule is not smooth.
AT_ZERO = {
    "clip_by_norm": (transforms.clip_by_norm(0.5), 1.0),
    "adaptive_clip": (transforms.adaptive_clip(0.1), 1.0),
    "normalize": (transforms.normalize(), 1.0),
    "normalize with eps": (transforms.normalize(eps=0.25), 4.0),
    "scale_by_trust_ratio": (transforms.scale_by_trust_ratio(coefficient=0.1), 1.0),
    "scale_by_sign": (transforms.scale_by_sign(), 0.0),
    "scale_by_adam": (transforms.scale_by_adam(eps=0.5), 2.0),
    "scale_by_rms": (transforms.scale_by_rms(eps=0.5), 2.0),
}


@pytest.mark.parametrize("params", [1.0, 0.0], ids=["beside parameters", "beside parameters of zero"])
@pytest.mark.parametrize("name", AT_ZERO)
def test_the_derivative_at_zero_is_the_one_that_is_said(name, params):
    rule, right = AT_ZERO[name]
    given = TensorDict({"w": torch.full((2, 2), params, dtype=torch.float64)})

    def outcome(w):
        return transformed(rule, [TensorDict({"w": w})], given)[0][0]["w"].sum()

    slope = torch.func.grad(outcome)(torch.zeros(2, 2, dtype=torch.float64))
    assert slope.flatten().tolist() == pytest.approx([right] * 4)


def test_the_derivative_at_a_bound_is_one():
    at = torch.tensor([0.3, -0.3, 0.2, 0.5], dtype=torch.float64)
    for bound in (0.3, torch.tensor(0.3, dtype=torch.float64)):
        rule = transforms.clip_by_value(bound)
        slope = torch.func.grad(
            lambda w, rule=rule: rule.update(TensorDict({"w": w}), {}, TensorDict({"w": w}), context())[0]["w"].sum()
        )(at)
        assert slope.tolist() == [1, 1, 1, 0]


# Noise.
def noise(rule, shapes=SHAPES, **given):
    zeros = TensorDict({n: torch.zeros(s, dtype=torch.float64) for n, s in shapes.items()})
    return rule.update(zeros, rule.init(zeros), zeros, context(**given))[0]


def test_noise_has_the_variance_of_its_formula():
    for step, gamma in ((0, 0.55), (7, 0.55), (7, 0.0)):
        drawn = noise(transforms.add_noise(0.3, gamma=gamma), {"w": (200, 200)}, step=step)["w"]
        assert drawn.mean().abs() < 5 * drawn.std() / 200
        assert drawn.var().item() == pytest.approx(0.3 / (1 + step) ** gamma, rel=0.04)


def test_a_leafs_noise_is_a_function_of_key_name_and_site():
    rule = transforms.add_noise(0.3)
    alone = noise(rule, {"weight": (4, 3)})["weight"]
    assert torch.equal(noise(rule)["weight"], alone)
    assert torch.equal(noise(rule, {"a": (2,), "weight": (4, 3)})["weight"], alone)
    assert not torch.equal(noise(rule, {"weigh": (4, 3)})["weigh"], alone)
    assert not torch.equal(noise(transforms.add_noise(0.3, site=1))["weight"], alone)
    # After a skipped step `step` is the same, and the noise is not.
    first, second = (noise(rule, step=2, calls=torch.tensor(calls))["weight"] for calls in (2, 3))
    assert not torch.equal(first, second)


def test_the_derivative_by_a_variance_of_zero_is_zero():
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.func.grad(lambda eta: noise(transforms.add_noise(eta))["weight"].sum())(zero).item() == 0


def test_noise_of_half_precision_keeps_its_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        zeros = tree(scale=0.0, dtype=dtype)
        [drawn], _ = transformed(transforms.add_noise(0.3), [zeros], zeros)
        assert drawn["weight"].dtype == dtype
        assert drawn["weight"].abs().sum() > 0


# Entries that are not finite.
def test_entries_that_are_not_finite_are_zeroed_and_counted():
    rule = transforms.zero_nonfinite()
    bad = TensorDict({"a": torch.tensor([1.0, float("nan"), float("-inf")]), "b": torch.tensor(float("inf"))})
    good = TensorDict({"a": torch.tensor([1.0, 2.0, -0.5]), "b": torch.tensor(3.0)})
    after, state = transformed(rule, [bad, good, bad], good)
    assert after[0]["a"].tolist() == [1, 0, 0]
    assert after[0]["b"].item() == 0
    assert_same_bits(after[1], good)
    reported = rule.hyperparams(state, context())
    assert {name: value.item() for name, value in reported.items()} == {"zeroed_entries": 6, "zeroed_updates": 2}
    slope = torch.func.grad(
        lambda a: transformed(rule, [TensorDict({"a": a})], {"a": a} and TensorDict({"a": a}))[0][0]["a"].sum()
    )(bad["a"])
    assert slope.tolist() == [1, 0, 0]


def test_a_nan_passes_through_clipping_for_the_policy_to_meet():
    bad = TensorDict({"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([0.1])})
    for rule in (transforms.clip_by_value(0.3), transforms.clip_by_norm(0.3), transforms.adaptive_clip(0.1)):
        [after], _ = transformed(rule, [bad], bad)
        assert after["a"].isnan().any()
        assert after["b"].isfinite().all()
