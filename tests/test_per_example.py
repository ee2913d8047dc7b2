"""Per-example gradients: their weighted sum is the gradient, and each is that of a batch of one."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purestep as ps
from purestep.per_example import ExampleGradients, per_example_grads, per_example_norms
from test_derivatives import CASES, batch, flat, losses, mlp, objective


@pytest.fixture(params=CASES)
def job(request):
    make, positions = CASES[request.param]
    model = make()
    return model, ps.init_state(model, ps.sgd(0.1), seed=3), batch(positions=positions)


@pytest.mark.parametrize("chunk_size", [None, 2, 5, 9])
def test_their_weighted_sum_is_the_gradient_dropout_included(job, chunk_size):
    model, state, examples = job
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where vmap has no rule, and runs a loop
        found = per_example_grads(model, objective, chunk_size=chunk_size)(state, examples)
    right = ps.grad_step(model, objective)(state, examples)
    assert [tuple(w.shape) for w in found.weight] == [(5,), (5,)]
    assert found.total[0].batch_size == (5,)
    assert all(torch.equal(w.sum(), total) for w, total in zip(found.weight, right.weight, strict=True))
    assert torch.allclose(flat(found.gradient()), flat(right.mean()), rtol=1e-12, atol=1e-14)


@given(seed=st.integers(0, 10**6), length=st.integers(1, 7), chunk=st.integers(1, 8))
def test_the_law_over_batches(seed, length, chunk):
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.4), nn.Linear(3, 3)).double()
    state = ps.init_state(model, ps.sgd(0.1), seed=seed)
    examples = batch(length)
    examples["counts"][0] = True  # the batch's weight is not zero
    found = per_example_grads(model, objective, chunk_size=chunk)(state, examples).gradient()
    right = flat(ps.grad_step(model, objective)(state, examples).mean())
    assert (flat(found) - right).norm() <= 1e-12 * right.norm()


def test_each_is_the_gradient_of_a_batch_of_one():
    model, examples = mlp(), batch()
    examples["counts"][:] = True
    state = ps.init_state(model, ps.sgd(0.1), seed=3)
    each = per_example_grads(model, objective)(state, examples).each()
    step = ps.grad_step(model, objective)
    for i in range(5):
        right = flat(step(state, examples[i : i + 1]).mean())
        assert torch.allclose(flat(each[i]), right, rtol=1e-12, atol=1e-14)


def test_norms_are_those_of_each(job):
    model, state, examples = job
    examples["counts"][:, ...] = True
    each = per_example_grads(model, objective)(state, examples).each()
    right = torch.stack([flat(each[i]).norm() for i in range(5)])
    for chunk_size in (None, 1, 3):
        norms = per_example_norms(model, objective, chunk_size=chunk_size)(state, examples)
        assert torch.allclose(norms, right, rtol=1e-12)


def test_an_example_without_weight_adds_nothing_and_has_no_gradient_of_its_own():
    model, examples = mlp(), batch()
    examples["counts"][:] = torch.tensor([True, False, True, True, False])
    state = ps.init_state(model, ps.sgd(0.1), seed=0)

    def masked(model, batch):
        return ps.mean(losses(model(batch["x"]), batch), where=batch["counts"])

    found = per_example_grads(model, masked)(state, examples)
    assert found.weight[0].tolist() == [1, 0, 1, 1, 0]
    assert not found.total[0]["0.weight"][1].any()
    assert torch.allclose(flat(found.gradient()), flat(ps.grad_step(model, masked)(state, examples).mean()), rtol=1e-12)
    norms = per_example_norms(model, masked)(state, examples)
    assert norms.isnan().tolist() == [False, True, False, False, True]
    assert found.each()["0.bias"].isnan().any(-1).tolist() == norms.isnan().tolist()


def test_the_mask_of_an_example_is_its_own_in_the_batch():
    """Without the index, every example would get the mask of the first."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).double()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    examples = batch(32)

    def outputs(model, batch):
        return ps.mean(model(batch["x"]).sum(-1))

    seen = per_example_grads(model, outputs)(state, examples).total[0]["0.bias"] / 2
    assert len({tuple(row.tolist()) for row in seen}) > 8
    assert set(seen.flatten().tolist()) == {0.0, 1.0}


def test_a_subset_and_any_nesting_of_batches():
    model = mlp()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    examples = batch()

    def pair(model, batch):
        inputs, (labels,) = batch
        return ps.mean(F.cross_entropy(model(inputs["x"]), labels, reduction="none"))

    found = per_example_grads(model, pair, trainable="2.*")(state, ({"x": examples["x"]}, [examples["y"]]))
    assert list(found.gradient().keys()) == ["2.weight", "2.bias"]
    right = ps.grad_step(model, pair, trainable="2.*")(state, ({"x": examples["x"]}, [examples["y"]]))
    assert torch.allclose(flat(found.gradient()), flat(right.mean()), rtol=1e-12)


def test_a_pytree():
    found = per_example_grads(mlp(), objective)(ps.init_state(mlp(), ps.sgd(0.1), seed=0), batch())
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, ExampleGradients(({"w": found.weight[0]},), found.weight))
    assert torch.equal(doubled.weight[0], 2 * found.weight[0])


def test_a_coupled_loss_breaks_the_law():
    """The mutant: a batch statistic inside the objective."""
    model, examples = mlp(), batch()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)

    def coupled(model, batch):
        logits = model(batch["x"])
        return ps.mean((logits - logits.mean(0)).square())

    found = per_example_grads(model, coupled)(state, examples).gradient()
    assert not torch.allclose(flat(found), flat(ps.grad_step(model, coupled)(state, examples).mean()), rtol=1e-3)


def test_batch_statistics_are_refused_unless_frozen():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(ValueError, match=r"'1' is a BatchNorm1d that does, .* give training=False"):
        per_example_grads(model, objective)
    with pytest.raises(ValueError, match="'1' is a BatchNorm1d"):
        per_example_norms(model.eval(), objective)  # a step puts it into training mode whole
    frozen = model.train()
    frozen[1].eval()
    without = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    with pytest.raises(ValueError, match="'1' is a BatchNorm1d"):
        per_example_grads(without, objective, training=False)
    state, examples = ps.init_state(frozen, ps.sgd(0.1), seed=0), batch()
    right = flat(ps.grad_step(frozen, objective)(state, examples).mean())
    found = per_example_grads(frozen, objective)(state, examples)
    assert torch.allclose(flat(found.gradient()), right, rtol=1e-12, atol=1e-14)


def test_bad_arguments():
    model, examples = mlp(), batch()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    with pytest.raises(ValueError, match="chunk_size must be an int of at least 1, got 0"):
        per_example_grads(model, objective, chunk_size=0)
    with pytest.raises(TypeError, match=r"chunk_size must be an int of at least 1, got 2\.0"):
        per_example_norms(model, objective, chunk_size=2.0)
    with pytest.raises(TypeError, match="a bare tensor, and what an example weighs in it nobody knows"):
        per_example_grads(model, lambda m, b: m(b["x"]).mean())(state, examples)
    assert per_example_norms(model, lambda m, b: m(b["x"]).mean())(state, examples).shape == (5,)
    with pytest.raises(ValueError, match="the leaves of batch must agree about dimension 0"):
        per_example_grads(model, objective)(state, {"x": torch.zeros(3, 4), "y": torch.zeros(2)})
    with pytest.raises(ValueError, match="batch must have at least one example, got none"):
        per_example_norms(model, objective)(state, examples[:0])
