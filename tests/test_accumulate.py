"""However a batch is cut into micro-batches, and whichever loop runs over them, the gradient is the whole batch's."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws

LENGTH = 11


def make_model(dropout=0.3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 2)).double()


def make_batch(length=LENGTH):
    """Tokens with padding: (examples, 4 tokens, 3 features); the first example is padding throughout."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 5, (length,), generator=generator)
    lengths[:1] = 0
    return TensorDict(
        {
            "x": torch.randn(length, 4, 3, generator=generator, dtype=torch.float64),
            "y": torch.randint(0, 2, (length, 4), generator=generator),
            "real": torch.arange(4) < lengths[:, None],
            "boxes": torch.rand(length, generator=generator, dtype=torch.float64),
        },
        batch_size=[length],
    )


def objective(model, batch):
    """Three terms of three denominators: tokens, examples by weight, and once."""
    logits = model(batch["x"])
    nats = F.cross_entropy(logits.flatten(0, 1), batch["y"].flatten(), reduction="none").unflatten(0, batch["y"].shape)
    right = ps.mean(logits.argmax(-1) == batch["y"], where=batch["real"])
    penalty = sum((p**2).sum() for p in model.parameters())
    loss = ps.mean(nats, where=batch["real"]) + 0.1 * ps.mean(logits.square().sum((1, 2)), weight=batch["boxes"])
    return loss + 0.01 * ps.once(penalty), {"accuracy": right}


def one_term(model, batch):
    """What is quick to compile, where the loss is not what matters."""
    return ps.mean(model(batch["x"]).square().sum((1, 2)))


def denominators(batch):
    parts = batch if isinstance(batch, list) else [batch]
    tokens = sum(part["real"].sum().double() for part in parts)
    return tokens, sum(part["boxes"].sum() for part in parts), None


OPTIMIZER = ps.chain(ps.clip_by_global_norm(0.3), ps.sgd(0.5, momentum=0.9))


def step_of(model, **options):
    return ps.train_step(model, objective, OPTIMIZER, **options)


def agree(got, right, tolerance=1e-12, state=None):
    comparison = laws._compare.Comparison("law 2", "cut", "whole", tolerance)
    comparison.results(got, right, ps.init_state(make_model(), OPTIMIZER, seed=0) if state is None else state)


@pytest.fixture(scope="module")
def whole():
    model = make_model()
    state = ps.init_state(model, OPTIMIZER, seed=3)
    return model, state, step_of(model)(state, make_batch())


@given(size=st.integers(1, LENGTH + 3), given_before=st.booleans(), by_size=st.booleans(), scan=st.booleans())
def test_the_cut_does_not_matter(whole, size, given_before, by_size, scan):
    model, state, right = whole
    cut = {"microbatch": size} if by_size else {"accumulate": size}
    if scan and cut != {"accumulate": 1}:
        cut["loop"] = "scan"
    step = step_of(model, weights=denominators if given_before else None, **cut)
    agree(step(state, make_batch()), right)


@given(bounds=st.lists(st.integers(0, LENGTH), max_size=5).map(sorted), given_before=st.booleans())
def test_a_list_of_any_lengths_is_the_whole_batch(whole, bounds, given_before):
    """Ragged, empty, and padded throughout: dropout masks belong to the place in the whole batch here too."""
    model, state, right = whole
    batch, edges = make_batch(), [0, *bounds, LENGTH]
    parts = [batch[a:b] for a, b in pairwise(edges)]
    step = step_of(model, accumulate="given", weights=denominators if given_before else None)
    agree(step(state, parts), right)


@pytest.mark.parametrize("loop", ["python", "scan"])
def test_a_leading_dimension_of_micro_batches_is_the_whole_batch(loop):
    model, batch = make_model(), make_batch(12)
    state = ps.init_state(model, OPTIMIZER, seed=3)
    step = step_of(model, accumulate="given", loop=loop)
    agree(step(state, batch.reshape(3, 4)), step_of(model)(state, batch))


def test_clipping_and_the_optimizer_run_once_a_window(whole):
    model, _, _ = whole
    calls = []
    seen = ps.GradientTransformation(
        lambda params: TensorDict({}),
        lambda grads, state, params, context: (calls.append(1) or grads, state),
    )
    optimizer = ps.chain(seen, ps.sgd(0.1))
    after, _ = ps.train_step(model, objective, optimizer, microbatch=2)(
        ps.init_state(model, optimizer, seed=0), make_batch()
    )
    assert len(calls) == 1
    assert (int(after.step), int(after.calls)) == (1, 1)


def test_denominators_beforehand_need_one_backward_pass_a_micro_batch(whole, monkeypatch):
    model, state, _ = whole
    passes = []
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or real(*a, **k))
    step_of(model, accumulate=3, weights=denominators)(state, make_batch())
    assert len(passes) == 3
    step_of(model, accumulate=3)(state, make_batch())
    assert len(passes) == 3 + 3 * 3


