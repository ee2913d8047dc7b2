"""Parameters and gradients for tests of update rules, and how a rule is run over some steps."""

from __future__ import annotations

import torch
from tensordict import TensorDict

import purestep as ps
from purestep.updates import UpdateContext

SHAPES = {"scalar": (), "bias": (5,), "weight": (4, 3), "kernel": (2, 3, 1, 2), "empty": (0, 2)}


def context(step=0, **more):
    return UpdateContext(torch.tensor(step), ps.random.key(3), **more)


def tree(seed=0, *, scale=1.0, dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return TensorDict(
        {n: (scale * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for n, s in shapes.items()}
    )


def gradients(steps, *, seed=100, **options):
    """Gradients of several sizes, one tree a step."""
    return [tree(seed + step, **{"scale": 10.0 ** (step % 3 - 1), **options}) for step in range(steps)]


def transformed(transformation, grads, params):
    """What a transformation makes of each of some gradients, and the state that it ends in."""
    state, after = transformation.init(params), []
    for step, one in enumerate(grads):
        out, state = transformation.update(one, state, params, context(step))
        after.append(out)
    return after, state


def moved(optimizer, grads, params):
    """Where an optimizer goes with some gradients, step by step, and the state that it ends in."""
    state, after = optimizer.init(params), []
    for step, one in enumerate(grads):
        params, state = optimizer.update(one, state, params, context(step))
        after.append(params)
    return after, state


def leaves(given):
    """The tensors of a tree of any depth, by path; of a list of trees, by place and path."""
    if isinstance(given, torch.Tensor):
        return {"": given}
    items = given.items() if hasattr(given, "items") else enumerate(given)
    return {f"{name}/{path}": leaf for name, inner in items for path, leaf in leaves(inner).items()}


def assert_same_bits(got, right):
    got, right = leaves(got), leaves(right)
    assert got.keys() == right.keys()
    for name, leaf in right.items():
        assert got[name].dtype == leaf.dtype, name
        assert torch.equal(got[name].isnan(), leaf.isnan()), name
        assert torch.equal(got[name].nan_to_num(), leaf.nan_to_num()), f"{name}: {got[name]} is not {leaf}"


def assert_close(got, right, *, relative=1e-12):
    """To this share of the largest entry of each leaf."""
    got, right = leaves(got), leaves(right)
    assert got.keys() == right.keys()
    for name, leaf in right.items():
        size = leaf.abs().max().item() if leaf.numel() else 0.0
        assert torch.allclose(got[name], leaf, rtol=0, atol=relative * size), f"{name}: {got[name]} is not {leaf}"
