"""Chains of updates, and hyperparameters of any kind."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from purestep import updates
from purestep.updates import UpdateContext


def tree(**values):
    return TensorDict({name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()})


def context(step=0):
    return UpdateContext(torch.tensor(step), ps.random.key(0))


def scale(factor):
    """A transformation that counts its calls."""

    def init(params):
        return tree(calls=0.0)

    def update(grads, state, params, context):
        return grads.apply(lambda g: g * factor), state.apply(lambda c: c + 1)

    return ps.GradientTransformation(init, update, lambda state, context: {"factor": torch.tensor(factor)})


def shift(amount):
    def update(grads, state, params, context):
        return grads.apply(lambda g: g + amount), state

    return ps.GradientTransformation(lambda params: TensorDict({}, batch_size=[]), update)


def test_parts_apply_from_left_to_right():
    grads, params = tree(w=[1.0, 2.0]), tree(w=[0.0, 0.0])
    for parts, expected in (((scale(10.0), shift(1.0)), [11, 21]), ((shift(1.0), scale(10.0)), [20, 30])):
        chained = ps.chain(*parts)
        assert isinstance(chained, ps.GradientTransformation)
        got, _ = chained.update(grads, chained.init(params), params, context())
        assert got["w"].tolist() == expected


def test_a_chain_that_an_optimizer_closes_is_an_optimizer():
    optimizer = ps.chain(scale(10.0), ps.sgd(0.1))
    assert isinstance(optimizer, ps.Optimizer)
    params = tree(w=[1.0])
    after, state = optimizer.update(tree(w=[2.0]), optimizer.init(params), params, context())
    assert after["w"].tolist() == pytest.approx([-1.0])
    assert state["0", "calls"].item() == 1


def test_each_part_has_its_own_entry_in_the_state():
    optimizer = ps.chain(scale(1.0), ps.clip_by_global_norm(1.0), ps.adamw(0.1))
    state = optimizer.init(tree(w=[1.0, 2.0]))
    assert list(state.keys()) == ["0", "1", "2"]
    assert set(state["2"].keys()) == {"exp_avg", "exp_avg_sq", "count"}


def test_chains_nest():
    inner = ps.chain(scale(2.0), shift(1.0))
    optimizer = ps.chain(inner, ps.sgd(1.0))
    params = tree(w=[0.0])
    after, state = optimizer.update(tree(w=[3.0]), optimizer.init(params), params, context())
    assert after["w"].tolist() == [-7]
    assert state["0", "0", "calls"].item() == 1


def test_what_parts_report_is_told_apart_by_their_place():
    optimizer = ps.chain(scale(2.0), scale(3.0), ps.sgd(0.5))
    params = tree(w=[0.0])
    used = optimizer.hyperparams(optimizer.init(params), context())
    assert {name: value.item() for name, value in used.items()} == {"factor": 2, "factor.1": 3, "learning_rate": 0.5}


def test_the_last_part_says_what_is_evaluated():
    averaging = ps.Optimizer(
        init=lambda params: params.clone(),
        update=lambda grads, state, params, context: (params, state),
        eval_params=lambda params, state: state,
    )
    optimizer = ps.chain(scale(1.0), averaging)
    params = tree(w=[1.0])
    state = optimizer.init(params)
    assert optimizer.eval_params(tree(w=[5.0]), state)["w"].tolist() == [1]
    assert ps.sgd(0.1).eval_params(params, state) is params


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ((), ValueError, "chain needs at least one part, got none"),
        ((ps.sgd(0.1), ps.clip_by_global_norm(1.0)), ValueError, "got one as part 0 of 2"),
        ((ps.sgd(0.1), ps.sgd(0.1)), ValueError, "an optimizer must be the last part of chain"),
        ((ps.clip_by_global_norm, ps.sgd(0.1)), TypeError, "part 0 of chain must be a GradientTransformation"),
        ((ps.clip_by_global_norm(1.0), None), TypeError, "part 1 of chain must be a GradientTransformation"),
    ],
)
def test_what_does_not_chain(parts, error, message):
    with pytest.raises(error) as caught:
        ps.chain(*parts)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-0.1, ValueError, "rate must be a finite number at least 0, got -0.1"),
        (float("nan"), ValueError, "got nan"),
        (float("inf"), ValueError, "got inf"),
        ("0.1", TypeError, "rate must be a number, a 0-d tensor or a schedule (step -> rate), got '0.1' of type str"),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
        (torch.ones(2), ValueError, "rate must be a number, a 0-d tensor or a schedule, got shape (2,)"),
    ],
)
@pytest.mark.parametrize("optimizer", [ps.sgd, ps.adamw])
def test_a_rate_that_is_none(optimizer, value, error, message):
    with pytest.raises(error) as caught:
        optimizer(value)
    assert message in str(caught.value)


def test_a_safe_root_has_the_roots_bits_and_a_derivative_at_zero():
    values = torch.tensor([0.0, -0.0, 1e-310, 2.0, float("inf"), float("nan")], dtype=torch.float64)
    given = values.clone().requires_grad_()
    root = updates.safe_sqrt(given)
    assert torch.equal(root.detach().view(torch.int64), values.sqrt().view(torch.int64))
    (slope,) = torch.autograd.grad(root[:4].sum(), given)
    assert slope[:2].tolist() == [0, 0]
    assert slope[3].item() == pytest.approx(0.5 / 2**0.5)
    assert torch.func.grad(lambda x: 3.0 * updates.safe_sqrt(x))(torch.zeros(())).item() == 0


def test_a_number_is_read_only_where_reading_costs_and_hides_nothing():
    assert updates.plain(0.5) == 0.5
    assert isinstance(updates.plain(torch.tensor(0.5)), float)
    assert isinstance(updates.plain(torch.tensor(0.5, requires_grad=True)), torch.Tensor)
    assert isinstance(updates.plain(torch.tensor(0.5, device="meta")), torch.Tensor)
    assert torch.vmap(lambda x: torch.as_tensor(updates.plain(x)) * 2)(torch.ones(2)).tolist() == [2, 2]


def test_a_scaled_sum_is_rounded_once_where_the_scale_is_a_number():
    tensor, direction = torch.tensor([1.0]), torch.tensor([1e-8])
    assert torch.equal(updates.add_scaled(tensor, direction, 3.0), tensor.add(direction, alpha=3.0))
    by_tensor = updates.add_scaled(tensor, direction, torch.tensor(3.0, dtype=torch.float64))
    assert by_tensor.dtype == torch.float32
