"""Undivided gradients: their sums, their merging, and the two engines that take them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.gradients import Gradient, gradients_of, totals, value


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def batch(length=6):
    generator = torch.Generator().manual_seed(length)
    return {
        "x": torch.randn(length, 3, generator=generator, dtype=torch.float64),
        "y": torch.randint(0, 2, (length,), generator=generator),
        "where": torch.rand(length, generator=generator) < 0.5,
    }


def one_term(model, batch):
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def two_terms(model, batch):
    logits = model(batch["x"])
    values = F.cross_entropy(logits, batch["y"], reduction="none")
    return ps.mean(values, where=batch["where"]) + 0.3 * ps.mean(logits.square()), {"logit": ps.mean(logits)}


def state_of(model):
    return ps.init_state(model, ps.sgd(0.1), seed=0)


def by_backward(model, objective, batch):
    result = objective(model, batch)
    loss = result[0] if isinstance(result, tuple) else result
    model.zero_grad()
    loss.value().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal_gradients(got, right):
    assert list(got.keys()) == list(right.keys())
    for name, leaf in got.items():
        assert torch.allclose(leaf, right[name], rtol=1e-12, atol=1e-15), name


@pytest.mark.parametrize(("objective", "terms"), [(one_term, 1), (two_terms, 2)])
def test_one_sum_and_one_weight_for_each_term(objective, terms):
    model = make_model()
    gradient = ps.grad_step(model, objective)(state_of(model), batch())
    assert len(gradient.total) == len(gradient.weight) == terms
    assert all(isinstance(total, TensorDict) for total in gradient.total)
    assert_equal_gradients(gradient.mean(), by_backward(model, objective, batch()))


def test_the_sum_is_not_divided():
    model = make_model()
    gradient = ps.grad_step(model, one_term)(state_of(model), batch())
    assert gradient.weight[0].item() == 6
    right = by_backward(model, one_term, batch())
    assert torch.allclose(gradient.total[0]["0.weight"], 6 * right["0.weight"])


def test_merging_adds_and_keeps_the_later_buffers():
    model = nn.Sequential(make_model(), nn.BatchNorm1d(2).double())
    step = ps.grad_step(model, two_terms)
    state = state_of(model)
    first, second = step(state, batch(5)), step(state, batch(3))
    merged = ps.merge(first, second)
    assert torch.equal(merged.weight[1], first.weight[1] + second.weight[1])
    assert torch.equal(merged.total[1]["1.bias"], first.total[1]["1.bias"] + second.total[1]["1.bias"])
    assert torch.equal(merged.buffers["1.running_mean"], second.buffers["1.running_mean"])
    assert merged.metrics["logit"].weight.item() == 16
    assert merged.metrics["loss"].terms[1].weight.item() == 16


def test_a_bare_loss_has_a_gradient_that_merges_with_nothing():
    def bare(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    model = make_model()
    gradient = ps.grad_step(model, bare)(state_of(model), batch())
    assert gradient.weight == ()
    assert_equal_gradients(gradient.mean(), by_backward(model, lambda m, b: ps.once(bare(m, b)), batch()))
    with pytest.raises(TypeError, match="whose denominator nobody knows"):
        ps.merge(gradient, gradient)


def test_what_does_not_merge():
    model = make_model()
    state = state_of(model)
    one, two = ps.grad_step(model, one_term)(state, batch()), ps.grad_step(model, two_terms)(state, batch())
    with pytest.raises(ValueError, match="losses of 1 and 2 terms cannot be merged"):
        one.merge(two)
    with pytest.raises(TypeError, match="other must be a Gradient to be merged with one, got Mean"):
        one.merge(one.metrics["loss"])


def test_a_gradient_is_a_pytree():
    model = make_model()
    gradient = ps.grad_step(model, two_terms)(state_of(model), batch())
    leaves, spec = pytree.tree_flatten(gradient)
    again = pytree.tree_unflatten([leaf * 2 for leaf in leaves], spec)
    assert isinstance(again, Gradient)
    assert torch.equal(again.total[0]["0.bias"], 2 * gradient.total[0]["0.bias"])
    assert torch.equal(again.mean()["0.bias"], gradient.mean()["0.bias"])


@pytest.mark.parametrize("objective", [one_term, two_terms])
@pytest.mark.parametrize("outputs", [totals, value])
def test_both_engines_give_the_same(objective, outputs):
    params = TensorDict({name: p.detach() for name, p in make_model().named_parameters()})
    call = _Call(make_model(), objective, batch())

    def function(values):
        result = torch.func.functional_call(call, {f"model.{k}": v for k, v in values.items()}, ())
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        return loss, metrics

    eager, loss, _ = gradients_of(function, params, outputs=outputs)
    # Inside a functorch transform the other engine is taken: vmap over a copy of one.
    stacked = TensorDict({name: leaf[None] for name, leaf in params.items()}, batch_size=[1])

    def inner(tree):
        trees, inner_loss, _ = gradients_of(function, tree, outputs=outputs)
        return tuple(dict(t.items()) for t in trees), inner_loss.value()

    by_func, by_func_loss = torch.vmap(inner)(stacked)
    assert len(eager) == len(by_func) == (1 if outputs is value or objective is one_term else 2)
    for first, second in zip(eager, by_func, strict=True):
        for name, leaf in first.items():
            assert torch.allclose(leaf, second[name][0], rtol=1e-12, atol=1e-15), name
    assert torch.allclose(loss.value(), by_func_loss[0])
    assert not loss.value().requires_grad


class _Call(nn.Module):
    def __init__(self, model, objective, batch):
        super().__init__()
        self.model, self.objective, self.batch = model, objective, batch

    def forward(self):
        return self.objective(self.model, self.batch)


def test_a_gradient_can_be_differentiated():
    """A Hessian-vector product through `grad_step`, against finite differences."""
    model = make_model()
    state = state_of(model)
    step = ps.grad_step(model, one_term)
    direction = state.params.apply(lambda leaf: torch.ones_like(leaf) * 0.3)

    def moved(size):
        params = TensorDict({name: leaf + size * direction[name] for name, leaf in state.params.items()})
        gradient = step(state.replace(params=params), batch()).mean()
        return torch.stack([leaf.sum() for leaf in gradient.values()]).sum()

    slope = torch.func.grad(moved)(torch.zeros((), dtype=torch.float64))
    h = 1e-5
    difference = (moved(torch.tensor(h)) - moved(torch.tensor(-h))) / (2 * h)
    assert slope.item() == pytest.approx(difference.item(), rel=1e-6)
    leaf = state.params["0.weight"].clone().requires_grad_()
    params = state.params.clone().set("0.weight", leaf)
    outcome = step(state.replace(params=params), batch()).mean()["0.weight"].sum()
    (second,) = torch.autograd.grad(outcome, leaf)
    assert torch.isfinite(second).all()
    assert second.abs().max() > 0


def test_parameters_that_the_loss_does_not_reach_get_zeros():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2)}).double()

    def objective(model, batch):
        return ps.mean(model["used"](batch["x"]).square())

    gradient = ps.grad_step(model, objective)(state_of(model), batch()).mean()
    assert torch.equal(gradient["unused.weight"], torch.zeros(2, 3, dtype=torch.float64))
    assert gradient["used.weight"].any()


def test_a_term_without_parameters_adds_nothing_to_the_gradient():
    def objective(model, batch):
        return one_term(model, batch) + ps.mean(batch["x"])

    model = make_model()
    gradient = ps.grad_step(model, objective)(state_of(model), batch())
    assert_equal_gradients(gradient.mean(), by_backward(model, one_term, batch()))


def test_a_loss_that_depends_on_no_parameter_is_refused():
    model = make_model()
    step = ps.grad_step(model, lambda model, batch: ps.mean(model(batch["x"]).detach()))
    with pytest.raises(ValueError, match="the loss does not depend on any trainable parameter"):
        step(state_of(model), batch())


def test_no_grad_around_a_step_changes_nothing():
    model = make_model()
    right = ps.grad_step(model, one_term)(state_of(model), batch()).mean()
    with torch.no_grad():
        got = ps.grad_step(model, one_term)(state_of(model), batch()).mean()
    for name, leaf in right.items():
        assert torch.equal(got[name], leaf)


def test_a_derivative_by_the_batch_reaches_through_the_step():
    """Dataset distillation by plain autograd: the batch asks for a derivative, the parameters do not."""
    model = make_model()
    given = batch()
    given["x"].requires_grad_()
    after, _ = ps.train_step(model, lambda m, b: ps.mean(m(b["x"]).square()), ps.sgd(0.1))(state_of(model), given)
    outer = after.params.values().__iter__().__next__().sum()
    (slope,) = torch.autograd.grad(outer, given["x"])
    assert slope.abs().sum() > 0


def test_inference_mode_is_named():
    model = make_model()
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch.inference_mode\(\) forbids them"):
        ps.train_step(model, lambda m, b: ps.mean(m(b["x"])), ps.sgd(0.1))(state_of(model), batch())
