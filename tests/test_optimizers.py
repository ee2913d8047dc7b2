"""Optimizers against torch's own, bit for bit, and what they do with counts, masks and bad input."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _optimizer_table import TORCH
from purestep import laws, optimizers
from purestep.schedules import cosine
from purestep.updates import UpdateContext

SHAPES = {"scalar": (), "vector": (7,), "matrix": (5, 3), "kernel": (4, 3, 2, 2), "empty": (0, 3)}


def parameters(dtype, seed=0, shapes=lambda shape: True):
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}
    values["transposed"] = torch.randn(6, 4, generator=generator, dtype=dtype).t()
    values["strided"] = torch.randn(10, generator=generator, dtype=dtype)[::2]
    return {name: leaf for name, leaf in values.items() if shapes(leaf.shape)}


@functools.cache
def gradient(name, shape, dtype, step, size):
    generator = torch.Generator().manual_seed(1000 + 100 * step + sum(map(ord, name)))
    return size * torch.randn(shape, generator=generator, dtype=dtype)


def gradients(params, step):
    """Gradients of many sizes; one leaf never has any, and at step 7 no leaf has."""
    grads = {}
    for position, (name, leaf) in enumerate(params.items()):
        size = 0.0 if step == 7 or name == "vector" else 10.0 ** (position - 4)
        grads[name] = gradient(name, leaf.shape, leaf.dtype, step, size)
    return grads


def run_torch(make, params, steps, rates=None):
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
    optimizer = make(list(leaves.values()))
    for step in range(steps):
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[step]
        for name, grad in gradients(params, step).items():
            leaves[name].grad = grad
        optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}, optimizer


def run_ours(optimizer, params, steps):
    tree = TensorDict(params)
    state = optimizer.init(tree)
    for step in range(steps):
        tree, state = optimizer.update(TensorDict(gradients(params, step)), state, tree, context(step))
    return tree, state


def context(step=0):
    return UpdateContext(torch.tensor(step), ps.random.key(0))


def assert_same_bits(got, right):
    for name, leaf in right.items():
        assert got[name].dtype == leaf.dtype
        assert torch.equal(got[name], leaf), f"{name}: off by {(got[name] - leaf).abs().max()}"


CASES = [(name, options) for name, row in TORCH.items() for options in row.grid]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{name} {options}" for name, options in CASES])
def test_an_optimizer_has_torchs_bits(name, options, dtype):
    row = TORCH[name]
    params = parameters(dtype, shapes=row.shapes)
    steps = 50 if dtype == torch.float32 else 20
    right, theirs = run_torch(lambda leaves: row.theirs(leaves, row.rate, **options), params, steps)
    got, state = run_ours(row.ours(row.rate, **options), params, steps)
    assert all(leaf.isfinite().all() for leaf in right.values())
    assert_same_bits(got, right)
    held = {name: theirs.state[p] for name, p in zip(params, theirs.param_groups[0]["params"], strict=True)}
    for key, tree in state.items():
        if key == "count":
            assert tree == steps
        elif isinstance(tree, torch.Tensor):
            assert all(torch.equal(own[key], tree) for own in held.values()), key
        else:
            assert_same_bits(tree, {name: own[key] for name, own in held.items() if key in own})


# What parity catches: AdamW as others write it.


def adamw_written(average, square, root, decay_first):
    def update(grads, state, params, context):
        t, after, moved = state["count"].item() + 1, {"m": {}, "v": {}}, {}
        for name, p in params.items():
            g = grads[name]
            m, v = average(state["m", name], g, 0.9), square(state["v", name], g, 0.999)
            after["m"][name], after["v"][name] = m, v
            direction = root(m, v, t)
            if decay_first:
                moved[name] = (p * (1 - 0.03 * 0.01)).sub(direction, alpha=0.03)
            else:
                moved[name] = p - 0.03 * (direction + 0.01 * p)
        return TensorDict(moved), TensorDict({**after, "count": state["count"] + 1})

    def init(params):
        zeros = params.apply(torch.zeros_like)
        return TensorDict({"m": zeros, "v": zeros.clone(), "count": torch.tensor(0)})

    return ps.Optimizer(init, update)


def lerp(m, g, beta):
    return m.lerp(g, 1 - beta)


def naive(m, g, beta):
    return beta * m + (1 - beta) * g


def two_products(v, g, beta):
    return (v * beta).addcmul(g, g, value=1 - beta)


def corrected(m, v, t):
    return (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


def as_in_torch(m, v, t):
    return m / (1 - 0.9**t) / (v.sqrt() / (1 - 0.999**t) ** 0.5 + 1e-8)


def one_late(m, v, t):
    return as_in_torch(m, v, t + 1)


MUTANTS = {
    "a moving average": (naive, two_products, as_in_torch, True),
    "a squared average": (lerp, lambda v, g, beta: naive(v, g * g, beta), as_in_torch, True),
    "corrected moments": (lerp, two_products, corrected, True),
    "decay in the step": (lerp, two_products, as_in_torch, False),
    "a count too many": (lerp, two_products, one_late, True),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_parity_sees_another_order_of_operations(name):
    params = parameters(torch.float32)
    right, _ = run_torch(lambda leaves: TORCH["adamw"].theirs(leaves, 0.03), params, 50)
    got, _ = run_ours(adamw_written(*MUTANTS[name]), params, 50)
    with pytest.raises(AssertionError, match="off by"):
        assert_same_bits(got, right)
    assert_same_bits(run_ours(ps.adamw(0.03), params, 50)[0], right)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 17)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)))


def test_two_hundred_steps_of_a_transformer_have_torchs_bits():
    torch.manual_seed(0)
    ours = Transformer()
    theirs = Transformer()
    theirs.load_state_dict(ours.state_dict())
    optimizer, rule = torch.optim.AdamW(theirs.parameters(), lr=1e-2, foreach=False), ps.adamw(1e-2)

    def losses(model, tokens, reduction):
        return F.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(-1, 1).flatten(), reduction=reduction)

    step = ps.train_step(ours, lambda model, tokens: ps.mean(losses(model, tokens, "none")), rule)
    state = ps.init_state(ours, rule, seed=0)
    for t in range(200):
        tokens = torch.randint(0, 17, (4, 8), generator=torch.Generator().manual_seed(t))
        optimizer.zero_grad()
        losses(theirs, tokens, "mean").backward()
        optimizer.step()
        state, _ = step(state, tokens)
    assert_same_bits(state.params, {name: p.detach() for name, p in theirs.named_parameters()})


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_holds_is_what_ours_holds(name):
    """No tree more, none less."""
    row = TORCH[name]
    for options in row.grid:
        params = parameters(torch.float32, shapes=row.shapes)
        _, theirs = run_torch(lambda leaves, o=options: row.theirs(leaves, row.rate, **o), params, 1)
        keys = {key for own in theirs.state.values() for key in own} - {"step"}
        if name == "sgd" and "momentum" not in options:
            keys = set()
        assert {*row.ours(row.rate, **options).init(TensorDict(params)).keys()} - {"count"} == keys


@pytest.mark.parametrize("name", TORCH)
def test_a_schedule_has_the_bits_of_a_rate_set_by_hand(name):
    row = TORCH[name]
    rate = cosine(peak=3 * row.rate, total_steps=40)
    params = parameters(torch.float32, shapes=row.shapes)
    rates = [rate(step).item() for step in range(50)]
    right, _ = run_torch(lambda leaves: row.theirs(leaves, rates[0]), params, 50, rates=rates)
    got, _ = run_ours(row.ours(rate), params, 50)
    assert_same_bits(got, right)


@pytest.mark.parametrize("name", TORCH)
def test_a_hyperparameter_in_a_tensor_has_the_bits_of_its_number(name):
    row = TORCH[name]
    params = parameters(torch.float32, shapes=row.shapes)
    numbers = {"rate": row.rate, **row.hyperparameters}
    right, _ = run_ours(row.with_hyperparameters(numbers), params, 6)
    tensors = {key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()}
    got, _ = run_ours(row.with_hyperparameters(tensors), params, 6)
    assert_same_bits(got, dict(right.items()))


@pytest.mark.parametrize("name", TORCH)
def test_somebody_who_differentiates_gets_the_same_bits(name):
    """Tensor after tensor, with safe roots, where otherwise all tensors go in one call; zero gradients among them."""
    row = TORCH[name]
    for options in row.grid:
        params = parameters(torch.float32, shapes=row.shapes)
        rule = row.ours(row.rate, **options)
        right, _ = run_ours(rule, params, 3)
        tree, state = TensorDict(params), rule.init(TensorDict(params))
        for step in range(3):
            grads = {leaf_name: grad.clone().requires_grad_() for leaf_name, grad in gradients(params, step).items()}
            tree, state = rule.update(TensorDict(grads), state, tree, context(step))
        assert all(leaf.requires_grad for leaf in tree.values())
        if name == "adafactor":  # its scale depends on the gradients, so it is a tensor then
            assert all(torch.allclose(tree[key], leaf, rtol=1e-6, atol=1e-7) for key, leaf in right.items())
        else:
            assert_same_bits(tree.detach(), dict(right.items()))


@pytest.mark.parametrize("name", TORCH)
def test_hyperparameters_may_be_vmapped(name):
    row = TORCH[name]
    params = TensorDict(parameters(torch.float64, shapes=row.shapes))
    numbers = {"rate": row.rate, **row.hyperparameters}
    several = {key: torch.tensor([value, 0.9 * value], dtype=torch.float64) for key, value in numbers.items()}

    def run(h):
        return run_ours(row.with_hyperparameters(h), params, 3)[0]

    together = torch.vmap(run)(several)
    for member in range(2):
        alone = run({key: value[member] for key, value in several.items()})
        for leaf_name, leaf in alone.items():
            assert torch.allclose(together[leaf_name][member], leaf, rtol=1e-10, atol=1e-12), leaf_name


LAWS = {
    **{name: (functools.partial(row.make, **row.options), row.smooth, row.skip) for name, row in TORCH.items()},
    "muon": (lambda rate: optimizers.muon(rate, others=optimizers.sgd(rate)), False, ("ensemble",)),
    "muon in float64": (lambda rate: optimizers.muon(rate, others=optimizers.sgd(rate), ns_dtype=None), True, ()),
    "radam, rectified": (lambda rate: optimizers.radam(rate, betas=(0.9, 0.999), decoupled=True), True, ()),
    "adam with amsgrad": (lambda rate: optimizers.adam(rate, amsgrad=True, maximize=True), True, ()),
}


@pytest.mark.parametrize("name", LAWS)
def test_optimizers_keep_the_laws(name):
    make, smooth, skip = LAWS[name]
    laws.check_optimizer(make, smooth=smooth, skip=skip)


@pytest.fixture
def float64_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["asgd", "nadam"])
def test_where_torchs_scalars_are_float64_so_are_ours_and_the_rule_is_smooth(name, float64_by_default):
    row = TORCH[name]
    params = parameters(torch.float64)
    right, _ = run_torch(lambda leaves: row.theirs(leaves, row.rate), params, 20)
    got, state = run_ours(row.ours(row.rate), params, 20)
    assert_same_bits(got, right)
    assert all(state[key].dtype == torch.float64 for key in ("eta", "mu", "mu_product") if key in state.keys())  # noqa: SIM118
    laws.check_optimizer(row.make, laws=["derivatives", "finite"])


# Counts.


def split_counts(state, names):
    """The state with a count, and each other scalar, for every leaf."""
    each = {
        key: TensorDict({name: value.clone() for name in names}) if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }
    return TensorDict(each, batch_size=[])


COUNTED = [name for name in TORCH if name != "muon"]


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_for_each_leaf_is_torchs_late_unfreezing(name):
    """Half of the parameters have no gradient for three updates, and then take part."""
    row = TORCH[name]
    options = {"momentum": 0.9, "dampening": 0.3} if name == "sgd" else {}
    params = parameters(torch.float32, shapes=row.shapes)
    late = {"matrix", "scalar", "strided"}

    def theirs():
        leaves = {name: leaf.clone().requires_grad_() for name, leaf in params.items()}
        optimizer = row.theirs(list(leaves.values()), row.rate, **options)
        for step in range(12):
            for leaf_name, grad in gradients(params, step).items():
                leaves[leaf_name].grad = None if leaf_name in late and step < 3 else grad
            optimizer.step()
        return leaves

    rule = row.ours(row.rate, **options)
    early = TensorDict({name: leaf for name, leaf in params.items() if name not in late})
    tree, state = run_ours(rule, dict(early.items()), 0)
    for step in range(3):
        grads = {name: grad for name, grad in gradients(params, step).items() if name not in late}
        tree, state = rule.update(TensorDict(grads), state, tree, context(step))
    first = split_counts(rule.init(TensorDict(params)), params)
    held = split_counts(state, early.keys())
    joined = {}
    for key, value in first.items():
        joined[key] = TensorDict({name: held[key].get(name, leaf) for name, leaf in value.items()})
    state, tree = TensorDict(joined), TensorDict({**params, **dict(tree.items())})
    forms = [(key, tuple(value.keys())) for key, value in state.items()]
    for step in range(3, 12):
        tree, state = rule.update(TensorDict(gradients(params, step)), state, tree, context(step))
    assert_same_bits(tree, {name: leaf.detach() for name, leaf in theirs().items()})
    assert [(key, tuple(value.keys())) for key, value in state.items()] == forms
    if "count" in state.keys():  # noqa: SIM118
        assert {name: count.item() for name, count in state["count"].items()} == {
            name: 9 if name in late else 12 for name in params
        }


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_for_each_leaf_may_be_vmapped_and_differentiated(name):
    row = TORCH[name]
    rule = row.ours(row.rate, **row.options)
    params = TensorDict(parameters(torch.float64, shapes=row.shapes))
    state = split_counts(rule.init(params), params.keys())
    grads = TensorDict(gradients(params, 1))
    right, _ = rule.update(grads, state, params, context())
    stacked = [torch.stack([tree, tree]) for tree in (grads, state, params)]
    got, _ = torch.vmap(lambda g, s, p: rule.update(g, s, p, context()))(*stacked)
    for leaf_name, leaf in right.items():
        assert torch.allclose(got[1][leaf_name], leaf, rtol=1e-12, atol=1e-14)

    def total(scale):
        after, _ = rule.update(grads.apply(lambda g: scale * g), state, params, context())
        return torch.stack([leaf.sum() for leaf in after.values()]).sum()

    assert torch.func.grad(total)(torch.ones((), dtype=torch.float64)).isfinite()


def test_a_fresh_optimizer_corrects_its_bias_wherever_training_is():
    """The count is the optimizer's own: the first update at step 10,000 has the size of a first update."""
    params = TensorDict({"w": torch.ones(3, dtype=torch.float64)})
    optimizer = ps.adamw(0.1, weight_decay=0.0)
    after, _ = optimizer.update(params, optimizer.init(params), params, context(10_000))
    assert after["w"].tolist() == pytest.approx([0.9, 0.9, 0.9])


