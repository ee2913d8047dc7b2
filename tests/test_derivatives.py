"""Derivatives of an objective, against torch's own Jacobians and Hessians of small models, in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import purestep as ps
from purestep.derivatives import ggn_vp, hvp, jvp, value_and_grad

N = 5


class Attention(nn.Module):
    """Attention, LayerNorm and dropout, on ``(batch, positions, 4)``."""

    def __init__(self):
        super().__init__()
        self.norm, self.inward, self.out = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        q, k, v = self.inward(self.norm(x)).unflatten(-1, (3, 2, 2)).movedim(-2, 1).unbind(3)
        return self.out(self.drop(x + F.scaled_dot_product_attention(q, k, v).movedim(1, 2).flatten(-2)))


def attention():
    torch.manual_seed(0)
    return Attention().double()


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def batch(n=N, positions=()):
    generator = torch.Generator().manual_seed(n)
    shape = (n, *positions)
    content = {
        "x": torch.randn(*shape, 4, generator=generator, dtype=torch.float64),
        "y": torch.randint(0, 3, shape, generator=generator),
        "counts": torch.rand(shape, generator=generator) < 0.6,
    }
    return TensorDict(content, batch_size=[n])


def losses(logits, batch):
    return F.cross_entropy(logits.movedim(-1, 1), batch["y"], reduction="none")


def objective(model, batch):
    logits = model(batch["x"])
    return ps.mean(losses(logits, batch), where=batch["counts"]) + 0.1 * ps.mean(logits.square())


CASES = {"mlp": (mlp, ()), "attention": (attention, (6,))}


@pytest.fixture(params=CASES)
def job(request):
    make, positions = CASES[request.param]
    model = make()
    return model, ps.init_state(model, ps.sgd(0.1), seed=0), batch(positions=positions)


def tangent_of(state, names=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDict(
        {
            name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            for name, leaf in state.params.items()
            if names is None or name in names
        }
    )


def moved(state, tangent, size):
    params = {name: leaf + size * tangent[name] for name, leaf in state.params.items()}
    return state.replace(params=TensorDict(params, batch_size=[]))


def flat(tree):
    return torch.cat([leaf.reshape(-1) for leaf in tree.values()])


def as_function(state, model, function):
    """The divided loss as a function of one vector, and the vector of the state."""
    loss = ps.loss_step(model, function)
    shapes = {name: leaf.shape for name, leaf in state.params.items()}

    def value(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        params = {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return loss(state.replace(params=TensorDict(params, batch_size=[])), value.batch)[0].value()

    return value, flat(state.params)


def test_value_and_grad_is_the_loss_and_its_gradient(job):
    model, state, examples = job
    value, grads = value_and_grad(objective, model)(state, examples)
    right = ps.grad_step(model, objective)(state, examples)
    assert value.dim() == 0
    assert torch.equal(value, right.metrics["loss"].value())
    assert list(grads.keys()) == list(state.params.keys())
    assert torch.allclose(flat(grads), flat(right.mean()), rtol=1e-12, atol=1e-15)


def test_value_and_grad_composes(job):
    model, state, examples = job
    function, tangent = value_and_grad(objective, model), tangent_of(state)
    _, single = function(state, examples)

    def slope(size):
        return flat(function(moved(state, tangent, size), examples)[1])

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    product = flat(hvp(model, objective)(state, examples, tangent))
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.allclose(torch.func.jacrev(slope)(zero), product, rtol=1e-10, atol=1e-12)
        assert torch.allclose(torch.func.jvp(slope, (zero,), (one,))[1], product, rtol=1e-10, atol=1e-12)
    ensemble = torch.stack([state, moved(state, tangent, 0.1)])
    with sdpa_kernel(SDPBackend.MATH):
        _, both = torch.vmap(lambda member: function(member, examples))(ensemble)
    assert torch.allclose(flat(both[0]), flat(single), rtol=1e-12, atol=1e-15)


def test_jvp_is_the_gradient_along_the_tangent(job):
    model, state, examples = job
    tangent = tangent_of(state)
    value, slope = jvp(model, objective)(state, examples, tangent)
    right, grads = value_and_grad(objective, model)(state, examples)
    assert torch.allclose(value, right, rtol=1e-12)
    assert torch.allclose(slope, flat(grads) @ flat(tangent), rtol=1e-10)


def test_hvp_is_the_hessian_times_the_tangent(job):
    model, state, examples = job
    tangent = tangent_of(state)
    value, vector = as_function(state, model, objective)
    value.batch = examples
    with sdpa_kernel(SDPBackend.MATH):
        hessian = torch.func.hessian(value)(vector)
    product = hvp(model, objective)(state, examples, tangent)
    assert torch.allclose(flat(product), hessian @ flat(tangent), rtol=1e-10, atol=1e-12)


def test_the_whole_hessian_is_hvp_vmapped():
    model, examples = mlp(), batch()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    value, vector = as_function(state, model, objective)
    value.batch = examples
    product = hvp(model, objective)
    columns = torch.eye(vector.numel(), dtype=torch.float64)

    def row(direction):
        parts = direction.split([leaf.numel() for leaf in state.params.values()])
        named = zip(state.params.items(), parts, strict=True)
        return flat(product(state, examples, TensorDict({k: p.reshape(leaf.shape) for (k, leaf), p in named})))

    assert torch.allclose(torch.vmap(row)(columns), torch.func.hessian(value)(vector), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("context", [False, True])
def test_ggn_vp_is_the_explicit_matrix_times_the_tangent(context):
    model, examples = mlp(), batch()
    state, names = ps.init_state(model, ps.sgd(0.1), seed=0), ["0.weight", "2.bias"]
    tangent = tangent_of(state, names)

    def outputs(model, batch):
        return {"logits": model(batch["x"])}

    def with_context(model, batch, context):
        assert context.training
        return outputs(model, batch)

    def loss(outputs, batch):
        return ps.mean(losses(outputs["logits"], batch), where=batch["counts"])

    def logits(vector):
        first = vector[:12].reshape(3, 4)
        values = {**dict(state.params.items()), "0.weight": first, "2.bias": vector[12:]}
        return torch.func.functional_call(model, values, (examples["x"],)).reshape(-1)

    jacobian = torch.func.jacrev(logits)(flat(tangent) * 0 + torch.cat([state.params[n].reshape(-1) for n in names]))
    at = logits(torch.cat([state.params[n].reshape(-1) for n in names]))
    curvature = torch.func.hessian(lambda z: loss({"logits": z.reshape(N, 3)}, examples).value())(at)
    right = jacobian.T @ curvature @ jacobian @ flat(tangent)
    product = ggn_vp(model, with_context if context else outputs, loss, trainable=names)(state, examples, tangent)
    assert list(product.keys()) == names
    assert torch.allclose(flat(product), right, rtol=1e-10, atol=1e-13)
    hessian = hvp(model, lambda m, b: loss(outputs(m, b), b), trainable=names)(state, examples, tangent)
    assert not torch.allclose(flat(hessian), right, rtol=1e-3), "a Hessian is no Gauss-Newton matrix here"


def test_ggn_vp_is_the_hessian_where_the_model_is_linear_and_symmetric_through_attention():
    model = nn.Linear(4, 3).double()
    state, examples = ps.init_state(model, ps.sgd(0.1), seed=0), batch()
    tangent = tangent_of(state)

    def squares(model, batch):
        return ps.mean(F.mse_loss(model(batch["x"]), batch["x"][:, :3], reduction="none"))

    product = ggn_vp(
        model, lambda m, b: m(b["x"]), lambda z, b: ps.mean(F.mse_loss(z, b["x"][:, :3], reduction="none"))
    )(state, examples, tangent)
    right = hvp(model, squares)(state, examples, tangent)
    assert torch.allclose(flat(product), flat(right), rtol=1e-10, atol=1e-13)
    model, examples = attention(), batch(positions=(6,))
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    multiply = ggn_vp(model, lambda m, b: m(b["x"]), lambda z, b: ps.mean(losses(z, b)))
    first, second = tangent_of(state, seed=1), tangent_of(state, seed=2)
    across = flat(multiply(state, examples, first)) @ flat(second)
    assert torch.allclose(across, flat(multiply(state, examples, second)) @ flat(first), rtol=1e-10)
    assert flat(multiply(state, examples, first)) @ flat(first) > 0


def test_frozen_parameters_cost_no_gradient_work():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    examples = {"x": torch.randn(32, 64)}

    def flops(**options):
        function = value_and_grad(lambda m, b: ps.mean(m(b["x"]).square()), model, **options)
        with FlopCounterMode(display=False) as counter:
            function(state, examples)
        return counter.get_total_flops()

    wide, head = 2 * 32 * 64 * 64, 2 * 32 * 64 * 8
    forward = 2 * wide + head
    assert flops(trainable="4.*") == forward + head  # one product: the head's own gradient
    assert flops() == forward + (wide) + 2 * wide + 2 * head  # the first layer needs none for its input
    # The middle layer alone: the head passes its gradient on, and has none itself.
    assert flops(trainable="2.*") == forward + head + wide


def test_evaluation_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).double()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    trained, _ = value_and_grad(lambda m, b: ps.mean(m(b["x"])), model)(state, batch())
    evaluated, _ = value_and_grad(lambda m, b: ps.mean(m(b["x"])), model, training=False)(state, batch())
    assert torch.allclose(evaluated, model.eval()(batch()["x"]).mean())
    assert not torch.allclose(trained, evaluated)


def test_reverse_over_forward_is_refused_since_torch_gets_it_wrong():
    """The refusal may go once torch's own derivative of LayerNorm's forward mode is right."""
    model, examples = attention(), batch(positions=(6,))
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    tangent = tangent_of(state)

    def slope(size):
        return jvp(model, objective)(moved(state, tangent, size), examples, tangent)[1]

    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="the gradient of jvp's slope is hvp"):
        torch.func.grad(slope)(zero)
    with pytest.raises(RuntimeError, match="the gradient of jvp's slope is hvp"):
        slope(zero.clone().requires_grad_())
    _, curvature = torch.func.jvp(slope, (zero,), (one,))
    right = flat(hvp(model, objective)(state, examples, tangent)) @ flat(tangent)
    assert torch.allclose(curvature, right, rtol=1e-9)
    x, direction = examples["x"][0], torch.ones_like(examples["x"][0])

    def normalised(size):
        return torch.func.jvp(lambda v: F.layer_norm(v, (4,)).sin().sum(), (x + size * direction * x,), (x.cos(),))[1]

    step = 1e-6
    difference = (normalised(torch.tensor(step)) - normalised(torch.tensor(-step))) / (2 * step)
    assert not torch.allclose(torch.func.grad(normalised)(zero), difference, rtol=1e-3), "torch is right now"


@pytest.mark.compiler
def test_compiled():
    model, examples = mlp(), batch()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    tangent = tangent_of(state)
    product = hvp(model, objective)

    def both(state, batch, tangent):
        return jvp_of(state, batch, tangent)[1], product(state, batch, tangent)

    jvp_of = jvp(model, objective)
    slope, curved = torch.compile(both, fullgraph=True, backend="aot_eager")(state, examples, tangent)
    right_slope, right = both(state, examples, tangent)
    assert torch.allclose(slope, right_slope, rtol=1e-10)
    assert torch.allclose(flat(curved), flat(right), rtol=1e-10, atol=1e-13)


BAD = {
    "no objective": (lambda: value_and_grad(3, mlp()), TypeError, "objective must be a function"),
    "the order": (lambda: value_and_grad(mlp(), objective), TypeError, "model must be a torch.nn.Module, got"),
    "no loss": (lambda: ggn_vp(mlp(), lambda m, b: m(b), 3), TypeError, r"loss must be a function \(outputs, batch\)"),
    "no outputs": (lambda: ggn_vp(mlp(), 3, losses), TypeError, r"outputs must be a function \(model, batch\)"),
    "nothing trainable": (
        lambda: hvp(mlp(), objective, trainable="1.*"),
        ValueError,
        r"trainable='1.\*' names no parameter",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_bad_tangents_and_outputs():
    model, examples = mlp(), batch()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    tangent = tangent_of(state)
    for function in (
        jvp(model, objective),
        hvp(model, objective),
        ggn_vp(model, lambda m, b: m(b["x"]), lambda z, b: ps.mean(z)),
    ):
        with pytest.raises(ValueError, match=r"tangent does not belong to this set of trainable parameters: it lacks"):
            function(state, examples, tangent_of(state, ["0.bias"]))
        with pytest.raises(ValueError, match=r"tangent\['0.bias'\] must have the parameter's shape and dtype, \(3,\)"):
            function(state, examples, tangent.clone().set("0.bias", torch.zeros(4, dtype=torch.float64)))
        with pytest.raises(TypeError, match="tangent must be a flat TensorDict by parameter name, got Tensor"):
            function(state, examples, torch.zeros(3))
        other = ps.init_state(nn.Linear(2, 2), ps.sgd(0.1), seed=0)
        with pytest.raises(ValueError, match=r"state\.params does not belong to this model"):
            function(other, examples, tangent)
    with pytest.raises(TypeError, match=r"outputs\[1\] must be a tensor or a nesting of tensors, got 3"):
        ggn_vp(model, lambda m, b: (m(b["x"]), 3), lambda z, b: ps.mean(z[0]))(state, examples, tangent)
    with pytest.raises(TypeError, match=r"loss must return ps.mean\(values\), a sum of such means, or a 0-d tensor"):
        ggn_vp(model, lambda m, b: m(b["x"]), lambda z, b: z)(state, examples, tangent)


def test_no_warning_about_a_missing_rule():
    model, examples = attention(), batch(positions=(6,))
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hvp(model, objective)(state, examples, tangent_of(state))
