"""Gradient transformations: what they do to a gradient, against torch's own, and their derivatives."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tensordict import TensorDict

import purestep as ps
from purestep.transforms import global_norm
from purestep.updates import UpdateContext

CONTEXT = UpdateContext(torch.tensor(0), ps.random.key(0))


def tree(scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 4), "b": (), "c": (5,), "empty": (0,)}
    return TensorDict(
        {n: scale * torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}
    )


def clip(grads, max_norm, **options):
    transformation = ps.clip_by_global_norm(max_norm, **options)
    clipped, state = transformation.update(grads, transformation.init(grads), grads, CONTEXT)
    return clipped, transformation.hyperparams(state, CONTEXT)["grad_norm"]


def test_the_norm_is_over_all_entries():
    grads = tree()
    flat = torch.cat([leaf.flatten() for leaf in grads.values()])
    assert global_norm(grads).item() == pytest.approx(flat.norm().item(), rel=1e-14)
    assert global_norm(grads).shape == ()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    grads = TensorDict({"a": torch.full((1000,), 300.0, dtype=dtype)})
    assert global_norm(grads).dtype == torch.float32
    assert global_norm(grads).item() == pytest.approx(300 * math.sqrt(1000), rel=1e-2)
    clipped, _ = clip(grads, 1.0)
    assert clipped["a"].dtype == dtype


@given(scale=st.sampled_from([1e-6, 0.01, 0.3, 1.0, 7.0, 1e6]), max_norm=st.sampled_from([1e-3, 0.5, 1.0, 40.0]))
def test_clipping_is_torchs_with_its_eps(scale, max_norm):
    grads = tree(scale)
    leaves = [torch.nn.Parameter(leaf.clone()) for leaf in grads.values()]
    for leaf, grad in zip(leaves, grads.values(), strict=True):
        leaf.grad = grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm, foreach=False)
    clipped, reported = clip(grads, max_norm, eps=1e-6)
    assert reported.item() == pytest.approx(norm.item(), rel=1e-14)
    for leaf, got in zip(leaves, clipped.values(), strict=True):
        assert torch.allclose(leaf.grad, got, rtol=1e-12, atol=0)


@given(scale=st.sampled_from([0.0, 1e-9, 0.1, 1.0, 1e9]))
def test_a_clipped_gradient_has_at_most_the_norm_and_the_same_direction(scale):
    grads = tree(scale)
    clipped, norm = clip(grads, 0.5)
    assert global_norm(clipped).item() <= 0.5 * (1 + 1e-12)
    if norm.item() <= 0.5:
        assert all(torch.equal(leaf, grads[name]) for name, leaf in clipped.items())
    else:
        ratio = 0.5 / norm
        assert all(torch.allclose(leaf, grads[name] * ratio, rtol=1e-12) for name, leaf in clipped.items())


def test_a_norm_equal_to_the_limit_is_kept_to_the_bit():
    grads = TensorDict({"a": torch.tensor([0.6, 0.8], dtype=torch.float64)})
    clipped, norm = clip(grads, norm_of(grads))
    assert torch.equal(clipped["a"], grads["a"])
    assert norm.item() == norm_of(grads)


def norm_of(grads):
    return global_norm(grads).item()


def test_the_derivative_at_zero_is_that_of_the_identity():
    def outcome(x):
        clipped, norm = clip(TensorDict({"a": x}), 0.5)
        return clipped["a"].sum() + norm

    slope = torch.func.grad(outcome)(torch.zeros(3, dtype=torch.float64))
    assert slope.tolist() == [1, 1, 1]
    leaf = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(outcome(leaf), leaf)
    assert slope.tolist() == [1, 1, 1]


def test_the_derivative_on_both_sides_is_what_differences_give():
    for size in (0.1, 3.0):
        point = size * torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda x: clip(TensorDict({"a": x}), 0.5)[0]["a"], (point.clone().requires_grad_(),)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reported_norm_is_the_one_before_clipping(dtype):
    _, norm = clip(tree(100.0, dtype), 0.5)
    assert norm.item() == pytest.approx(global_norm(tree(100.0, dtype)).item())
    assert norm.dtype == dtype


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ps.clip_by_global_norm(0.0), ValueError, "max_norm must be a finite number above 0, got 0.0"),
        (lambda: ps.clip_by_global_norm(-1), ValueError, "got -1"),
        (lambda: ps.clip_by_global_norm(float("inf")), ValueError, "got inf"),
        (lambda: ps.clip_by_global_norm("1"), TypeError, "max_norm must be a number, a 0-d tensor or a schedule"),
        (lambda: ps.clip_by_global_norm(1.0, eps=-1e-6), ValueError, "eps must be a finite number at least 0"),
    ],
)
def test_limits_out_of_range(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
