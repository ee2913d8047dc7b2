"""What is said of each parameter by itself: how many updates it has taken, and whether it decays."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _against_torch import assert_same_bits, context, gradients, parameters, run_ours
from _optimizer_table import BEYOND, TORCH

# Counts.


def split_counts(state, names):
    """The state with a count, and each other scalar, for every leaf."""
    each = {
        key: TensorDict({name: value.clone() for name in names}) if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }
    return TensorDict(each, batch_size=[])


COUNTED = [name for name in TORCH if name != "muon"]


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_for_each_leaf_is_torchs_late_unfreezing(name):
    """Half of the parameters have no gradient for three updates, and then take part."""
    row = TORCH[name]
    options = {"momentum": 0.9, "dampening": 0.3} if name == "sgd" else {}
    params = parameters(torch.float32, shapes=row.shapes)
    late = {"matrix", "scalar", "strided"}

    def theirs():
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        optimizer = row.theirs(list(leaves.values()), row.rate, **options)
        for step in range(12):
            for leaf_name, grad in gradients(params, step).items():
                leaves[leaf_name].grad = None if leaf_name in late and step < 3 else grad
            optimizer.step()
        return leaves

    rule = row.ours(row.rate, **options)
    early = TensorDict({name: leaf for name, leaf in params.items() if name not in late})
    tree, state = run_ours(rule, dict(early.items()), 0)
    for step in range(3):
        grads = {name: grad for name, grad in gradients(params, step).items() if name not in late}
        tree, state = rule.update(TensorDict(grads), state, tree, context(step))
    first = split_counts(rule.init(TensorDict(params)), params)
    held = split_counts(state, early.keys())
    joined = {}
    for key, value in first.items():
        joined[key] = TensorDict({name: held[key].get(name, leaf) for name, leaf in value.items()})
    state, tree = TensorDict(joined), TensorDict({**params, **dict(tree.items())})
    forms = [(key, tuple(value.keys())) for key, value in state.items()]
    for step in range(3, 12):
        tree, state = rule.update(TensorDict(gradients(params, step)), state, tree, context(step))
    assert_same_bits(tree, {name: leaf.detach() for name, leaf in theirs().items()})
    assert [(key, tuple(value.keys())) for key, value in state.items()] == forms
    if "count" in state.keys():  # noqa: SIM118
        assert {name: count.item() for name, count in state["count"].items()} == {
            name: 9 if name in late else 12 for name in params
        }


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_for_each_leaf_may_be_vmapped_and_differentiated(name):
    row = TORCH[name]
    rule = row.ours(row.rate, **row.options)
    params = TensorDict(parameters(torch.float64, shapes=row.shapes))
    state = split_counts(rule.init(params), params.keys())
    grads = TensorDict(gradients(params, 1))
    right, _ = rule.update(grads, state, params, context())
    stacked = [torch.stack([tree, tree]) for tree in (grads, state, params)]
    got, _ = torch.vmap(lambda g, s, p: rule.update(g, s, p, context()))(*stacked)
    for leaf_name, leaf in right.items():
        assert torch.allclose(got[1][leaf_name], leaf, rtol=1e-12, atol=1e-14)

    def total(scale):
        after, _ = rule.update(grads.apply(lambda g: scale * g), state, params, context())
        return torch.stack([leaf.sum() for leaf in after.values()]).sum()

    assert torch.func.grad(total)(torch.ones((), dtype=torch.float64)).isfinite()


def test_a_fresh_optimizer_corrects_its_bias_wherever_training_is():
    """The count is the optimizer's own: the first update at step 10,000 has the size of a first update."""
    params = TensorDict({"w": torch.ones(3, dtype=torch.float64)})
    optimizer = ps.adamw(0.1, weight_decay=0.0)
    after, _ = optimizer.update(params, optimizer.init(params), params, context(10_000))
    assert after["w"].tolist() == pytest.approx([0.9, 0.9, 0.9])


# Masks.

DECAYING = {
    name: {"decoupled": True} if decoupled else {}
    for name in TORCH
    if name not in ("rprop", "muon")
    for decoupled in [False]
} | {"nadam ": {"decoupled": True}, "radam ": {"decoupled": True}}


@pytest.mark.parametrize("name", DECAYING)
def test_the_decay_mask_is_torchs_groups(name):
    row, options = TORCH[name.strip()], DECAYING[name]
    params = parameters(torch.float32, shapes=row.shapes)
    leaves = {leaf_name: leaf.clone().requires_grad_() for leaf_name, leaf in params.items()}
    groups = [
        {"params": [leaf for leaf in leaves.values() if leaf.dim() >= 2], "weight_decay": 0.5},
        {"params": [leaf for leaf in leaves.values() if leaf.dim() < 2], "weight_decay": 0.0},
    ]
    theirs = row.theirs(groups, 0.1, **options)
    for step in range(3):
        for leaf_name, grad in gradients(params, step).items():
            leaves[leaf_name].grad = grad
        theirs.step()
    ours = row.ours(0.1, weight_decay=0.5, decay_mask=ps.matrices_only, **options)
    got, _ = run_ours(ours, params, 3)
    assert_same_bits(got, {leaf_name: leaf.detach() for leaf_name, leaf in leaves.items()})


def test_a_mask_by_name():
    params = TensorDict({"a": torch.ones(2), "b": torch.ones(2)})
    optimizer = ps.adamw(0.1, weight_decay=0.5, decay_mask=lambda name, parameter: name == "b")
    after, _ = optimizer.update(params.apply(torch.zeros_like), optimizer.init(params), params, context())
    assert after["a"].tolist() == [1, 1]
    assert after["b"].tolist() == pytest.approx([0.95, 0.95])


@pytest.mark.parametrize("name", [name for name in (*TORCH, *BEYOND) if name != "rprop"])
def test_a_mask_that_spares_every_parameter_is_no_decay(name):
    """As `matrices_only` does where a part of a partition has biases alone."""
    row = {**TORCH, **BEYOND}[name]
    params = parameters(torch.float32, shapes=row.shapes)
    spared, _ = run_ours(row.ours(row.rate, weight_decay=0.5, decay_mask=lambda name, p: False), params, 3)
    without, _ = run_ours(row.ours(row.rate, weight_decay=0.0), params, 3)
    assert_same_bits(spared, dict(without.items()))
