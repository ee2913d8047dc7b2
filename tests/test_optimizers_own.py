"""What torch's optimizers lack: averages to evaluate with, other shapes, half precision."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _against_torch import assert_same_bits, context, gradients, parameters, run_ours
from _optimizer_table import TORCH
from purestep import optimizers


def test_asgds_average_is_what_evaluates():
    params = TensorDict({"w": torch.tensor([4.0], dtype=torch.float64)})
    rule = optimizers.asgd(0.1, lambd=0.0, t0=1.0)
    state = rule.init(params)
    assert torch.equal(rule.eval_params(params, state)["w"], params["w"])
    seen = []
    for step in range(5):
        params, state = rule.update(TensorDict({"w": 2 * params["w"]}), state, params, context(step))
        seen.append(params["w"].item())
    # μ is 1 for the first three updates, and then the mean of the iterates from the third on.
    average = seen[2] + (seen[3] - seen[2]) / 2
    average += (seen[4] - average) / 3
    assert rule.eval_params(params, state)["w"].item() == pytest.approx(average, rel=1e-7)
    frozen = TensorDict({"frozen": torch.ones(2), **dict(params.items())})
    assert rule.eval_params(frozen, state)["frozen"] is frozen["frozen"]


def test_muon_leaves_the_rest_to_another_optimizer():
    """As two optimizers of torch, side by side."""
    params = parameters(torch.float32)
    chosen = {"matrix", "empty"}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    theirs = [
        torch.optim.Muon([leaf for name, leaf in leaves.items() if name in chosen], lr=0.03),
        torch.optim.AdamW([leaf for name, leaf in leaves.items() if name not in chosen], lr=0.01, foreach=False),
    ]
    for step in range(10):
        for name, grad in gradients(params, step).items():
            leaves[name].grad = grad
        for one in theirs:
            one.step()
    rule = optimizers.muon(0.03, others=ps.adamw(0.01), choose=lambda name, p: p.dim() == 2 and name != "transposed")
    got, state = run_ours(rule, params, 10)
    assert_same_bits(got, {name: leaf.detach() for name, leaf in leaves.items()})
    assert set(state["matrices", "momentum_buffer"].keys()) == chosen
    assert set(rule.hyperparams(state, context())) == {"learning_rate.matrices", "learning_rate.others"}


def test_muons_iteration_makes_a_matrix_orthogonal():
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for coefficients, steps, within in (((3.4445, -4.775, 2.0315), 5, 0.35), ((1.5, -0.5, 0.0), 40, 1e-10)):
        rule = optimizers.muon(
            1.0,
            momentum=0.0,
            nesterov=False,
            weight_decay=0.0,
            ns_coefficients=coefficients,
            ns_steps=steps,
            ns_dtype=None,
            adjust="match_rms_adamw",
        )
        params = TensorDict({"w": torch.zeros_like(matrix)})
        after, _ = rule.update(TensorDict({"w": matrix}), rule.init(params), params, context())
        values = torch.linalg.svdvals(after["w"] / (0.2 * math.sqrt(6)))
        assert (values - 1).abs().max() < within
    assert torch.allclose(-after["w"] / (0.2 * math.sqrt(6)), polar(matrix), atol=1e-9)


def polar(matrix):
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def test_adafactor_takes_what_torch_cannot():
    """An empty parameter, where torch divides by zero; and of two dtypes, each its own eps."""
    params = TensorDict({"empty": torch.zeros(0, 3), "w": torch.ones(2, 2)})
    rule = optimizers.adafactor(0.1)
    after, state = rule.update(params, rule.init(params), params, context())
    assert after["empty"].shape == (0, 3)
    assert after["w"].isfinite().all()
    assert state["count"] == 1


# Zero dimensions and half precision.

NARROW = {name: row for name, row in TORCH.items() if name != "muon"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NARROW)
def test_half_precision_stays_what_it_is(name, dtype):
    row = NARROW[name]
    params = TensorDict({"w": torch.ones(2, 3, dtype=dtype), "s": torch.ones((), dtype=dtype)})
    grads = params.apply(lambda leaf: 0.1 * leaf)
    for rate in (row.rate, torch.tensor(row.rate, dtype=torch.float64, requires_grad=True)):
        rule = row.ours(rate, **row.options)
        after, state = rule.update(grads, rule.init(params), params, context())
        assert {leaf.dtype for leaf in after.values()} == {dtype}
        trees = [value for value in state.values() if not isinstance(value, torch.Tensor)]
        assert {leaf.dtype for tree in trees for leaf in tree.values()} <= {dtype}


class Scaled(nn.Module):
    """With a 0-d parameter, as a contrastive model's temperature is."""

    def __init__(self, dtype):
        super().__init__()
        self.line = nn.Linear(3, 1, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, x):
        return self.line(x) * self.scale


ZERO_DIMENSIONS = {
    "adamw": lambda: ps.adamw(ps.schedules.constant(0.1)),
    "adamw, masked": lambda: ps.adamw(0.1, decay_mask=lambda name, p: True),
    "sgd": lambda: ps.sgd(0.1, momentum=ps.schedules.constant(0.9), weight_decay=0.1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ZERO_DIMENSIONS)
def test_a_parameter_without_dimensions_keeps_its_dtype(name, dtype):
    model, optimizer = Scaled(dtype), ZERO_DIMENSIONS[name]()
    step = ps.train_step(model, lambda m, x: ps.mean(m(x).float().square()), optimizer, accumulate=3)
    state, x = ps.init_state(model, optimizer, seed=0), torch.randn(6, 3, dtype=dtype)
    alone, _ = step(step(state, x)[0], x)
    together, _ = torch.vmap(step, in_dims=(0, None))(torch.stack([state, state]), x)
    for after in (alone, together):
        leaves = [*after.params.values(), *(after.opt_state.get("momentum_buffer", after.params)).values()]
        assert {leaf.dtype for leaf in leaves} == {dtype}
