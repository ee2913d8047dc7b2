"""Rematerialisation: the same bits with the block run twice, under every transform, and what it refuses."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import purestep as ps
from purestep.draws import Draws, UnkeyedDrawError
from purestep.remat import remat


class Block(nn.Module):
    """What a block may be made of: BatchNorm, dropout twice, a tied weight, a mask that is no parameter, options."""

    def __init__(self, width, tied):
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.outer.weight = tied
        self.norm, self.drop = nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.runs = []
        self.act = self._bound

    def _bound(self, x):
        return torch.tanh(self.inner(x))

    def forward(self, x, index=None, *, gain=1.0):
        self.runs.append(1)
        hidden = self.drop(self.act(self.norm(x)))
        return {"out": x + gain * self.drop(self.outer(hidden)), "index": index, "none": None}


class Net(nn.Module):
    def __init__(self, width=4, depth=3):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.layers = nn.ModuleList(Block(width, self.first.weight) for _ in range(depth))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x, index = self.first(x), torch.arange(len(x))
        for layer in self.layers:
            found = layer(x, index, gain=0.7)
            assert found["none"] is None
            x = found["out"]
        return self.head(F.dropout(x, 0.2, self.training))


def make(depth=3):
    torch.manual_seed(0)
    return Net(depth=depth).double()


def batch(n=6):
    generator = torch.Generator().manual_seed(n)
    return {
        "x": torch.randn(n, 4, generator=generator, dtype=torch.float64),
        "y": torch.randint(0, 2, (n,), generator=generator),
    }


def objective(model, batch):
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


OPTIMIZER = ps.adamw(0.1)


def leaves(state):
    return {**dict(state.params.items()), **{f"buffer {name}": leaf for name, leaf in state.buffers.items()}}


def assert_same_bits(got, right):
    got, right = leaves(got), leaves(right)
    assert list(got) == list(right)
    different = [name for name, leaf in right.items() if not torch.equal(got[name], leaf)]
    assert not different


@pytest.fixture(scope="module")
def pair():
    """The step of a model, that of the same model rematerialised, and their state."""
    model = make()
    steps = (ps.train_step(model, objective, OPTIMIZER), ps.train_step(remat(model, "layers.*"), objective, OPTIMIZER))
    return *steps, ps.init_state(model, OPTIMIZER, seed=0)


def test_a_step_has_the_same_bits(pair):
    plain, rerun, state = pair
    right = got = state
    for n in (6, 6, 4):
        right, got = plain(right, batch(n))[0], rerun(got, batch(n))[0]
    assert_same_bits(got, right)
    assert not torch.equal(right.buffers["layers.0.norm.running_mean"], state.buffers["layers.0.norm.running_mean"])
    assert got.buffers["layers.0.norm.num_batches_tracked"] == 3


@pytest.mark.parametrize("fault", ["draws from the first call site again", "the state's other call"])
def test_other_draws_in_the_second_run_are_seen(fault, pair, monkeypatch):
    """The mutants: the second run of a block draws something else than the first."""

    def at(place):
        if torch.is_grad_enabled():  # the second run
            if fault == "the state's other call":
                place = place._replace(calls=place.calls + 1)
            else:
                place = place._replace(module_call=place.module_call + 1)
        return rightly(place)

    plain, rerun, state = pair
    rightly = Draws.at
    monkeypatch.setattr(Draws, "at", at)
    right, got = plain(state, batch())[0], rerun(state, batch())[0]
    with pytest.raises(AssertionError):
        assert_same_bits(got, right)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_accumulation_has_the_same_bits(accumulate):
    model = make()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    right, _ = ps.train_step(model, objective, OPTIMIZER, accumulate=accumulate)(state, batch())
    got, _ = ps.train_step(remat(model, "layers.*"), objective, OPTIMIZER, accumulate=accumulate)(state, batch())
    assert_same_bits(got, right)


def test_the_block_runs_twice_and_its_activations_are_not_held():
    torch.manual_seed(0)
    runs, held = [], []

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            runs.append(torch.is_grad_enabled())
            for _ in range(5):
                x = torch.tanh(x @ self.weight)
            return x

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Wide() for _ in range(3))

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    def saved(model):
        held.clear()
        runs.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
            model(torch.randn(100, 8)).sum()
        return sum(held)

    model = Whole()
    plain, rerun = saved(model), saved(remat(model, "blocks.*"))
    assert rerun == 3 * (100 * 8 + 64)  # the input and the weight of each block
    assert plain >= 3 * 10 * 100 * 8
    remat(model, "blocks.*")(torch.randn(100, 8)).sum().backward()
    assert runs == [False] * 6 + [True] * 3


def test_vmap_over_states_and_gradients_of_a_step_have_the_same_bits(pair):
    plain, rerun, state = pair
    ensemble = torch.stack([state, state.replace(key=ps.random.key(5))])
    right = torch.vmap(plain, in_dims=(0, None))(ensemble, batch())[0]
    assert_same_bits(torch.vmap(rerun, in_dims=(0, None))(ensemble, batch())[0], right)

    def outcome(step):
        def function(weight):
            params = state.params.clone().set("head.weight", weight)
            after, _ = step(state.replace(params=params), batch())
            return sum(leaf.sin().sum() for leaf in after.params.values())

        return function

    weight = state.params["head.weight"]
    right = torch.func.grad(outcome(plain))(weight)
    assert right.any()
    assert torch.allclose(torch.func.grad(outcome(rerun))(weight), right, rtol=1e-12, atol=1e-14)
    pairs = [torch.func.jvp(outcome(step), (weight,), (weight.cos(),)) for step in (plain, rerun)]
    for first, second in zip(*pairs, strict=True):
        assert torch.allclose(first, second, rtol=1e-12)
    leaf = weight.clone().requires_grad_()
    assert torch.allclose(torch.autograd.grad(outcome(rerun)(leaf), leaf)[0], right, rtol=1e-12, atol=1e-14)


def test_torch_func_on_the_bare_model():
    """``grad``, ``vjp`` after its return, ``vmap(grad)``, ``hessian`` and double backward, without a step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    params = {name: p.detach() for name, p in model.named_parameters()}
    x = torch.randn(5, 3, dtype=torch.float64)

    def results(module):
        def loss(params, x):
            return torch.func.functional_call(module, params, (x,)).sin().square().sum()

        weight, rest = params["0.weight"], {k: v for k, v in params.items() if k != "0.weight"}

        def of_weight(w):
            return loss({"0.weight": w, **rest}, x)

        value, pull_back = torch.func.vjp(loss, params, x)
        leaf = weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(of_weight(leaf), leaf, create_graph=True)
        return {
            "grad": torch.func.grad(of_weight)(weight),
            "vjp": pull_back(torch.ones_like(value))[1],
            "vmap(grad)": torch.vmap(lambda one: torch.func.grad(loss)(params, one)["2.weight"])(x),
            "hessian": torch.func.hessian(of_weight)(weight),
            "jacrev(jacrev)": torch.func.jacrev(torch.func.jacrev(of_weight))(weight),
            "double backward": torch.autograd.grad(first.square().sum(), leaf)[0],
        }

    right, got = results(model), results(remat(model))
    for name, tensor in right.items():
        assert torch.allclose(got[name], tensor, rtol=1e-12, atol=1e-13), name


