"""Hyperparameters in the state: exchanged, differentiated by, vmapped over."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _rules import assert_close, assert_same_bits, context, gradients, leaves, moved, tree
from purestep import transforms
from purestep.optimizers.wrappers import inject_hyperparams

PARAMS = tree()


def put(state, **values):
    """The state with other hyperparameters."""
    kept = {**dict(state["hyperparams"].items()), **values}
    return TensorDict({**dict(state.items()), "hyperparams": TensorDict(kept)})


def test_a_number_in_the_state_has_the_bits_of_the_number():
    injected = inject_hyperparams(ps.adamw, rate=0.03, betas=(0.8, 0.95), weight_decay=0.1)
    for dtype in (torch.float32, torch.float64):
        grads, params = gradients(10, dtype=dtype), tree(dtype=dtype)
        got, state = moved(injected, grads, params)
        assert_same_bits(got, moved(ps.adamw(0.03, betas=(0.8, 0.95), weight_decay=0.1), grads, params)[0])
        assert state["hyperparams", "rate"].dtype == torch.float64
        assert {n: leaf.item() for n, leaf in leaves(state["hyperparams"]).items()} == {
            "rate/": 0.03,
            "betas/0/": 0.8,
            "betas/1/": 0.95,
            "weight_decay/": 0.1,
        }


def test_a_tensor_in_the_state_wins_over_the_number_and_over_the_schedule():
    falling = ps.schedules.cosine(peak=0.5, total_steps=10)
    right, _ = moved(ps.sgd(0.25), gradients(1), PARAMS)
    for instead in (0.1, falling):
        optimizer = inject_hyperparams(ps.sgd, rate=instead)
        state = optimizer.init(PARAMS)
        assert list(state["hyperparams"].keys()) == ([] if instead is falling else ["rate"])
        state = put(state, rate=torch.tensor(0.25, dtype=torch.float64))
        after, state = optimizer.update(gradients(1)[0], state, PARAMS, context(3))
        assert_same_bits(after, right[0])
        assert optimizer.hyperparams(state, context(3))["learning_rate"].item() == 0.25
    scheduled = inject_hyperparams(ps.sgd, rate=falling, momentum=0.9)
    assert_same_bits(
        moved(scheduled, gradients(5), PARAMS)[0], moved(ps.sgd(falling, momentum=0.9), gradients(5), PARAMS)[0]
    )


def test_one_of_two_betas_may_be_a_schedule():
    warm = ps.schedules.linear(0.5, 0.9, 10)
    optimizer = inject_hyperparams(ps.adamw, rate=0.1, betas=(warm, 0.95))
    got, state = moved(optimizer, gradients(3), PARAMS)
    assert_same_bits(got, moved(ps.adamw(0.1, betas=(warm, 0.95)), gradients(3), PARAMS)[0])
    assert list(state["hyperparams", "betas"].keys()) == ["1"]


def test_replicas_with_rates_and_betas_of_their_own():
    optimizer = inject_hyperparams(ps.adamw, rate=0.1, betas=(0.9, 0.99), weight_decay=0.1)
    rates, betas = [0.01, 0.1, 0.3], [0.5, 0.8, 0.9]

    steps = gradients(4)

    def run(rate, beta):
        params = PARAMS
        state = put(optimizer.init(params), rate=rate, betas=TensorDict({"0": beta, "1": beta}))
        for step, grads in enumerate(steps):
            params, state = optimizer.update(grads, state, params, context(step))
        return params

    together = torch.vmap(run)(*(torch.tensor(v, dtype=torch.float64) for v in (rates, betas)))
    for place, (rate, beta) in enumerate(zip(rates, betas, strict=True)):
        alone = moved(ps.adamw(rate, betas=(beta, beta), weight_decay=0.1), steps, PARAMS)[0][-1]
        assert_close({n: leaf[place] for n, leaf in together.items()}, dict(alone.items()))


def test_a_tensor_given_is_copied_and_differentiable():
    rate = torch.tensor(0.1, dtype=torch.float64)
    assert inject_hyperparams(ps.sgd, rate=rate).init(PARAMS)["hyperparams", "rate"].data_ptr() != rate.data_ptr()

    def outcome(rate):
        return sum(
            leaf.sum() for leaf in moved(inject_hyperparams(ps.sgd, rate=rate), gradients(2), PARAMS)[0][-1].values()
        )

    right = -sum(leaf.sum() for grads in gradients(2) for leaf in grads.values())
    assert torch.func.grad(outcome)(rate).item() == pytest.approx(right.item())


def test_a_transformation_takes_its_hyperparameters_from_the_state_too():
    rule = inject_hyperparams(ps.clip_by_global_norm, max_norm=1e9)
    assert isinstance(rule, ps.GradientTransformation)
    state = put(rule.init(PARAMS), max_norm=torch.tensor(0.5))
    after, _ = rule.update(PARAMS, state, PARAMS, context())
    assert transforms.global_norm(after).item() == pytest.approx(0.5)


def test_rates_of_each_layer_by_their_hypergradient():
    """Through five steps of descent on a quadratic, by the rate of each of two parameters."""
    target = TensorDict({"a": torch.tensor([1.0, -2.0]).double(), "b": torch.tensor(3.0).double()})
    names = list(target.keys())
    optimizer = transforms.partition({n: inject_hyperparams(ps.sgd, rate=0.1) for n in names}, lambda n, p: n)

    def loss(rates):
        params = target.apply(torch.zeros_like)
        state = optimizer.init(params)
        state = TensorDict({n: put(state[n], rate=rate) for n, rate in rates.items()})
        for step in range(5):
            params, state = optimizer.update(params.apply(lambda p, t: p - t, target), state, params, context(step))
        return sum((params[n] - target[n]).square().sum() for n in names)

    slopes = torch.func.grad(loss)({n: torch.tensor(0.1, dtype=torch.float64) for n in names})
    for name, leaf in target.items():  # the error shrinks by 1 - rate at each step
        assert slopes[name].item() == pytest.approx(-10 * 0.9**9 * leaf.square().sum().item())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: inject_hyperparams(3, rate=0.1), TypeError, "factory must be a function of the hyperparameters"),
        (lambda: inject_hyperparams(ps.sgd), ValueError, "inject_hyperparams needs at least one hyperparameter"),
        (lambda: inject_hyperparams(lambda rate: rate, rate=0.1), TypeError, "factory must return an Optimizer or a"),
        (
            lambda: inject_hyperparams(ps.sgd, rate=-0.1),
            ValueError,
            "rate must be a finite number at least 0, got -0.1",
        ),
        (lambda: inject_hyperparams(ps.sgd, rate="0.1"), TypeError, "rate must be a number, a 0-d tensor, a schedule"),
        (lambda: inject_hyperparams(ps.sgd, rate=torch.ones(2)), ValueError, "or a schedule, got shape (2,)"),
        (
            lambda: inject_hyperparams(ps.sgd, rate=0.1, nesterov=True),
            TypeError,
            "give it before, as in functools.partial(factory, nesterov=...)",
        ),
        (
            lambda: inject_hyperparams(ps.adamw, rate=0.1, eps=1e-6),
            TypeError,
            "a hyperparameter here cannot be a tensor, so the state cannot keep it: give it before, as in "
            "functools.partial(factory, eps=1e-6). The factory says: eps must be a finite number",
        ),
        (
            lambda: with_entry(rat=torch.tensor(0.1)),
            ValueError,
            "the state's hyperparams must be among 'rate', 'betas', got 'rat' (did you mean 'rate'?)",
        ),
        (
            lambda: with_entry(betas=torch.tensor(0.9)),
            TypeError,
            "the state's hyperparams['betas'] must be a TensorDict of '0', '1', got Tensor",
        ),
        (
            lambda: with_entry(betas=TensorDict({"2": torch.tensor(0.9)})),
            ValueError,
            "the state's hyperparams['betas'] must be among '0', '1', got '2'",
        ),
        (lambda: with_entry(rate=torch.ones(2)), ValueError, "rate must be a number, a 0-d tensor or a schedule, got"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def with_entry(**values):
    optimizer = inject_hyperparams(ps.adamw, rate=0.1, betas=(0.9, 0.99))
    return optimizer.update(PARAMS, put(optimizer.init(PARAMS), **values), PARAMS, context())
