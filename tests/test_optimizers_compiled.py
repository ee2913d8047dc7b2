"""Optimizers in one graph, against eager mode: how far apart the bits may be."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _optimizer_table import TORCH
from purestep.updates import UpdateContext

pytestmark = pytest.mark.compiler
# Those with a branch of their own for what cannot be read; compiling the others takes as long, and shows less.
CHOSEN = ("sgd", "nadam", "radam", "asgd", "rprop", "adafactor")
OPTIONS = {"sgd": {"momentum": 0.9, "weight_decay": 0.1}, "nadam": {"decoupled": True, "weight_decay": 0.1}}


def test_a_graph_is_within_two_ulps_and_some_roundings_of_the_step():
    """θ - Δ is rounded once, which is an ulp of θ between two ways to compute it, and Δ itself is made by at most 16
    operations, each rounded by half an ulp in either way: |a - b| ≤ 2 ulp(θ) + 16 ulp(Δ), for each update so far."""
    rules = {
        name: row.ours(ps.schedules.cosine(row.rate, total_steps=9), **{**row.options, **OPTIONS.get(name, {})})
        for name, row in TORCH.items()
        if name in CHOSEN
    }
    generator = torch.Generator().manual_seed(0)
    params = {name: TensorDict({"w": torch.randn(3, 5, generator=generator)}) for name in rules}
    grads = torch.randn(2, 3, 5, generator=generator)
    grads[:, 1] = 0

    def update(params, states, grad, step):
        context = UpdateContext(step, ps.random.key(0))
        after = {
            name: rule.update(TensorDict({"w": grad}, batch_size=[]), states[name], params[name], context)
            for name, rule in rules.items()
        }
        return {name: pair[0] for name, pair in after.items()}, {name: pair[1] for name, pair in after.items()}

    def run(function):
        after, states = params, {name: rule.init(params[name]) for name, rule in rules.items()}
        for step in range(2):
            after, states = function(after, states, grads[step], torch.tensor(step))
        return after, states

    right, right_states = run(update)
    got, states = run(torch.compile(update, fullgraph=True))
    unit = torch.finfo(torch.float32).eps
    for name, tree in right.items():
        theta, other = tree["w"], got[name]["w"]
        moved = (theta - params[name]["w"]).abs()
        assert ((theta - other).abs() <= 2 * unit * (2 * theta.abs() + 16 * moved)).all(), name
        assert {key: str(leaf.dtype) for key, leaf in states[name].items(True, True)} == {
            key: str(leaf.dtype) for key, leaf in right_states[name].items(True, True)
        }
