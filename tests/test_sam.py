"""Sharpness-aware minimisation: two gradients under the same draws, and one update."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation
from purestep.sam import sam_step

OPTIMIZER = ps.sgd(0.1, momentum=0.9)


def make_model(*, norm=False, dropout=False, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 6, bias=not norm),
        nn.BatchNorm1d(6) if norm else nn.Identity(),
        nn.Tanh(),
        nn.Dropout(0.5) if dropout else nn.Identity(),
        nn.Linear(6, 2),
    ).to(dtype)


def make_batch(length=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(length, 3, generator=generator, dtype=dtype)
    y = torch.randint(0, 2, (length,), generator=generator)
    return TensorDict({"x": x, "y": y}, batch_size=[length])


def objective(model, batch):
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


def by_hand(model, rho, eta=None, steps=3, rate=0.1, momentum=0.9):
    """The papers' algorithms on a module in place, as they are written for torch."""
    params, velocity = list(model.parameters()), [0.0 for _ in model.parameters()]
    losses = []
    for seed in range(steps):
        batch = make_batch(seed=seed)

        def gradients(batch=batch):
            loss = F.cross_entropy(model(batch["x"]), batch["y"])
            return loss.item(), torch.autograd.grad(loss, params)

        loss, first = gradients()
        scales = [torch.ones_like(p) if eta is None else p.detach().abs() + eta for p in params]
        norm = sum((t * g).square().sum() for t, g in zip(scales, first, strict=True)).sqrt()
        moves = [rho * t.square() * g / norm for t, g in zip(scales, first, strict=True)]
        with torch.no_grad():
            for p, e in zip(params, moves, strict=True):
                p += e
        nearby, second = gradients()
        with torch.no_grad():
            for i, (p, e, g) in enumerate(zip(params, moves, second, strict=True)):
                p -= e
                velocity[i] = momentum * velocity[i] + g
                p -= rate * velocity[i]
        losses.append((loss, nearby))
    return dict(model.named_parameters()), losses


@pytest.mark.parametrize("eta", [None, 0.01, 0.3], ids=["SAM", "ASAM", "ASAM with a large eta"])
def test_it_is_the_papers_algorithm(eta):
    options = {} if eta is None else {"adaptive": True, "eta": eta}
    model = make_model()
    step = sam_step(model, objective, OPTIMIZER, rho=0.2, **options)
    state, seen = ps.init_state(model, OPTIMIZER, seed=0), []
    for seed in range(3):
        state, metrics = step(state, make_batch(seed=seed))
        seen.append((metrics["loss"].value().item(), metrics["perturbed_loss"].value().item()))
    right, losses = by_hand(make_model(), 0.2, eta)
    for name, leaf in right.items():
        assert torch.allclose(state.params[name], leaf, rtol=1e-12, atol=1e-14), name
    for got, wanted in zip(seen, losses, strict=True):
        assert got == pytest.approx(wanted, rel=1e-12)
        assert got[1] > got[0]
    assert {"accuracy", "learning_rate"} <= {*metrics}


def test_without_a_radius_it_is_a_training_step():
    model = make_model(norm=True, dropout=True)
    state = ps.init_state(model, OPTIMIZER, seed=0)
    got, metrics = sam_step(model, objective, OPTIMIZER, rho=0.0)(state, make_batch())
    right, _ = ps.train_step(model, objective, OPTIMIZER)(state, make_batch())
    for part in ("params", "buffers"):
        for name, leaf in getattr(right, part).items():
            assert torch.equal(getattr(got, part)[name], leaf), name
    assert metrics["perturbed_loss"].value() == metrics["loss"].value()


def composed(model, rho, *, calls=0, buffers="first", at="here", accumulate=1):
    """The step out of grad_step and update_step; the options are what may be wrong with one."""
    gradient = ps.grad_step(model, objective, accumulate=accumulate)
    update = ps.update_step(OPTIMIZER)

    def step(state, batch):
        first = gradient(state, batch)
        grads = first.mean()
        norm = sum(g.square().sum() for g in grads.values()).sqrt()
        moved = TensorDict({name: p + rho * grads[name] / norm for name, p in state.params.items()})
        there = state.replace(params=moved, calls=state.calls + calls)
        if buffers == "twice":
            there = there.replace(buffers=first.buffers)
        second = gradient(there, batch)
        after = first.buffers if buffers == "first" else second.buffers
        metrics = {**first.metrics, "perturbed_loss": second.metrics["loss"]}
        start = state if at == "here" else state.replace(params=moved)
        return update(start, ps.Gradient(second.total, second.weight, after, metrics))

    return step


def test_both_gradients_are_under_one_mask_and_buffers_are_the_first_passes():
    model = make_model(norm=True, dropout=True)
    state = laws.make_train_state(model, OPTIMIZER, seed=0, updates=2)
    step = sam_step(model, objective, OPTIMIZER, rho=0.2)
    laws.check_same(step, composed(model, 0.2), state, make_batch(), tolerance=1e-12, steps=3)
    after, _ = step(state, make_batch())
    _, buffers, _ = ps.loss_step(model, objective)(state, make_batch())
    assert all(torch.equal(after.buffers[name], leaf) for name, leaf in buffers.items())
    assert after.buffers["1.num_batches_tracked"] == state.buffers["1.num_batches_tracked"] + 1