def test_frozen_parameters_cost_nothing_in_the_second_run():
    model = make()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    right = ps.grad_step(model, objective, trainable="layers.1.inner.*")(state, batch()).mean()
    got = ps.grad_step(remat(model, "layers.*"), objective, trainable="layers.1.inner.*")(state, batch()).mean()
    assert list(got.keys()) == ["layers.1.inner.weight", "layers.1.inner.bias"]
    assert all(torch.equal(got[name], leaf) for name, leaf in right.items())


def test_autocast_is_the_same_in_the_second_run():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    state = ps.init_state(model, OPTIMIZER, seed=0)
    examples = {"x": torch.randn(4, 8)}

    def squares(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return ps.mean(model(batch["x"]).square())

    right = ps.grad_step(model, squares)(state, examples).mean()
    got = ps.grad_step(remat(model), squares)(state, examples).mean()
    assert all(torch.equal(got[name], leaf) for name, leaf in right.items())


def test_nested_and_whole():
    model = make()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    right, _ = ps.train_step(model, objective, OPTIMIZER)(state, batch())
    for twice in (remat(remat(model, "layers.*.norm", "layers.1.outer"), "layers.*"), remat(model)):
        got, _ = ps.train_step(twice, objective, OPTIMIZER)(state, batch())
        assert_same_bits(got, right)


def test_evaluation_and_no_grad_do_not_rerun():
    model = make()
    rerun = remat(model, "layers.*").eval()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    right, got = (ps.eval_step(m, objective)(state, batch())["loss"].value() for m in (model, rerun))
    assert torch.equal(got, right)


def test_ordinary_training_without_a_step():
    model = make().eval()
    rerun = remat(model, "layers.*")
    x = batch()["x"]
    right = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    got = torch.autograd.grad(rerun(x).square().sum(), list(rerun.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))
    with pytest.raises(UnkeyedDrawError, match="a rematerialised block draws outside a pure step"):
        rerun.train()(x)


def test_names_classes_and_tensors_stay_and_the_model_is_not_touched():
    model = make()
    rerun = remat(model, "layers.*")
    assert list(dict(rerun.named_parameters())) == list(dict(model.named_parameters()))
    assert all(a is b for a, b in zip(rerun.parameters(), model.parameters(), strict=True))
    assert all(a is b for a, b in zip(rerun.buffers(), model.buffers(), strict=True))
    assert isinstance(rerun.layers[0], Block)
    assert type(rerun.layers[0]).__name__ == "Block"
    assert type(model.layers[0]) is Block
    assert type(rerun.head) is nn.Linear
    for again in (copy.deepcopy(rerun), pickle.loads(pickle.dumps(rerun))):
        assert type(again.layers[1]) is type(rerun.layers[1])
        assert torch.equal(again.layers[1].inner.weight, model.layers[1].inner.weight)
    assert type(remat(rerun, "layers.*").layers[0]) is type(rerun.layers[0])


def test_two_threads_may_run_one_step():
    """The backward pass runs blocks outside the lock of the bound module: it must not touch that module."""
    model = make()
    plain = ps.train_step(model, objective, OPTIMIZER)
    rerun = ps.train_step(remat(model, "layers.*"), objective, OPTIMIZER)
    states = [ps.init_state(model, OPTIMIZER, seed=seed) for seed in range(2)]
    right, wrong = [plain(state, batch())[0] for state in states], []

    def work(which):
        for _ in range(15):
            try:
                assert_same_bits(rerun(states[which], batch())[0], right[which])
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.compiler
def test_a_compiled_step_runs_the_blocks_twice_too():
    """The compiler must not find that both runs compute the same, and keep the first: then nothing would be saved."""
    counts = []

    def count(graph):
        counts.append(sum("tanh" in str(node.target) for node in graph.nodes))

    torch.manual_seed(0)
    block = nn.Sequential(nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    model = nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 2)).double()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    step = ps.grad_step(remat(model, "1"), objective)
    right = step(state, batch()).mean()
    options = {"post_grad_custom_post_pass": count}
    got = torch.compile(lambda s, b: step(s, b).mean(), fullgraph=True, options=options)(state, batch())
    assert all(torch.allclose(got[name], leaf, rtol=1e-9, atol=1e-12) for name, leaf in right.items())
    assert counts[-1] == 4


