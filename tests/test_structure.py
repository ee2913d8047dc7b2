"""What a bound module's structure must not hold, and what a forward must not leave behind."""

from __future__ import annotations

import functools
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import purestep as ps


def objective(model, batch):
    return ps.mean(model(batch).square())


def step_of(model):
    return ps.train_step(model, objective, ps.sgd(0.1)), ps.init_state(model, ps.sgd(0.1), seed=0)


class Holder(nn.Module):
    """A linear layer, and something else that ``keep`` makes of it."""

    def __init__(self, keep):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.kept = keep(self)

    def forward(self, x):
        return self.inner(x)


STRAYS = {
    "list": lambda m: [m.inner.weight],
    "nested list": lambda m: [[m.inner.weight]],
    "dict": lambda m: {"w": {"deep": m.inner.bias}},
    "namespace": lambda m: SimpleNamespace(w=m.inner.weight),
    "closure over a module": lambda m: lambda x: m.inner(x),
    "closure over a parameter": lambda m, w=None: (lambda w: lambda x: x * w)(m.inner.weight),
    "default": lambda m: lambda x, layer=m.inner: layer(x),
    "partial": lambda m: functools.partial(torch.nn.functional.linear, weight=m.inner.weight),
}


@pytest.mark.parametrize("keep", STRAYS.values(), ids=STRAYS.keys())
def test_what_no_value_can_reach_is_refused_by_name(keep):
    with pytest.raises(ValueError, match=r"model keeps '.*' also in the plain attribute kept.*no value can be bound"):
        step_of(Holder(keep))


def test_a_hook_that_closes_over_the_model_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].register_forward_hook(lambda module, inputs, output: output + model[1].bias)
    with pytest.raises(ValueError, match=r"_forward_hooks.*which closes over model"):
        step_of(model)


def test_functions_and_constants_that_hold_nothing_of_the_model_are_fine():
    model = Holder(lambda m: [torch.ones(3), lambda x: x + 1, {"scale": 2.0}, torch.relu])
    step, state = step_of(model)
    step(state, torch.randn(2, 3))


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.calls = 0
        self.position = None

    def forward(self, x):
        self.calls += 1
        if self.position is None:
            self.position = torch.arange(3.0)
        return self.inner(x) * self.calls + self.position


def test_what_a_forward_writes_into_plain_attributes_does_not_reach_the_next_call():
    model, batch = Remembers(), torch.randn(2, 3)
    step, state = step_of(model)
    first = float(step(state, batch)[1]["loss"])
    torch.vmap(step, in_dims=(0, None))(torch.stack([state, state]), batch)  # leaves no batched tensor behind
    assert float(step(state, batch)[1]["loss"]) == first
    assert model.calls == 0
    assert model.position is None


@pytest.mark.compiler
def test_a_tensor_kept_between_calls_is_refused_when_compiled():
    step, state = step_of(Remembers())
    with pytest.raises(TypeError, match=r"keeps a tensor in self.position.*make it in __init__, as a buffer"):
        ps.compile(step)(state, torch.randn(2, 3))


def test_a_buffer_that_is_filled_later_is_refused():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)
            self.register_buffer("running", None)

        def forward(self, x):
            if self.running is None:
                self.running = x.detach().mean()
            return self.inner(x)

    step, state = step_of(Late())
    for _ in range(2):
        with pytest.raises(ValueError, match=r"fills its buffer 'running', which was None"):
            step(state, torch.randn(2, 3))


def test_one_step_in_two_threads_keeps_the_states_apart():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)).double()
    step, state = step_of(model)
    states = [state, state.replace(params=state.params.apply(lambda p: p * 2))]
    batch = torch.randn(4, 6, dtype=torch.float64)
    right = [float(step(each, batch)[1]["loss"]) for each in states]
    wrong = []

    def work(which):
        for _ in range(100):
            loss = float(step(states[which], batch)[1]["loss"])
            if abs(loss - right[which]) > 1e-9:
                wrong.append((which, loss))

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_tied_weight_is_named_by_either_of_its_names():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 3, bias=False), "decoder": nn.Linear(3, 3, bias=False)})
    model["decoder"].weight = model["encoder"].weight
    state = ps.init_state(model, ps.sgd(0.1, momentum=0.9), seed=0, trainable="decoder.*")
    assert list(state.opt_state["momentum_buffer"].keys()) == ["encoder.weight"]


def test_a_model_without_values_needs_the_other_constructor():
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model has no values: .*ps.init_state_from_meta\(make_model"):
        ps.init_state(model, ps.sgd(0.1), seed=0)


class Hooked(nn.Module):
    """As some libraries do it: a hook is registered at the first call, once."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x):
        if not getattr(self, "hooked", False):
            self.line.register_forward_hook(lambda module, args, out: 2 * out)
            self.hooked = True
        return self.line(x)


class Growing(nn.Module):
    """Writes into a list, a dict and a set in place."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.seen, self.counts, self.names = [], {"calls": 1}, {"a"}

    def forward(self, x):
        self.seen.append(0)
        self.counts["calls"] += 1
        self.names.add("b")
        return self.line(x) * len(self.seen) * self.counts["calls"] * len(self.names)


@pytest.mark.parametrize("kind", [Hooked, Growing])
def test_what_a_forward_writes_into_containers_does_not_reach_the_next_call(kind):
    model = kind()
    state, loss = ps.init_state(model, ps.sgd(0.1), seed=0), ps.loss_step(model, lambda model, x: ps.mean(model(x)))
    seen = [float(loss(state, torch.ones(3, 2))[0]) for _ in range(4)]
    assert seen == [seen[0]] * 4
    assert vars(model).get("seen", []) == []


class Inner(nn.Module):
    """Calls a step of its own model while it is called."""

    def __init__(self):
        super().__init__()
        self.line, self.ask = nn.Linear(2, 1), None

    def forward(self, x, ask=None):
        self.kept = x
        if ask is not None:
            ask(x)
        return self.line(self.kept)


def test_a_call_within_a_call_leaves_the_outer_one_its_attributes():
    model = Inner()
    state, x = ps.init_state(model, ps.sgd(0.1), seed=0), torch.ones(3, 2)
    loss = ps.loss_step(model, lambda m, x: ps.mean(m(x, ask)))
    asked = []

    def ask(value):
        if not asked:
            asked.append(1)
            loss(state, 2 * value)

    assert float(loss(state, x)[0]) == pytest.approx(float(loss(state, x)[0]))
    assert not hasattr(model, "kept")


def test_a_buffer_that_is_set_to_none_is_refused():
    class Loses(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 1)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x):
            self.seen = None
            return self.line(x)

    step = ps.loss_step(Loses(), lambda m, x: ps.mean(m(x)))
    with pytest.raises(ValueError, match="sets its buffer 'seen' to None"):
        step(ps.init_state(Loses(), ps.sgd(0.1), seed=0), torch.ones(3, 2))