@pytest.mark.parametrize(
    ("mutation", "says"),
    [
        ({"calls": 1}, "params"),
        ({"buffers": "second"}, "buffers"),
        ({"buffers": "twice"}, "buffers"),
        ({"at": "there"}, "params"),
    ],
    ids=["other masks in the second pass", "buffers of the second pass", "buffers updated twice", "updated there"],
)
def test_the_comparison_catches(mutation, says):
    model = make_model(norm=True, dropout=True)
    state = laws.make_train_state(model, OPTIMIZER, seed=0, updates=2)
    step = sam_step(model, objective, OPTIMIZER, rho=0.2)
    with pytest.raises(LawViolation, match=says):
        laws.check_same(step, composed(model, 0.2, **mutation), state, make_batch(), tolerance=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_it_keeps_the_laws_of_steps(adaptive):
    model = make_model(dropout=True)
    state = laws.make_train_state(model, OPTIMIZER, seed=0, updates=2)

    def make(count):
        return sam_step(model, objective, OPTIMIZER, rho=0.2, adaptive=adaptive, accumulate=count)

    laws.check_step(make(1), state, make_batch(), model=model, make=make, tolerance=1e-12, skip=("own streams",))


@pytest.mark.parametrize(
    "options",
    [
        {"microbatch": 2},
        {"accumulate": 3, "weights": lambda batch: torch.tensor(float(len(batch["y"])))},
        {"accumulate": 2, "loop": "scan"},
    ],
)
def test_however_a_batch_is_cut_the_step_is_the_whole_batchs(options):
    model = make_model(dropout=True)
    state = ps.init_state(model, OPTIMIZER, seed=0)
    whole = sam_step(model, objective, OPTIMIZER, rho=0.2)
    laws.check_same(whole, sam_step(model, objective, OPTIMIZER, rho=0.2, **options), state, make_batch(),
                    tolerance=1e-12, steps=2)  # fmt: skip


def test_the_law_of_splits_catches_a_perturbation_of_each_micro_batch():
    """What is called m-SAM: each micro-batch perturbed by its own gradient."""
    model = make_model()

    def make(count):
        gradient, update = ps.grad_step(model, objective), ps.update_step(OPTIMIZER)

        def step(state, batch):
            seconds = []
            for part in torch.chunk(batch, count):
                grads = gradient(state, part).mean()
                norm = sum(g.square().sum() for g in grads.values()).sqrt()
                moved = TensorDict({k: p + 0.2 * grads[k] / norm for k, p in state.params.items()})
                seconds.append(gradient(state.replace(params=moved), part))
            return update(state, ps.merge(*seconds) if count > 1 else seconds[0])

        return step

    with pytest.raises(LawViolation, match="law 2"):
        laws.check_accumulation(make, ps.init_state(model, OPTIMIZER, seed=0), make_batch(), accumulate=(2,))


def test_frozen_parameters_are_not_perturbed():
    model = make_model()
    step = sam_step(model, objective, OPTIMIZER, rho=0.2, trainable="4.*")
    state = ps.init_state(model, OPTIMIZER, seed=0, trainable="4.*")
    after, metrics = step(state, make_batch())
    head = make_model()
    for name, leaf in head.named_parameters():
        leaf.requires_grad_(name.startswith("4."))
    loss = F.cross_entropy(head(make_batch()["x"]), make_batch()["y"])
    grads = torch.autograd.grad(loss, list(head[4].parameters()))
    norm = sum(g.square().sum() for g in grads).sqrt()
    with torch.no_grad():
        for p, g in zip(head[4].parameters(), grads, strict=True):
            p += 0.2 * g / norm
    assert metrics["perturbed_loss"].value().item() == pytest.approx(
        F.cross_entropy(head(make_batch()["x"]), make_batch()["y"]).item(), rel=1e-12
    )
    assert all(after.params[name] is state.params[name] for name in ("0.weight", "0.bias"))


def test_a_radius_is_a_number_a_tensor_or_a_schedule_alike():
    model = make_model()
    states = []
    for make in (float, lambda v: torch.tensor(v, dtype=torch.float64), ps.schedules.constant):
        step = sam_step(model, objective, OPTIMIZER, rho=make(0.2), adaptive=True, eta=make(0.1))
        states.append(step(ps.init_state(model, OPTIMIZER, seed=0), make_batch())[0])
    for name, leaf in states[0].params.items():
        assert torch.equal(leaf, states[1].params[name])
        assert torch.equal(leaf, states[2].params[name])
    growing = sam_step(model, objective, OPTIMIZER, rho=ps.schedules.linear(start=0.0, end=0.2, steps=1))
    state, metrics = growing(ps.init_state(model, OPTIMIZER, seed=0), make_batch())
    assert metrics["perturbed_loss"].value() == metrics["loss"].value()
    assert growing(state, make_batch())[1]["perturbed_loss"].value() > metrics["loss"].value()


def test_a_loss_scale_changes_nothing():
    model = make_model(dtype=torch.float32)
    batch, scale = make_batch(dtype=torch.float32), ps.DynamicLossScale()
    plain = ps.init_state(model, OPTIMIZER, seed=0)
    scaled = ps.init_state(model, OPTIMIZER, seed=0, aux={"loss_scale": scale})
    right, _ = sam_step(model, objective, OPTIMIZER, rho=0.2)(plain, batch)
    got, metrics = sam_step(model, objective, OPTIMIZER, rho=0.2, loss_scale=scale)(scaled, batch)
    assert all(torch.equal(got.params[name], leaf) for name, leaf in right.params.items())
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("adaptive", [False, True])
def test_derivatives_are_what_differences_give(adaptive):
    model = make_model()
    start, step_batch = ps.init_state(model, OPTIMIZER, seed=0), make_batch()
    final = ps.loss_step(model, objective, training=False)
    direction = {k: torch.cos(7 * p) for k, p in start.params.items()}

    def outcome(rho, eta, move):
        step = sam_step(model, objective, OPTIMIZER, rho=rho, adaptive=adaptive, eta=eta)
        params = TensorDict({k: p + move * direction[k] for k, p in start.params.items()})
        state = start.replace(params=params)
        for _ in range(2):
            state, _ = step(state, step_batch)
        return final(state, step_batch)[0].value()

    numbers = [torch.tensor(v, dtype=torch.float64) for v in (0.3, 0.1, 0.0)]
    slopes = torch.func.grad(outcome, argnums=(0, 1, 2))(*numbers)
    for i, slope in enumerate(slopes):
        ends = [outcome(*[v + s * 1e-5 * (j == i) for j, v in enumerate(numbers)]).item() for s in (1, -1)]
        assert slope.item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-9)
        assert (slope == 0) == (i == 1 and not adaptive)


