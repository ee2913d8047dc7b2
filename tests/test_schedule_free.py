"""What schedule-free optimizers evaluate with, and the scalars that they and Prodigy keep."""

from __future__ import annotations

import itertools

import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.optimizers.prodigy import prodigy
from purestep.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from purestep.updates import UpdateContext


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def objective(model, batch):
    return ps.mean((model(batch["x"]) - batch["y"]).square())


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 3, generator=generator)
    return TensorDict({"x": x, "y": x.sum(1, keepdim=True).sin()}, batch_size=[16])


def test_schedule_free_evaluates_at_its_average():
    """With frozen parameters, and behind a transformation."""
    network = model()
    optimizer = ps.chain(ps.clip_by_global_norm(1.0), schedule_free_adamw(0.05))
    trainable = ["2.*", "0.weight"]
    step = ps.train_step(network, objective, optimizer, trainable=trainable)
    state = ps.init_state(network, optimizer, seed=0, trainable=trainable)
    for seed in range(20):
        state, _ = step(state, batch(seed))
    averaged = optimizer.eval_params(state.params, state.opt_state)
    assert list(averaged.keys()) == list(state.params.keys())
    assert averaged["0.bias"] is state.params["0.bias"]
    assert not torch.allclose(averaged["2.weight"], state.params["2.weight"], rtol=1e-3)
    got = ps.eval_step(network, objective, optimizer=optimizer)(state, batch())["loss"].value()
    at_x = ps.eval_step(network, objective)(state.replace(params=averaged), batch())["loss"].value()
    at_y = ps.eval_step(network, objective)(state, batch())["loss"].value()
    assert got == at_x
    assert got != at_y


def test_a_schedule_free_momentum_may_change():
    """x is found from y and z by the momentum that made y."""
    momentum = ps.schedules.linear(start=0.5, end=0.95, steps=10)
    params = TensorDict({"w": torch.tensor([1.0, -2.0], dtype=torch.float64)})
    optimizer = schedule_free_sgd(0.1, momentum=momentum)
    state = optimizer.init(params)
    x = z = params["w"]
    for step in range(15):
        y = params["w"]
        params, state = optimizer.update(params, state, params, UpdateContext(torch.tensor(step), ps.random.key(0)))
        z = z - 0.1 * y
        x = x + (z - x) / (step + 1)
        assert torch.allclose(optimizer.eval_params(params, state)["w"], x, rtol=1e-13)
        beta = momentum(step)
        assert torch.allclose(params["w"], (1 - beta) * z + beta * x, rtol=1e-13)


def test_schedule_free_in_an_ensemble_of_rates():
    """Rates and momenta vmapped over replicas, evaluated at each one's average."""
    params = TensorDict({"w": torch.tensor([1.0, -2.0], dtype=torch.float64)})

    def after(rate, momentum):
        optimizer = schedule_free_adamw(rate, betas=(momentum, 0.9))
        p, state = params, optimizer.init(params)
        for step in range(4):
            p, state = optimizer.update(p, state, p, UpdateContext(torch.tensor(step), ps.random.key(0)))
        return optimizer.eval_params(p, state)["w"]

    rates, momenta = torch.tensor([0.1, 0.3]).double(), torch.tensor([0.9, 0.5]).double()
    together = torch.vmap(after)(rates, momenta)
    for i in range(2):
        assert torch.allclose(together[i], after(rates[i].item(), momenta[i].item()), rtol=1e-12)


def test_prodigy_reports_its_distance():
    network, optimizer = model(), prodigy()
    state = ps.init_state(network, optimizer, seed=0)
    step = ps.train_step(network, objective, optimizer)
    seen = []
    for _ in range(60):
        state, metrics = step(state, batch())
        seen.append(metrics["distance"].item())
        assert metrics["learning_rate"] == 1
    assert all(after >= before for before, after in itertools.pairwise(seen))
    assert seen[-1] > 1e3 * seen[0]


def test_scalars_that_add_up_are_wide():
    params = TensorDict({"w": torch.ones(2, dtype=torch.bfloat16)})
    for optimizer, names in (
        (schedule_free_sgd(0.1), ("momentum", "largest_rate", "weight_sum")),
        (prodigy(), ("distance", "inner_product")),
    ):
        state = optimizer.init(params)
        _, after = optimizer.update(params, state, params, UpdateContext(torch.tensor(0), ps.random.key(0)))
        for name in names:
            assert state[name].dtype == after[name].dtype == torch.float64
    assert prodigy().init(params)["distance"].item() == 1e-6
