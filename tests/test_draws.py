"""Random operations inside a module, drawn from the state's key."""

from __future__ import annotations

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
        (lambda x: torch.randint(0, 2, (1,)), "randint"),
        (lambda x: torch.randperm(3), "randperm"),
        (lambda x: torch.normal(x, 1.0), "normal"),
        (lambda x: torch.empty(2).uniform_(), "uniform_"),
        (lambda x: F.gumbel_softmax(x), "gumbel_softmax"),
        (lambda x: torch.distributions.Beta(torch.ones(1), torch.ones(1)).sample(), "_sample_dirichlet"),
        (lambda x: torch.ops.aten.rand([2]), "rand"),
        (lambda x: torch.rand(2, generator=torch.Generator()), "generator"),
    ],
)
def test_what_it_cannot_draw_is_refused_by_name_and_the_generator_put_back(draw, name):
    def noisy(model, batch):
        return ps.mean(model(batch) * draw(batch).sum().to(batch.dtype))

    model = nn.Linear(4, 3)
    before = torch.get_rng_state()
    with pytest.raises(ps.UnkeyedDrawError, match=name):
        ps.train_step(model, noisy, ps.sgd(0.1))(ps.init_state(model, ps.sgd(0.1), seed=0), torch.ones(2, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_an_rnn_with_dropout_is_refused_and_without_it_is_not():
    class Last(nn.Module):
        def __init__(self, dropout):
            super().__init__()
            self.rnn = nn.LSTM(4, 5, 2, batch_first=True, dropout=dropout)

        def forward(self, x):
            return self.rnn(x)[0]

    batch = torch.randn(3, 6, 4)
    quiet, loud = Last(0.0), Last(0.2)
    make_step(quiet)(ps.init_state(quiet, ps.sgd(0.1), seed=0), batch)
    with pytest.raises(ps.UnkeyedDrawError, match="lstm"):
        make_step(loud)(ps.init_state(loud, ps.sgd(0.1), seed=0), batch)
    ps.eval_step(loud, objective)(ps.init_state(loud, ps.sgd(0.1), seed=0), batch)


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
    model = nn.Sequential(nn.Linear(4, 8), FusedAttention(), nn.Linear(8, 1)).double()
    optimizer = ps.sgd(0.1)
    step = ps.train_step(model, lambda model, x: ps.mean(model(x).square()), optimizer)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    laws.check_same(step, ps.compile(step), ps.init_state(model, optimizer, seed=0), x)