@pytest.mark.parametrize("adaptive", [False, True])
def test_where_the_gradient_is_zero_nothing_is_perturbed(adaptive):
    model = make_model()

    def nothing(model, batch):
        return ps.mean(0.0 * model(batch["x"]))

    state = ps.init_state(model, OPTIMIZER, seed=0)

    def outcome(rho):
        step = sam_step(model, nothing, OPTIMIZER, rho=rho, adaptive=adaptive)
        after, _ = step(state, make_batch())
        return sum(p.sum() for p in after.params.values())

    value, slope = torch.func.grad_and_value(outcome)(torch.tensor(0.3, dtype=torch.float64))[::-1]
    assert slope == 0
    assert value.item() == pytest.approx(sum(p.sum() for p in state.params.values()).item(), rel=1e-14)


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_norm_that_overflows_is_not_taken_for_a_radius_of_zero(policy):
    """In float32 the norm is infinite where the gradient is not; e would be zero, and the step a plain one."""
    model = nn.Linear(1, 1, bias=False)
    step = sam_step(model, lambda m, x: ps.mean(1e20 * m(x)), ps.sgd(1e-22), rho=0.1, on_nonfinite=policy)
    state, x = ps.init_state(model, ps.sgd(1e-22), seed=0), torch.ones(2, 1)
    if policy == "raise":
        with pytest.raises(ps.NonFiniteError):
            step(state, x)
    else:
        after, metrics = step(state, x)
        assert torch.equal(after.params["weight"], state.params["weight"])
        assert (after.step, after.calls, metrics["skipped"]) == (0, 1, 1)


def test_a_compiled_step_is_the_eager_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2)).double()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    step = sam_step(model, objective, OPTIMIZER, rho=0.2, adaptive=True)
    others = {"donated": ps.compile(step, donate=True)}
    laws.check_execution_invariant(step, state, make_batch(), others=others, steps=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rho": -0.1}, ValueError, "rho must be a finite number at least 0, got -0.1"),
        ({"rho": "wide"}, TypeError, "rho must be a number, a 0-d tensor or a schedule"),
        ({"eta": -1.0}, ValueError, "eta must be a finite number at least 0, got -1.0"),
        ({"adaptive": 1}, TypeError, "adaptive must be True or False, got 1"),
        ({"accumulate": 0}, ValueError, "accumulate must be"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be one of 'raise', 'skip', got 'ignore'"),
        ({"trainable": "5.*"}, ValueError, "names no parameter"),
        ({"precision": "float8"}, ValueError, "precision must be"),
    ],
)
def test_arguments_out_of_range(options, error, message):
    with pytest.raises(error) as caught:
        sam_step(make_model(), objective, OPTIMIZER, **options)
    assert message in str(caught.value)


def test_no_optimizer_and_a_metric_of_the_same_name_are_refused():
    model = make_model()
    with pytest.raises(TypeError, match="optimizer must be an Optimizer"):
        sam_step(model, objective, ps.clip_by_global_norm(1.0))
    step = sam_step(model, lambda m, b: (objective(m, b)[0], {"perturbed_loss": ps.mean(b["x"])}), OPTIMIZER)
    with pytest.raises(ValueError, match="a metric of the objective is named 'perturbed_loss'"):
        step(ps.init_state(model, OPTIMIZER, seed=0), make_batch())