@pytest.mark.compiler
def test_a_traced_step_is_the_eager_one_draws_and_buffers_included():
    model = make(depth=1)
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    step = ps.train_step(remat(model, "layers.*"), objective, ps.sgd(0.1))
    right, _ = step(state, batch())
    got, _ = torch.compile(step, fullgraph=True, backend="aot_eager")(state, batch())
    for name, leaf in leaves(right).items():
        assert torch.allclose(leaves(got)[name], leaf, rtol=1e-10, atol=1e-13), name


class Keeps(nn.Linear):
    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


class Writes(nn.Linear):
    def forward(self, x):
        return super().forward(x.mul_(2))


class Reaches(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.others = [self.inner]

    def forward(self, x):
        return self.others[0](x)


def replaced():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].forward = lambda x: x
    return model


BAD = {
    "no module": (lambda: remat(3), TypeError, "model must be a plain torch.nn.Module, got int"),
    "no pattern": (lambda: remat(make(), 3), TypeError, "patterns must be names of submodules, got 3 of type int"),
    "no such name": (
        lambda: remat(make(), "layer.*"),
        ValueError,
        r"'layer\.\*' names no submodule.*the model has 'first'",
    ),
    "a list": (
        lambda: remat(make(), "layers"),
        ValueError,
        r"'layers' is a ModuleList, .* name its entries, 'layers\.\*'",
    ),
    "a replaced forward": (lambda: remat(replaced(), "0"), TypeError, "'0' has its forward replaced on the instance"),
    "a hidden module": (
        lambda: remat(nn.Sequential(Reaches()), "0"),
        ValueError,
        "'0' reaches a module through the plain attribute others",
    ),
    "a hidden result": (
        lambda: remat(Keeps(4, 4))(torch.ones(2, 4)),
        RuntimeError,
        "a rematerialised Keeps keeps a tensor in kept",
    ),
    "a write": (
        lambda: remat(Writes(4, 4))(torch.ones(2, 4)),
        RuntimeError,
        "a rematerialised Writes writes into what it was called with",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
