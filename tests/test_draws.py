"""Random operations inside a module, drawn from the state's key."""

from __future__ import annotations

import random as python_random

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import purestep as ps
from purestep import laws, random
from purestep.draws import Draws

KEY, CALLS = random.key(3), torch.tensor(0)


class Net(nn.Module):
    """A layer, one random module after it, and a head."""

    def __init__(self, middle, width=8):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, width), middle, nn.Linear(width, 3)

    def forward(self, x):
        hidden = self.middle(self.first(x))
        return self.last(hidden)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class FusedAttention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if self.training else 0.0, is_causal=True)


class Channels(nn.Module):
    """Dropout of whole channels, on ``(examples, channels, length)``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x, 0.4, self.training)


MIDDLES = {
    "dropout": lambda: nn.Dropout(0.4),
    "dropout in place": lambda: nn.Dropout(0.4, inplace=True),
    "dropout1d": lambda: Channels(F.dropout1d),
    "alpha": lambda: nn.AlphaDropout(0.4),
    "feature alpha": lambda: nn.FeatureAlphaDropout(0.4),
    "attention": Attention,
    "fused attention": FusedAttention,
    "transformer layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True),
}


@pytest.fixture(params=MIDDLES.values(), ids=MIDDLES.keys())
def job(request):
    torch.manual_seed(0)
    model = Net(request.param()).double()
    return model, torch.randn(7, 5, 4, dtype=torch.float64)


def objective(model, batch):
    return ps.mean(model(batch).square())


def make_step(model, accumulate=1):
    return ps.train_step(model, objective, ps.sgd(0.1), accumulate=accumulate)


def test_a_step_is_pure_and_no_cut_changes_a_mask(job):
    model, batch = job
    state = ps.init_state(model, ps.sgd(0.1), seed=5)
    laws.check_pure(make_step(model), state, batch, model=model)
    laws.check_accumulation(lambda k: make_step(model, k), state, batch, accumulate=(2, 3, 7))


def test_it_is_random_where_it_should_be(job):
    model, batch = job
    state, step = ps.init_state(model, ps.sgd(0.1), seed=5), make_step(model)
    losses = {
        float(step(each, batch)[1]["loss"])
        for each in (state, state.replace(calls=state.calls + 1), state.replace(key=random.key(6)))
    }
    assert len(losses) == 3
    evaluated = ps.eval_step(model, objective)
    assert float(evaluated(state, batch)["loss"]) == pytest.approx(
        float(model.eval()(batch).square().mean()), rel=1e-12
    )


def test_a_mask_per_micro_batch_is_caught(monkeypatch):
    """The mutant: draws that do not know their place in the batch."""
    whole = Draws.__init__
    monkeypatch.setattr(Draws, "__init__", lambda self, key, calls, **place: whole(self, key, calls))
    model = Net(nn.Dropout(0.4)).double()
    state, batch = ps.init_state(model, ps.sgd(0.1), seed=5), torch.randn(6, 4, dtype=torch.float64)
    with pytest.raises(laws.LawViolation):
        laws.check_accumulation(lambda k: make_step(model, k), state, batch, accumulate=(2,))


def test_dropout_keeps_the_mean_and_drops_what_it_should():
    ones = torch.ones(400, 500)
    for function in (F.dropout, F.dropout1d):
        with Draws(KEY, CALLS):
            dropped = function(ones, 0.3, True)
        assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
        assert dropped.mean().item() == pytest.approx(1, abs=0.01 if function is F.dropout else 0.15)
    with Draws(KEY, CALLS):
        kept = F.alpha_dropout(torch.randn(1000, 500), 0.3, True)
        nothing, everything = F.dropout(ones, 0.0, True), F.dropout(ones, 1.0, True)
    assert (kept.mean().item(), kept.std().item()) == pytest.approx((0, 1), abs=0.02)
    assert torch.equal(nothing, ones)
    assert not everything.any()


def test_two_sites_have_two_streams_and_a_stream_can_begin_anywhere():
    with Draws(KEY, CALLS):
        first, second = torch.rand(1000), torch.rand(1000)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 0.1
    with Draws(KEY, CALLS, first=2, count=3):
        part = F.dropout(torch.ones(3, 5), 0.5, True)
    with Draws(KEY, CALLS):
        whole = F.dropout(torch.ones(9, 5), 0.5, True)
    assert torch.equal(part, whole[2:5])


def test_attention_whose_row_is_wholly_masked_is_zero_as_torchs_is():
    query = torch.randn(1, 1, 3, 4)
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    with Draws(KEY, CALLS):
        result = F.scaled_dot_product_attention(query, query, query, attn_mask=mask, dropout_p=0.1)
    assert not result.isnan().any()
    assert not result[0, 0, 1].any()


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda x: torch.ops.aten.rand([2]), "rand"),
        (lambda x: torch.rand(2, generator=torch.Generator()), "rand is given a generator"),
        (lambda x: torch.empty(2).uniform_(generator=torch.Generator()), "uniform_ is given a generator"),
        (lambda x: torch.tensor(python_random.random()), "Python's random"),
        (lambda x: torch.tensor(numpy.random.rand()), "numpy.random"),
        (
            lambda x: torch.ops.aten.rand([2]) + python_random.random() + numpy.random.rand(),
            "Python's random and numpy.random",
        ),
    ],
)
def test_what_it_cannot_draw_is_refused_by_name_and_the_generator_put_back(draw, name):
    def noisy(model, batch):
        return ps.mean(model(batch) * draw(batch).sum().to(batch.dtype))

    model = nn.Linear(4, 3)
    before = torch.get_rng_state(), python_random.getstate(), numpy.random.get_state()[1].copy()
    with pytest.raises(ps.UnkeyedDrawError, match=name):
        ps.train_step(model, noisy, ps.sgd(0.1))(ps.init_state(model, ps.sgd(0.1), seed=0), torch.ones(2, 4))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == python_random.getstate()
    assert (before[2] == numpy.random.get_state()[1]).all()


@pytest.mark.compiler
def test_a_graph_that_draws_is_refused_with_the_line_that_does():
    def noisy(model, batch):
        return ps.mean(model(batch) * torch.ops.aten.rand([2, 3]))

    model = nn.Linear(4, 3)
    step, state = ps.train_step(model, noisy, ps.sgd(0.1)), ps.init_state(model, ps.sgd(0.1), seed=0)
    with pytest.raises(ps.UnkeyedDrawError, match=r"aten.rand.*test_draws.py"):
        ps.compile(step)(state, torch.ones(2, 4))


class Named(nn.Module):
    """Two calls of one dropout, one of another, and noise of its own; and an unrelated part that may draw or not."""

    def __init__(self, unrelated):
        super().__init__()
        self.unrelated, self.line = unrelated, nn.Linear(4, 4)
        self.inner, self.outer = nn.Sequential(nn.Dropout(0.5)), nn.Dropout(0.5)

    def forward(self, x):
        x = self.unrelated(x)
        hidden = self.line(x)
        ones = torch.ones(50, 4)
        self.seen = torch.stack([self.inner(ones), self.inner(ones), self.outer(ones), torch.rand(50, 4)])
        return hidden


def seen(model, run=lambda model: model):
    masks = []

    def objective(model, x):
        loss = ps.mean(model(x).sum(-1))
        masks.append(model.seen)
        return loss

    ps.train_step(model, objective, ps.sgd(0.1))(ps.init_state(model, ps.sgd(0.1), seed=0), torch.ones(2, 4))
    return masks[0]


def test_a_mask_belongs_to_the_name_of_its_module_and_to_the_call():
    torch.manual_seed(0)
    without, with_it = seen(Named(nn.Identity())), seen(Named(nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.2))))
    assert torch.equal(without, with_it)
    assert len({tuple(mask.flatten().tolist()) for mask in without}) == 4


def test_call_sites_that_are_one_stream_are_caught(monkeypatch):
    """The mutant: every site is the same."""
    monkeypatch.setattr("purestep.draws._sites.Call.next_site", lambda call: 0)
    masks = seen(Named(nn.Identity()))
    assert torch.equal(masks[0], masks[1])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "RNN, relu", "LSTM, projected", "LSTM, both ways"])
@pytest.mark.parametrize("layout", ["batch first", "length first", "packed"])
def test_a_recurrent_network_is_torchs_with_masks_between_its_layers(kind, layout):
    options = {"RNN, relu": {"nonlinearity": "relu"}, "LSTM, projected": {"proj_size": 3}}.get(kind, {})
    options |= {"bidirectional": True} if kind == "LSTM, both ways" else {}
    torch.manual_seed(0)
    net = getattr(nn, kind.split(",")[0])(4, 5, 3, dropout=0.5, batch_first=layout == "batch first", **options).double()
    x = torch.randn(6, 7, 4, dtype=torch.float64)  # 6 examples
    given = {"batch first": x, "length first": x.transpose(0, 1)}.get(
        layout, nn.utils.rnn.pack_padded_sequence(x, [7, 7, 5, 3, 2, 1], batch_first=True)
    )

    def output(result):
        return result[0].data if layout == "packed" else result[0]

    with Draws(KEY, CALLS, watch=True):
        whole = net(given)
    with Draws(KEY, CALLS):
        assert torch.equal(output(whole), output(net(given)))
    assert not torch.allclose(output(whole), output(net.eval()(given)))
    net.train().dropout = 1e-12  # of which no entry is
    with Draws(KEY, CALLS):
        full = net(given)
    torch.testing.assert_close(output(full), output(net.eval()(given)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(full[1], net.eval()(given)[1], rtol=1e-9, atol=1e-12)
    if layout != "packed":
        dim = 0 if layout == "batch first" else 1
        net.train().dropout = 0.5
        with Draws(KEY, CALLS, first=2, count=3):
            part = net(given.narrow(dim, 2, 3))
        torch.testing.assert_close(part[0], whole[0].narrow(dim, 2, 3), rtol=1e-12, atol=0)


def test_examples_run_over_the_dimension_that_is_said():
    x = torch.ones(4, 6, 3)  # (length, batch, channels)
    with Draws(KEY, CALLS), random.examples(dim=1):
        whole, noise = F.dropout(x), torch.rand(4, 6)
    with Draws(KEY, CALLS, first=2, count=2):
        by_shape = F.dropout(x[:, 2:4])
        with random.examples(dim=None):
            torch.rand(2, 4)
    with Draws(KEY, CALLS, first=2, count=2), random.examples(dim=1):
        part, part_of_noise = F.dropout(x[:, 2:4]), torch.rand(4, 2)
        with pytest.raises(ValueError, match=r"examples\(dim=1\).*shape \(4, 3\) beside 2 examples"):
            torch.rand(4, 3)
    assert torch.equal(part, whole[:, 2:4])
    assert torch.equal(part_of_noise, noise[:, 2:4])
    assert not torch.equal(by_shape, whole[:, 2:4])
    with Draws(KEY, CALLS, first=2, count=2), random.examples(dim=None):
        shared = torch.rand(2, 4)
    with Draws(KEY, CALLS), random.examples(dim=None):
        assert torch.equal(shared, torch.rand(2, 4))


def test_what_is_said_of_the_examples_can_be_said_again_within_itself():
    said = random.examples(dim=None)
    with Draws(KEY, CALLS, first=2, count=2) as mode:
        before = mode.examples_dim
        with said:
            with said:
                pass
            assert mode.examples_dim is None
        assert mode.examples_dim == before


@pytest.mark.parametrize("dim", [1.0, True, "0"])
def test_a_bad_dimension_is_refused(dim):
    with pytest.raises(TypeError, match="dim must be an int or None"):
        random.examples(dim=dim)


def test_attention_of_length_first_layers_follows_the_examples():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.4).double()
    x = torch.randn(5, 6, 8, dtype=torch.float64)  # (length, batch, channels)
    with Draws(KEY, CALLS), random.examples(dim=1):
        whole = layer(x)
    with Draws(KEY, CALLS, first=3, count=3), random.examples(dim=1):
        part = layer(x[:, 3:])
    torch.testing.assert_close(part, whole[:, 3:], rtol=1e-12, atol=1e-14)


def test_activation_checkpointing_is_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return checkpoint(lambda y: F.dropout(y, 0.5, True), self.inner(x), use_reentrant=False)

    model = Block()
    with pytest.raises(RuntimeError, match=r"torch.utils.checkpoint cannot be used inside a pure step"):
        make_step(model)(ps.init_state(model, ps.sgd(0.1), seed=0), torch.randn(2, 4))


def test_an_objective_and_an_optimizer_draw_anew_at_every_call():
    keys = []

    def objective(model, batch, *, context):
        keys.append(tuple(context.key.tolist()))
        return ps.mean(model(batch))

    def update(grads, state, params, context):
        keys.append(tuple(context.key.tolist()))
        return params, state

    optimizer = ps.Optimizer(ps.sgd(0.1).init, update)
    model = nn.Linear(4, 1)
    step, state = ps.train_step(model, objective, optimizer), ps.init_state(model, optimizer, seed=0)
    for _ in range(3):
        state, _ = step(state, torch.ones(2, 4))
    assert len(set(keys)) == 6


EXAMPLES = {
    "rand": lambda n: torch.rand(n, 1),
    "randn": lambda n: torch.randn(n, 1),
    "rand_like": lambda n: torch.rand_like(torch.zeros(n, 1)),
    "bernoulli": lambda n: torch.bernoulli(torch.full((n, 1), 0.5)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_plain_draw_as_long_as_the_batch_is_one_for_each_example(name):
    """Stochastic depth, and the noise of an autoencoder: cutting the batch changes no number."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 1).double()

        def forward(self, x):
            return self.line(x) * EXAMPLES[name](len(x))

    model, x = Noisy(), torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    losses = [
        float(ps.train_step(model, lambda m, x: ps.mean(m(x)), ps.sgd(0.1), accumulate=k)(state, x)[1]["loss"])
        for k in (1, 2, 3, 6)
    ]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


@pytest.mark.compiler
def test_attention_with_dropout_compiles():
    class Both(nn.Module):
        """With dropout, and without: the kernel carries the tag of a random operation all the same."""

        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x) + FusedAttention()(x)

    model = nn.Sequential(nn.Linear(4, 8), Both(), nn.Linear(8, 1)).double()
    optimizer = ps.sgd(0.1)
    step = ps.train_step(model, lambda model, x: ps.mean(model(x).square()), optimizer)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    laws.check_same(step, ps.compile(step), ps.init_state(model, optimizer, seed=0), x)