def test_a_gradient_over_given_denominators_is_divided(whole):
    model, state, _ = whole
    gradient = ps.grad_step(model, objective, accumulate=2, weights=denominators)(state, make_batch())
    assert gradient.weight == ()
    with pytest.raises(TypeError, match="cannot be merged"):
        gradient.merge(gradient)


@pytest.mark.compiler
def test_a_scanned_step_compiles_to_the_same():
    model, optimizer = nn.Linear(3, 2).double(), ps.sgd(0.5)
    step = ps.train_step(model, objective, optimizer, microbatch=3, loop="scan", weights=denominators)
    state = ps.init_state(model, optimizer, seed=3)
    agree(ps.compile(step)(state, make_batch()), step(state, make_batch()), 1e-10, state)


@pytest.mark.compiler
def test_denominators_that_are_wrong_make_a_compiled_gradient_nan():
    model, optimizer = nn.Linear(3, 1, bias=False).double(), ps.sgd(0.5)
    step = ps.train_step(model, one_term, optimizer, accumulate=2, weights=lambda b: torch.tensor(5.0))
    with pytest.raises(ps.NonFiniteError, match=r"not finite in 'weight'.*look whether they are what"):
        ps.compile(step)(ps.init_state(model, optimizer, seed=0), make_batch())


def test_a_bare_loss_cannot_be_cut():
    model = make_model()
    state = ps.init_state(model, OPTIMIZER, seed=0)
    for options in ({"microbatch": 20}, {"accumulate": "given"}, {"weights": lambda b: torch.tensor(1.0)}):
        step = ps.train_step(model, lambda model, batch: model(batch["x"]).mean(), OPTIMIZER, **options)
        data = [make_batch()] if "accumulate" in options else make_batch()
        with pytest.raises(TypeError, match="bare tensor"):
            step(state, data)


def call(**options):
    model = make_model()
    data = options.pop("data", make_batch())
    return step_of(model, **options)(ps.init_state(model, OPTIMIZER, seed=0), data)


WRONG = {
    "both": (lambda: call(accumulate=2, microbatch=2), ValueError, "exclude each other, got accumulate=2"),
    "microbatch zero": (lambda: call(microbatch=0), ValueError, "microbatch must be an int of at least 1, got 0"),
    "microbatch a float": (lambda: call(microbatch=2.0), TypeError, "microbatch must be an int"),
    "another word": (lambda: call(accumulate="cut"), ValueError, "a number of micro-batches or 'given', got 'cut'"),
    "a loop": (lambda: call(accumulate=2, loop="while"), ValueError, "loop must be one of 'python', 'scan'"),
    "a scan over one": (lambda: call(loop="scan"), ValueError, "give accumulate= or microbatch="),
    "a scan over a list": (
        lambda: call(accumulate="given", loop="scan", data=[make_batch()]),
        ValueError,
        "one leading dimension of micro-batches",
    ),
    "weights no function": (lambda: call(weights=3.0), TypeError, "weights must be a function batch ->"),
    "too few weights": (
        lambda: call(accumulate=2, weights=lambda b: torch.tensor(1.0)),
        ValueError,
        "for each term of the loss, which has 3, got 1",
    ),
    "a weight that is no tensor": (
        lambda: call(accumulate=2, weights=lambda b: (1.0, None, None)),
        ValueError,
        "0-d tensor for each term",
    ),
    "wrong weights": (
        lambda: call(accumulate=2, weights=lambda b: (torch.tensor(5.0), b["boxes"].sum(), None)),
        ValueError,
        "the objective counted",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_message(case):
    make, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.compiler
def test_one_scanned_step_serves_states_of_several_forms():
    model = nn.Linear(3, 1, bias=False).double()
    step = ps.grad_step(model, one_term, microbatch=4, loop="scan")
    compiled = ps.compile(step)
    for optimizer in (ps.sgd(0.1), ps.adamw(0.1)):
        state = ps.init_state(model, optimizer, seed=0)
        agree(compiled(state, make_batch()), step(state, make_batch()), 1e-10)


@pytest.mark.compiler
def test_a_scanned_step_may_be_vmapped_over_states():
    model, optimizer = nn.Linear(3, 1, bias=False).double(), ps.sgd(0.5)
    step = torch.vmap(ps.train_step(model, one_term, optimizer, microbatch=4, loop="scan"), in_dims=(0, None))
    states = torch.stack([ps.init_state(model, optimizer, seed=seed) for seed in (1, 2)])
    states.params["weight"][1] *= 2
    got, right = ps.compile(step)(states, make_batch())[0], step(states, make_batch())[0]
    for name, leaf in right.params.items():
        torch.testing.assert_close(got.params[name], leaf, rtol=1e-12, atol=1e-14)