# Masks.

DECAYING = {
    name: {"decoupled": True} if decoupled else {}
    for name in TORCH
    if name not in ("rprop", "muon")
    for decoupled in [False]
} | {"nadam ": {"decoupled": True}, "radam ": {"decoupled": True}}


@pytest.mark.parametrize("name", DECAYING)
def test_the_decay_mask_is_torchs_groups(name):
    row, options = TORCH[name.strip()], DECAYING[name]
    params = parameters(torch.float32, shapes=row.shapes)
    leaves = {leaf_name: leaf.clone().requires_grad_() for leaf_name, leaf in params.items()}
    groups = [
        {"params": [leaf for leaf in leaves.values() if leaf.dim() >= 2], "weight_decay": 0.5},
        {"params": [leaf for leaf in leaves.values() if leaf.dim() < 2], "weight_decay": 0.0},
    ]
    theirs = row.theirs(groups, 0.1, **options)
    for step in range(3):
        for leaf_name, grad in gradients(params, step).items():
            leaves[leaf_name].grad = grad
        theirs.step()
    ours = row.ours(0.1, weight_decay=0.5, decay_mask=ps.matrices_only, **options)
    got, _ = run_ours(ours, params, 3)
    assert_same_bits(got, {leaf_name: leaf.detach() for leaf_name, leaf in leaves.items()})


def test_a_mask_by_name():
    params = TensorDict({"a": torch.ones(2), "b": torch.ones(2)})
    optimizer = ps.adamw(0.1, weight_decay=0.5, decay_mask=lambda name, parameter: name == "b")
    after, _ = optimizer.update(params.apply(torch.zeros_like), optimizer.init(params), params, context())
    assert after["a"].tolist() == [1, 1]
    assert after["b"].tolist() == pytest.approx([0.95, 0.95])


# What torch lacks.


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
