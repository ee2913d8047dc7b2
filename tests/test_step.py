"""The four steps, and that a training step is the composition of two of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.laws._compare import same_bits
from purestep.schedules import linear


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()


def make_batch(length=6):
    generator = torch.Generator().manual_seed(0)
    return TensorDict(
        {
            "x": torch.randn(length, 3, generator=generator, dtype=torch.float64),
            "y": torch.randint(0, 2, (length,), generator=generator),
        },
        batch_size=[length],
    )


def classify(model, batch):
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


OPTIMIZER = ps.chain(ps.clip_by_global_norm(0.3), ps.adamw(0.05))


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def state(model):
    return ps.init_state(model, OPTIMIZER, seed=0)


def assert_same_states(first, second):
    for part in ("params", "buffers", "opt_state"):
        one, two = getattr(first, part), getattr(second, part)
        for name in one.keys(include_nested=True, leaves_only=True):
            assert same_bits(one[name], two[name]), (part, name)
    assert (first.step.item(), first.calls.item()) == (second.step.item(), second.calls.item())


@pytest.mark.parametrize("accumulate", [2, 3])
def test_a_training_step_is_the_update_after_the_gradient(model, state, accumulate):
    train = ps.train_step(model, classify, OPTIMIZER, accumulate=accumulate)
    gradient, update = ps.grad_step(model, classify, accumulate=accumulate), ps.update_step(OPTIMIZER)
    expected, expected_metrics = update(state, gradient(state, make_batch()))
    got, metrics = train(state, make_batch())
    assert_same_states(got, expected)
    assert {k: v.item() for k, v in ps.values(metrics).items()} == {
        k: v.item() for k, v in ps.values(expected_metrics).items()
    }


def test_an_undivided_batch_is_the_composition_to_rounding(model, state):
    """Nothing will be merged with it, so `train_step` divides before it differentiates."""
    got, _ = ps.train_step(model, classify, OPTIMIZER)(state, make_batch())
    expected, _ = ps.update_step(OPTIMIZER)(state, ps.grad_step(model, classify)(state, make_batch()))
    for name, leaf in expected.opt_state["1", "exp_avg"].items():
        assert torch.allclose(got.opt_state["1", "exp_avg", name], leaf, rtol=1e-9, atol=1e-16), name


def test_what_a_step_counts(model, state):
    step = ps.train_step(model, classify, OPTIMIZER, accumulate=2)
    for count in (1, 2, 3):
        state, _ = step(state, make_batch())
        assert (state.step.item(), state.calls.item(), state.opt_state["1", "count"].item()) == (count, count, count)
    assert state.step.dtype == torch.int64
    assert torch.equal(state.key, ps.random.key(0))


def test_the_metrics_are_the_objectives_the_loss_and_what_was_used(model, state):
    _, metrics = ps.train_step(model, classify, OPTIMIZER)(state, make_batch())
    assert set(metrics) == {"loss", "accuracy", "grad_norm", "learning_rate"}
    assert isinstance(metrics["accuracy"], ps.Mean)
    assert metrics["learning_rate"].shape == ()
    assert metrics["learning_rate"].item() == pytest.approx(0.05)
    assert set(ps.eval_step(model, classify)(state, make_batch())) == {"loss", "accuracy"}
    _, _, plain = ps.loss_step(model, classify)(state, make_batch())
    assert set(plain) == {"accuracy"}


def test_metrics_of_several_steps_pool(model, state):
    step = ps.eval_step(model, classify)
    batch = make_batch(7)
    whole = step(state, batch)
    pooled = ps.merge(step(state, batch[:2]), step(state, batch[2:]))
    for name, value in ps.values(whole).items():
        assert ps.values(pooled)[name].item() == pytest.approx(value.item(), rel=1e-12), name


def test_the_rate_is_the_schedules_at_the_step(model):
    optimizer = ps.sgd(linear(start=0.4, end=0.0, steps=4))
    step = ps.train_step(model, classify, optimizer)
    state = ps.init_state(model, optimizer, seed=0)
    seen = []
    for _ in range(5):
        state, metrics = step(state, make_batch())
        seen.append(metrics["learning_rate"].item())
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


def test_buffers_come_back_from_each_micro_batch(model, state):
    after, _ = ps.train_step(model, classify, OPTIMIZER, accumulate=3)(state, make_batch())
    assert after.buffers["1.num_batches_tracked"].item() == 3
    assert state.buffers["1.num_batches_tracked"].item() == 0
    reference = make_model()
    for part in make_batch().split(2):
        reference(part["x"])
    assert torch.allclose(after.buffers["1.running_mean"], reference[1].running_mean, atol=1e-14)


def test_evaluation_is_in_evaluation_mode_and_returns_no_state(model, state):
    step = ps.eval_step(model, classify)
    first, second = step(state, make_batch()), step(state, make_batch())
    model.eval()
    expected, _ = classify(model, make_batch())
    assert first["loss"].value().item() == pytest.approx(expected.value().item(), rel=1e-12)
    assert first["loss"].value().item() == second["loss"].value().item()
    assert not first["loss"].total.requires_grad


def test_evaluation_uses_the_parameters_the_optimizer_evaluates_with(model):
    halved = ps.Optimizer(
        init=lambda params: TensorDict({}, batch_size=[]),
        update=lambda grads, state, params, context: (params, state),
        eval_params=lambda params, state: params.apply(lambda leaf: leaf / 2),
    )
    state = ps.init_state(model, halved, seed=0)
    got = ps.eval_step(model, classify, optimizer=halved)(state, make_batch())
    by_hand = state.replace(params=state.params.apply(lambda leaf: leaf / 2))
    expected = ps.eval_step(model, classify)(by_hand, make_batch())
    assert got["loss"].value().item() == expected["loss"].value().item()


def test_a_loss_of_several_terms_is_trained_like_their_sum(model):
    def objective(model, batch):
        logits = model(batch["x"])
        return ps.mean(F.cross_entropy(logits, batch["y"], reduction="none")) + 0.5 * ps.mean(logits.square())

    optimizer = ps.sgd(0.1)
    state = ps.init_state(model, optimizer, seed=0)
    got, metrics = ps.train_step(model, objective, optimizer)(state, make_batch())
    reference = make_model()
    value = objective(reference, make_batch()).value()
    value.backward()
    torch.optim.SGD(reference.parameters(), 0.1).step()
    assert metrics["loss"].value().item() == pytest.approx(value.item(), rel=1e-12)
    for name, parameter in reference.named_parameters():
        assert torch.allclose(got.params[name], parameter, atol=1e-14), name


def test_only_what_is_trainable_changes_and_has_optimizer_state(model):
    state = ps.init_state(model, OPTIMIZER, seed=0, trainable="3.*")
    after, _ = ps.train_step(model, classify, OPTIMIZER, trainable="3.*")(state, make_batch())
    assert set(after.opt_state["1", "exp_avg"].keys()) == {"3.weight", "3.bias"}
    for name, leaf in after.params.items():
        assert torch.equal(leaf, state.params[name]) != name.startswith("3."), name
    assert list(after.params.keys()) == list(state.params.keys())


def test_requires_grad_says_what_is_trained_by_default(model):
    model[0].requires_grad_(False)
    state = ps.init_state(model, OPTIMIZER, seed=0)
    after, _ = ps.train_step(model, classify, OPTIMIZER)(state, make_batch())
    assert torch.equal(after.params["0.weight"], state.params["0.weight"])
    assert not torch.equal(after.params["3.weight"], state.params["3.weight"])


def test_several_models_are_one_module_dict():
    """Distillation: a frozen teacher and a student that learns its logits."""
    torch.manual_seed(1)
    models = nn.ModuleDict({"teacher": nn.Linear(3, 2), "student": nn.Linear(3, 2)}).double()

    def distil(models, batch):
        target = models["teacher"](batch["x"]).softmax(-1)
        return ps.mean(F.cross_entropy(models["student"](batch["x"]), target, reduction="none"))

    optimizer = ps.sgd(1.0)
    state = first = ps.init_state(models, optimizer, seed=0, trainable="student.*")
    step = ps.train_step(models, distil, optimizer, trainable="student.*")
    losses = []
    for _ in range(200):
        state, metrics = step(state, make_batch())
        losses.append(metrics["loss"].value().item())
    assert torch.equal(state.params["teacher.weight"], first.params["teacher.weight"])
    target = torch.softmax(make_batch()["x"] @ first.params["teacher.weight"].T + first.params["teacher.bias"], -1)
    entropy = -(target * target.log()).sum(-1).mean().item()
    assert losses[0] > entropy + 0.01
    assert losses[-1] == pytest.approx(entropy, abs=1e-4)


def test_two_steps_alternate_on_one_state():
    """A GAN: two steps, each with its own trainable half, optimizer state side by side."""
    torch.manual_seed(1)
    models = nn.ModuleDict({"generator": nn.Linear(3, 3), "critic": nn.Linear(3, 1)}).double()

    def criticise(models, batch):
        fake = models["generator"](batch["x"]).detach()
        return ps.mean(F.softplus(-models["critic"](batch["x"]))) + ps.mean(F.softplus(models["critic"](fake)))

    def generate(models, batch):
        return ps.mean(F.softplus(-models["critic"](models["generator"](batch["x"]))))

    optimizer = ps.adamw(0.01)
    state = ps.init_state(models, optimizer, seed=0, trainable="critic.*")
    halves = {"critic": state.opt_state}
    halves["generator"] = ps.init_state(models, optimizer, seed=0, trainable="generator.*").opt_state
    steps = {
        "critic": ps.train_step(models, criticise, optimizer, trainable="critic.*"),
        "generator": ps.train_step(models, generate, optimizer, trainable="generator.*"),
    }
    for name, other in (("critic", "generator"), ("generator", "critic")):
        before = state
        state, _ = steps[name](state.replace(opt_state=halves[name]), make_batch())
        halves[name] = state.opt_state
        assert not torch.equal(state.params[f"{name}.weight"], before.params[f"{name}.weight"])
        assert torch.equal(state.params[f"{other}.weight"], before.params[f"{other}.weight"])
    assert state.step.item() == 2


def test_an_objective_may_take_the_context(model, state):
    seen = {}

    def noisy(model, batch, context):
        seen.update(step=context.step.item(), training=context.training, key=context.key.tolist())
        noise = ps.random.normal(context.key, batch["x"].shape, dtype=torch.float64)
        return ps.mean(model(batch["x"] + 0.1 * noise).square())

    step = ps.train_step(model, noisy, OPTIMIZER)
    after, metrics = step(state, make_batch())
    assert (seen["step"], seen["training"]) == (0, True)
    first_key = seen["key"]
    _, again = step(state, make_batch())
    assert again["loss"].value().item() == metrics["loss"].value().item()
    step(after, make_batch())
    assert (seen["step"], seen["key"] == first_key) == (1, False)
    ps.eval_step(model, noisy)(state, make_batch())
    assert seen["training"] is False
    assert seen["key"] == first_key


def test_an_objective_with_a_default_that_is_no_context_keeps_it(model, state):
    def objective(model, batch, smoothing=0.1):
        values = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none", label_smoothing=smoothing)
        return ps.mean(values)

    loss, _, _ = ps.loss_step(model, objective)(state, make_batch())
    expected = objective(make_model(), make_batch())
    assert loss.value().item() == pytest.approx(expected.value().item(), rel=1e-12)


def test_a_bare_loss_trains_without_accumulation(model, state):
    def bare(model, batch):
        return F.cross_entropy(model(batch["x"]), batch["y"])

    got, metrics = ps.train_step(model, bare, OPTIMIZER)(state, make_batch())
    expected, _ = ps.train_step(model, classify, OPTIMIZER)(state, make_batch())
    for name, leaf in expected.params.items():
        # Adam divides by a gradient's size, and the bias before the norm has a gradient of noise.
        if name != "0.bias":
            assert torch.allclose(got.params[name], leaf, atol=1e-10), name
    assert metrics["loss"].value().shape == ()


@pytest.mark.parametrize("kind", ["TensorDict", "dict", "tuple", "nested"])
def test_batches_of_any_nesting(kind, model):
    x, y = make_batch()["x"], make_batch()["y"]
    batch, read = {
        "TensorDict": (make_batch(), lambda b: (b["x"], b["y"])),
        "dict": ({"x": x, "y": y}, lambda b: (b["x"], b["y"])),
        "tuple": ((x, y), lambda b: b),
        "nested": ({"inputs": [x], "y": y}, lambda b: (b["inputs"][0], b["y"])),
    }[kind]

    def objective(model, batch):
        x, y = read(batch)
        return ps.mean(F.cross_entropy(model(x), y, reduction="none"))

    optimizer = ps.sgd(0.1)
    state = ps.init_state(model, optimizer, seed=0)
    got, _ = ps.train_step(model, objective, optimizer, accumulate=2)(state, batch)
    expected, _ = ps.train_step(model, classify, optimizer, accumulate=2)(state, make_batch())
    assert bool((got.params == expected.params).all())


def test_steps_are_vmapped_over_batches(model):
    """Per-example gradients: one state, each example a batch of its own."""
    model[1].eval()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    step = ps.grad_step(model, classify)
    batch = make_batch()
    each = torch.vmap(step, in_dims=(None, 0))(state, batch.unsqueeze(1))
    whole = step(state, batch)
    for name, leaf in whole.total[0].items():
        assert torch.allclose(each.total[0][name].sum(0), leaf, atol=1e-14), name
