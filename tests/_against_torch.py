"""Parameters and gradients of many sizes, and how an optimizer of torch and one of ours are run over them."""

from __future__ import annotations

import functools

import torch
from tensordict import TensorDict

import purestep as ps
from purestep.updates import UpdateContext

SHAPES = {"scalar": (), "vector": (7,), "matrix": (5, 3), "kernel": (4, 3, 2, 2), "empty": (0, 3)}


def parameters(dtype, seed=0, shapes=lambda shape: True):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}
    values["transposed"] = torch.randn(6, 4, generator=generator, dtype=dtype).t()
    values["strided"] = torch.randn(10, generator=generator, dtype=dtype)[::2]
    return {name: leaf for name, leaf in values.items() if shapes(leaf.shape)}


@functools.cache
def gradient(name, shape, dtype, step, size):
    generator = torch.Generator().manual_seed(1000 + 100 * step + sum(map(ord, name)))
    return size * torch.randn(shape, generator=generator, dtype=dtype)


def gradients(params, step):
    """Gradients of many sizes; one leaf never has any, and at step 7 no leaf has."""
    grads = {}
    for position, (name, leaf) in enumerate(params.items()):
        size = 0.0 if step == 7 or name == "vector" else 10.0 ** (position - 4)
        grads[name] = gradient(name, leaf.shape, leaf.dtype, step, size)
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
        tree, state = optimizer.update(TensorDict(gradients(params, step)), state, tree, context(step))
    return tree, state


def context(step=0):
    return UpdateContext(torch.tensor(step), ps.random.key(0))


def assert_same_bits(got, right):
    for name, leaf in right.items():
        assert got[name].dtype == leaf.dtype
        assert torch.equal(got[name], leaf), f"{name}: off by {(got[name] - leaf).abs().max()}"
