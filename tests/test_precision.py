"""Half precision, and the loss scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import purestep as ps
from purestep.precision import autocast


def job(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = ps.sgd(0.1)

    def objective(model, batch):
        return ps.mean((model(batch["x"]).float() - batch["y"]).square())

    step = ps.train_step(model, objective, optimizer, **options)
    scale = options.get("loss_scale")
    state = ps.init_state(model, optimizer, seed=0, aux={"loss_scale": scale} if scale else None)
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    return model, step, state, {"x": x, "y": x.sum(1, keepdim=True)}


def test_bfloat16_is_torchs_autocast_with_float32_parameters():
    model, step, state, batch = job(precision="bfloat16")
    after, metrics = step(state, batch)
    assert all(leaf.dtype == torch.float32 for leaf in after.params.values())
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch["x"])
        assert out.dtype == torch.bfloat16
        loss = (out.float() - batch["y"]).square().mean()
    loss.backward()
    assert torch.equal(metrics["loss"].value(), loss.detach())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(after.params[name], (parameter - 0.1 * parameter.grad).detach(), rtol=0, atol=1e-6)


def test_float32_casts_nothing():
    *_, state, batch = job()
    _, step, _, _ = job(precision="float32")
    assert torch.equal(step(state, batch)[0].params["0.weight"], job()[1](state, batch)[0].params["0.weight"])


@pytest.mark.parametrize("options", [{}, {"accumulate": 3}, {"accumulate": 3, "weights": lambda b: torch.tensor(12.0)}])
def test_a_scale_that_is_a_power_of_two_rounds_nothing(options):
    _, plain, state, batch = job(**options)
    _, scaled, scaled_state, _ = job(loss_scale=ps.DynamicLossScale(), **options)
    one, _ = plain(state, batch)
    other, metrics = scaled(scaled_state, batch)
    for name, leaf in one.params.items():
        assert torch.equal(leaf, other.params[name]), name
    assert metrics["loss_scale"].item() == 2.0**16
    assert metrics["skipped"].item() == 0


def test_float16_trains_with_a_scale_and_would_vanish_without():
    """A loss of tiny gradients: in float16 they are zero below 6e-8, unless the backward pass is scaled."""

    def tiny(model, batch):
        return ps.mean(model(batch["x"]).float() * 1e-9)

    model, _, state, batch = job()
    exact = ps.grad_step(model, tiny)(state, batch).mean()
    vanished = ps.grad_step(model, tiny, precision="float16")(state, batch).mean()
    assert vanished["0.weight"].abs().max() == 0 < exact["0.weight"].abs().max()
    scale, optimizer = ps.DynamicLossScale(initial=2.0**24), ps.sgd(1e6)
    step = ps.train_step(model, tiny, optimizer, precision="float16", loss_scale=scale)
    after, _ = step(ps.init_state(model, optimizer, seed=0, aux={"loss_scale": scale}), batch)
    moved = (state.params["0.weight"] - after.params["0.weight"]) / 1e6
    torch.testing.assert_close(moved, exact["0.weight"], rtol=0.02, atol=1e-12)


def test_an_overflow_is_skipped_and_lowers_the_scale_until_it_fits():
    def large(model, batch):
        return ps.mean((model(batch["x"]) * 8).float())

    model, _, _, batch = job()
    scale, optimizer = ps.DynamicLossScale(initial=2.0**24), ps.sgd(0.1)
    step = ps.train_step(model, large, optimizer, precision="float16", loss_scale=scale)
    state = ps.init_state(model, optimizer, seed=0, aux={"loss_scale": scale})
    seen = []
    for _ in range(20):
        state, metrics = step(state, batch)
        seen.append((int(metrics["skipped"]), float(metrics["loss_scale"])))
    skipped = seen[-1][0]
    assert 5 < skipped < 20
    assert seen[-1] == (skipped, 2.0 ** (24 - skipped))
    assert (int(state.calls), int(state.step)) == (20, 20 - skipped)


@given(st.lists(st.booleans(), max_size=30))
def test_the_scale_grows_and_backs_off_within_its_bounds(finite):
    scale = ps.DynamicLossScale(initial=4.0, growth_interval=3, minimum=1.0, maximum=16.0)
    state, expected, run = scale.init(), 4.0, 0
    for good in finite:
        state = scale.update(state, torch.tensor(good))
        run = run + 1 if good else 0
        if not good:
            expected = max(1.0, expected / 2)
        elif run == 3:
            expected, run = min(16.0, expected * 2), 0
        assert (state["scale"].item(), state["finite_steps"].item()) == (expected, run)


WRONG = {
    "precision": (lambda: job(precision="float8"), ValueError, "precision must be one of"),
    "growth": (lambda: ps.DynamicLossScale(growth=1.0), ValueError, "growth must be a finite number above 1"),
    "backoff": (lambda: ps.DynamicLossScale(backoff=1.5), ValueError, "backoff"),
    "interval": (lambda: ps.DynamicLossScale(growth_interval=0), ValueError, "growth_interval"),
    "no power of two": (lambda: ps.DynamicLossScale(initial=1000.0), ValueError, "initial must be a power of two"),
    "below the minimum": (lambda: ps.DynamicLossScale(initial=0.5), ValueError, "from minimum=1.0 to maximum"),
    "no scale": (lambda: job(loss_scale=1024.0), TypeError, "loss_scale must be a ps.DynamicLossScale"),
    "aux that is no machine": (
        lambda: ps.init_state(nn.Linear(1, 1), ps.sgd(0.1), seed=0, aux={"loss_scale": 2.0}),
        TypeError,
        r"aux\['loss_scale'\] must have init",
    ),
    "aux named as the count": (
        lambda: ps.init_state(nn.Linear(1, 1), ps.sgd(0.1), seed=0, aux={"skipped": ps.DynamicLossScale()}),
        ValueError,
        "must not name 'skipped'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_message(case):
    make, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        make()


def test_autocast_is_for_half_precision_only():
    with autocast("float32", torch.device("cpu")):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("float16", torch.device("cpu")):
        assert torch.get_autocast_dtype("cpu") == torch.float16
