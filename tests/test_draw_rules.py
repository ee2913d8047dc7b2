"""Every random operation that a module may call: the distribution of torch's own, from the state's key alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributions as D
from torch import nn

import purestep as ps
from purestep import laws, random
from purestep.draws import Draws

KEY, CALLS = random.key(5), torch.tensor(0)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def squares(n):
    return torch.arange(36.0).view(6, 6).expand(n, 1, 6, 6)


# Each: the number of examples -> a tensor whose dimension 0 runs over the examples.
PLAIN = {
    "rand": lambda n: torch.rand(n, 4),
    "rand, a tuple": lambda n: torch.rand((n, 4), dtype=torch.float64),
    "rand, size": lambda n: torch.rand(size=(n, 4)),
    "randn": lambda n: torch.randn(n, 4),
    "rand_like": lambda n: torch.rand_like(ones(n, 4)),
    "randn_like": lambda n: torch.randn_like(ones(n, 4, dtype=torch.float64)),
    "rand, complex": lambda n: torch.view_as_real(torch.rand(n, 4, dtype=torch.complex64)),
    "randn, complex": lambda n: torch.view_as_real(torch.randn(n, 4, dtype=torch.complex128)),
    "randint": lambda n: torch.randint(7, (n, 4)),
    "randint, from": lambda n: torch.randint(-3, 7, (n, 4), dtype=torch.int32),
    "randint, named": lambda n: torch.randint(low=1, high=3, size=(n, 4)),
    "randint_like": lambda n: torch.randint_like(ones(n, 4), 9),
    "randint_like, from": lambda n: torch.randint_like(ones(n, 4), 5, 9),
    "normal": lambda n: torch.normal(2.0, 3.0, (n, 4)),
    "normal, complex": lambda n: torch.view_as_real(torch.normal(2.0, 3.0, (n, 4), dtype=torch.complex64)),
    "normal of tensors": lambda n: torch.normal(torch.arange(4.0).expand(n, 4), 2 * ones(n, 4)),
    "normal of a mean": lambda n: torch.normal(ones(n, 4), 0.5),
    "normal of a deviation": lambda n: torch.normal(1.0, ones(n, 4)),
    "bernoulli": lambda n: torch.bernoulli(0.3 * ones(n, 4)),
    "bernoulli, p": lambda n: torch.bernoulli(ones(n, 4), 0.8),
    "Tensor.bernoulli": lambda n: ones(n, 4).bernoulli(p=0.2),
    "multinomial": lambda n: torch.multinomial(torch.arange(6.0).expand(n, 6), 3),
    "multinomial, replacement": lambda n: torch.arange(6.0).expand(n, 6).multinomial(4, replacement=True),
    "uniform_": lambda n: torch.empty(n, 4).uniform_(-1, 3),
    "uniform_, named": lambda n: torch.empty(n, 4).uniform_(**{"from": 1, "to": 3}),
    "normal_": lambda n: torch.empty(n, 4).normal_(1, std=2),
    "uniform_, complex": lambda n: torch.view_as_real(torch.empty(n, 4, dtype=torch.complex64).uniform_(1, 3)),
    "normal_, complex": lambda n: torch.view_as_real(torch.empty(n, 4, dtype=torch.complex64).normal_(1, 2)),
    "log_normal_": lambda n: torch.empty(n, 4).log_normal_(0.5, 0.25),
    "exponential_": lambda n: torch.empty(n, 4).exponential_(2.0),
    "geometric_": lambda n: torch.empty(n, 4).geometric_(0.3),
    "cauchy_": lambda n: torch.empty(n, 4).cauchy_(1.0, 2.0).arctan(),
    "bernoulli_": lambda n: torch.empty(n, 4).bernoulli_(0.3),
    "bernoulli_, a tensor": lambda n: torch.empty(n, 4).bernoulli_(0.6 * ones(n, 4)),
    "random_": lambda n: torch.empty(n, 4).random_(),
    "random_, from": lambda n: torch.empty(n, 4, dtype=torch.uint8).random_(100, None),
    "random_, from, named": lambda n: torch.empty(n, 4, dtype=torch.uint8).random_(**{"from": 200, "to": None}),
    "random_, to": lambda n: torch.empty(n, 4, dtype=torch.int64).random_(9),
    "random_, between": lambda n: torch.empty(n, 4).random_(-4, 9),
    "gumbel_softmax": lambda n: F.gumbel_softmax(torch.arange(4.0).expand(n, 4), tau=0.7),
    "gumbel_softmax, hard": lambda n: F.gumbel_softmax(torch.arange(4.0).expand(n, 4), hard=True),
    "fractional_max_pool2d": lambda n: F.fractional_max_pool2d(
        torch.arange(36.0).view(6, 6).expand(n, 1, 6, 6), 2, (3, 3)
    ),
    "trunc_normal_": lambda n: nn.init.trunc_normal_(torch.empty(n, 4), std=0.5, a=-0.7, b=1.0),
    "kaiming_uniform_": lambda n: nn.init.kaiming_uniform_(torch.empty(n, 4), a=math.sqrt(5)),
    "kaiming_normal_": lambda n: nn.init.kaiming_normal_(torch.empty(n, 4)),
    "init.uniform_": lambda n: nn.init.uniform_(torch.empty(n, 4), -2, 2),
    "init.normal_": lambda n: nn.init.normal_(torch.empty(n, 4), 1, 2),
    "xavier_uniform_": lambda n: nn.init.xavier_uniform_(torch.empty(n, 4)) * math.sqrt(n),
    "dropout": lambda n: F.dropout(ones(n, 4), 0.3),
    "dropout, module": lambda n: nn.Dropout(0.3)(ones(n, 4)),
    "torch.dropout": lambda n: torch.dropout(ones(n, 4), 0.3, True),
    "native_dropout": lambda n: torch.native_dropout(ones(n, 4), 0.3, True)[0],
    "dropout1d": lambda n: F.dropout1d(ones(n, 4, 2), 0.3),
    "dropout1d, of one example": lambda n: F.dropout1d(ones(n, 4), 0.3),
    "dropout2d, of two dimensions": lambda n: F.dropout2d(ones(n, 4), 0.3),
    "dropout2d, of three": lambda n: F.dropout2d(ones(n, 4, 2), 0.3),
    "dropout3d, of one example": lambda n: F.dropout3d(ones(n, 2, 2, 2), 0.3),
    "dropout2d": lambda n: F.dropout2d(ones(n, 4, 2, 2), 0.3),
    "dropout3d": lambda n: F.dropout3d(ones(n, 4, 2, 2, 2), 0.3),
    "feature_dropout": lambda n: torch.feature_dropout(ones(n, 4, 2), 0.3, True),
    "alpha_dropout": lambda n: F.alpha_dropout(ones(n, 4), 0.3, True),
    "torch.alpha_dropout": lambda n: torch.alpha_dropout(ones(n, 4), 0.3, True),
    "feature_alpha_dropout": lambda n: F.feature_alpha_dropout(ones(n, 4, 2), 0.3, True),
    "rrelu": lambda n: F.rrelu(-ones(n, 4), 0.1, 0.4, True),
    "RReLU": lambda n: nn.RReLU()(-ones(n, 4)),
    "Normal": lambda n: D.Normal(ones(n, 4), 2.0).rsample(),
    "Uniform": lambda n: D.Uniform(ones(n, 4), 3.0).rsample(),
    "Categorical": lambda n: D.Categorical(logits=torch.arange(4.0).expand(n, 4)).sample(),
    "OneHotCategorical": lambda n: D.OneHotCategorical(logits=torch.arange(4.0).expand(n, 4)).sample(),
    "Bernoulli": lambda n: D.Bernoulli(0.3 * ones(n, 4)).sample(),
    "Laplace": lambda n: D.Laplace(ones(n, 4), 2.0).rsample(),
    "Exponential": lambda n: D.Exponential(ones(n, 4)).rsample(),
    "Gumbel": lambda n: D.Gumbel(ones(n, 4), 2.0).rsample(),
    "Cauchy": lambda n: D.Cauchy(ones(n, 4), 2.0).rsample().arctan(),
    "Geometric": lambda n: D.Geometric(0.3 * ones(n, 4)).sample(),
    "RelaxedBernoulli": lambda n: D.RelaxedBernoulli(torch.tensor(0.5), logits=ones(n, 4)).rsample(),
    "MultivariateNormal": lambda n: D.MultivariateNormal(torch.zeros(n, 2), torch.eye(2) + 0.5).rsample(),
    "Gamma": lambda n: D.Gamma(0.5 + torch.arange(4.0).expand(n, 4), 2.0).rsample(),
    "Beta": lambda n: D.Beta(2 * ones(n, 4), 0.5 * ones(n, 4)).rsample(),
    "Dirichlet": lambda n: D.Dirichlet(torch.tensor([0.3, 1.0, 4.0]).expand(n, 3)).rsample(),
    "StudentT": lambda n: D.StudentT(5 * ones(n, 4)).rsample().arctan(),
    "Poisson": lambda n: D.Poisson(torch.tensor([0.2, 3.0, 40.0]).expand(n, 3)).sample(),
    "Binomial": lambda n: D.Binomial(torch.tensor([1.0, 10.0, 200.0]).expand(n, 3), torch.tensor(0.4)).sample(),
    "NegativeBinomial": lambda n: D.NegativeBinomial(3 * ones(n, 4), 0.4).sample(),
}


def greatest_gap(first, second):
    """The Kolmogorov-Smirnov distance of two samples."""
    values = torch.cat([first, second]).unique()
    parts = [torch.searchsorted(each.sort().values, values, right=True) / len(each) for each in (first, second)]
    return float((parts[0] - parts[1]).abs().max())


@pytest.mark.parametrize("name", PLAIN)
def test_the_distribution_is_torchs_and_no_generator_is_read(name):
    draw, n = PLAIN[name], 5000
    before = torch.get_rng_state()
    with Draws(KEY, CALLS, watch=True):
        ours = draw(n)
    with Draws(KEY, CALLS):
        assert torch.equal(draw(n), ours)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs, theirs_again = draw(n), draw(n)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    # By columns, as what is drawn for one example may hang together. Two samples of 5000 are further apart than 0.05 by
    # chance once in 10^5 pairs, and the seeds are fixed.
    for column in range(theirs.reshape(n, -1).shape[1]):
        columns = (each.reshape(n, -1)[:, column].double() for each in (ours, theirs, theirs_again))
        # Rounded, as of two values a last bit would make four.
        first, second, third = (torch.round(each, decimals=5) for each in columns)
        assert greatest_gap(first, second) < 0.05
        assert greatest_gap(second, third) < 0.05


@pytest.mark.parametrize("name", PLAIN)
def test_each_example_has_its_own_wherever_the_batch_is_cut(name):
    draw = PLAIN[name]
    with Draws(KEY, CALLS):
        whole = draw(6)
    with Draws(KEY, CALLS, first=torch.tensor(2), count=3):
        part = draw(3)
    if name.startswith(("kaiming", "xavier")):  # scaled by the size of what is filled
        part, whole = part / part.abs().max(), whole[2:5] / whole[2:5].abs().max()
        torch.testing.assert_close(part, whole)
    else:
        torch.testing.assert_close(part, whole[2:5], rtol=1e-6, atol=0)


def test_a_binomial_of_no_trials_or_sure_ones_is_what_it_must_be():
    count = torch.tensor([0.0, 7.0, 7.0, 500.0])
    p = torch.tensor([0.5, 0.0, 1.0, 1.0])
    with Draws(KEY, CALLS):
        assert torch.equal(torch.binomial(count, p), torch.tensor([0.0, 0.0, 7.0, 500.0]))
        assert torch.equal(torch.poisson(torch.zeros(3)), torch.zeros(3))


def test_a_gamma_number_is_differentiable_by_its_concentration():
    """The pathwise derivative: that of the mean, which is the concentration itself, is 1."""

    def mean(alpha):
        with Draws(KEY, CALLS):
            return D.Gamma(alpha.expand(20_000), torch.ones((), dtype=torch.float64)).rsample().mean()

    for alpha in (0.4, 3.0):
        slope = torch.func.grad(mean)(torch.tensor(alpha, dtype=torch.float64))
        assert float(slope) == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8])
def test_random_integers_reach_all_that_the_dtype_holds(dtype):
    most = 1 if dtype == torch.bool else torch.iinfo(dtype).max
    with Draws(KEY, CALLS):
        drawn = torch.empty(20_000, dtype=dtype).random_()
    assert drawn.unique().tolist() == list(range(most + 1))


def test_what_is_given_as_out_holds_the_result():
    draws = {
        "rand": lambda out: torch.rand(3, out=out),
        "normal": lambda out: torch.normal(10.0, 0.1, (3,), out=out),
        "bernoulli": lambda out: torch.bernoulli(torch.full((3,), 0.5), out=out),
    }
    for name, draw in draws.items():
        out = torch.full((3,), math.nan)
        with Draws(KEY, CALLS):
            result = draw(out)
        assert result is out, name
        assert not out.isnan().any(), name
    with Draws(KEY, CALLS):
        assert (draws["normal"](torch.empty(3)) > 9).all()


# What torch refuses: the call, and what is said.
REFUSED = {
    "rand of integers": (lambda: torch.rand(2, dtype=torch.int64), "the dtype of rand must be floating, got torch.int"),
    "rand_like": (lambda: torch.rand_like(torch.ones(2).long()), "the dtype of rand_like must be floating"),
    "uniform_, a dtype": (lambda: torch.ones(2).int().uniform_(), "the dtype of uniform_ must be floating"),
    "exponential_, a dtype": (lambda: torch.ones(2).int().exponential_(), "the dtype of exponential_ must be floating"),
    "cauchy_, a dtype": (lambda: torch.ones(2).int().cauchy_(), "the dtype of cauchy_ must be floating"),
    "randint": (lambda: torch.randint(5, 3, (2,)), "low must be below high"),
    "randint, a dtype": (
        lambda: torch.randint(300, (2,), dtype=torch.uint8),
        r"low and high of randint must be within what torch.uint8 holds, got \(0, 300\)",
    ),
    "random_": (lambda: torch.ones(2).byte().random_(-1, 9), "low and high of random_ must be within what torch.uint8"),
    "normal": (lambda: torch.normal(0.0, -1.0, (2,)), "std of normal must be at least 0, got -1.0"),
    "normal, a tensor": (lambda: torch.normal(0.0, -ones(1)), r"std of normal must be at least 0, got tensor\(\[-1"),
    "normal_": (lambda: ones(2).normal_(0, math.nan), "std of normal_ must be at least 0, got nan"),
    "log_normal_": (lambda: ones(2).log_normal_(0, 0), "std of log_normal_ must be above 0, got 0"),
    "uniform_": (lambda: ones(2).uniform_(1, 0), "from of uniform_ must be at most to, which is 0, got 1"),
    "exponential_": (lambda: ones(2).exponential_(0.0), "lambd of exponential_ must be above 0, got 0.0"),
    "geometric_": (lambda: ones(2).geometric_(1.0), "p of geometric_ must be above 0 and below 1, got 1.0"),
    "cauchy_": (lambda: ones(2).cauchy_(0, -1), "sigma of cauchy_ must be above 0, got -1"),
    "bernoulli_": (lambda: ones(2).bernoulli_(1.5), "p of bernoulli_ must be from 0 to 1, got 1.5"),
    "bernoulli": (lambda: torch.bernoulli(2 * ones(2)), "p of bernoulli must be from 0 to 1, got tensor"),
    "poisson": (lambda: torch.poisson(-ones(2)), "input of poisson must be at least 0"),
    "multinomial": (lambda: torch.multinomial(-ones(2), 1), "input of multinomial must be finite and at least 0"),
    "multinomial, infinite": (
        lambda: torch.multinomial(torch.tensor([1.0, math.inf]), 1, replacement=True),
        "input of multinomial must be finite",
    ),
    "multinomial, zeros": (
        lambda: torch.multinomial(0 * ones(2), 1, replacement=True),
        "input of multinomial must be above 0 somewhere",
    ),
    "rrelu": (lambda: F.rrelu(ones(2), 0.5, 0.1, True), "lower of rrelu must be at most upper, which is 0.1, got 0.5"),
    "dropout": (lambda: F.dropout(ones(2), 1.5), "dropout probability has to be between 0 and 1"),
    "dropout1d": (lambda: F.dropout1d(ones(1, 2, 3, 4)), "input of dropout1d must be of 2 or 3 dimensions, got"),
    "feature_dropout": (lambda: torch.feature_dropout(ones(2), 0.5, True), "must be of 2 dimensions or more"),
    "attention": (
        lambda: F.scaled_dot_product_attention(
            ones(1, 2, 2), ones(1, 2, 2), ones(1, 2, 2), ones(2, 2), dropout_p=0.5, is_causal=True
        ),
        "attn_mask of scaled_dot_product_attention must be None where is_causal=True",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises((RuntimeError, ValueError)):
        call()
    with Draws(KEY, CALLS), pytest.raises(ValueError, match=message):
        call()


def test_too_few_weights_for_a_draw_without_replacement_are_refused():
    """Torch draws one that has no weight."""
    right = "num_samples of multinomial must be at most the number of weights above 0 where replacement=False, got 2"
    with Draws(KEY, CALLS), pytest.raises(ValueError, match=right):
        torch.multinomial(torch.tensor([1.0, 0.0, 0.0]), 2)


class Everything(nn.Module):
    """One draw of each kind of rule, for a compiled step."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x):
        n = len(x)
        y = self.line(x) + torch.empty_like(x).uniform_(-1, 1)
        y = y * torch.empty(n, 1).bernoulli_(0.7) + torch.randint(0, 5, (n, 4))
        return F.gumbel_softmax(y) * torch.multinomial(torch.ones(n, 6), 4, replacement=True)


@pytest.mark.compiler
def test_a_compiled_step_draws_what_the_eager_one_does():
    torch.manual_seed(0)
    model, optimizer = Everything().double(), ps.sgd(0.1)
    step = ps.train_step(model, lambda model, x: ps.mean(model(x).square()), optimizer)
    x = torch.randn(6, 4, dtype=torch.float64)
    laws.check_same(step, ps.compile(step), ps.init_state(model, optimizer, seed=0), x)


def build():
    return nn.Sequential(
        nn.Linear(4, 8), nn.Conv1d(8, 4, 3), nn.LSTM(4, 5), nn.Embedding(7, 4), nn.TransformerEncoderLayer(8, 2, 16)
    )


def test_a_module_is_a_function_of_its_seed():
    before = torch.get_rng_state()
    first, again, other = ps.init_params(build, 3), ps.init_params(build, 3), ps.init_params(build, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    theirs = build()
    for (name, one), two, three, four in zip(
        first.named_parameters(), again.parameters(), other.parameters(), theirs.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert one.requires_grad
        assert one.is_leaf
        assert one.dtype == four.dtype
        if one.std() > 0:
            assert not torch.equal(one, three), name
            # Of 8 numbers or more, the spread is that of torch's within a factor of 3.
            assert 1 / 3 < float((one.std() / four.std()).detach()) < 3, name


@pytest.mark.parametrize(
    ("make", "seed", "error", "message"),
    [
        (nn.Linear(2, 2), 0, TypeError, "make must be a module's class or a function that builds a module"),
        ("Linear", 0, TypeError, "make must be a module's class"),
        (lambda: 3, 0, TypeError, "make must return a torch.nn.Module, got 3"),
        (nn.Identity, -1, ValueError, "seed must be an int of at least 0"),
        (nn.Identity, 0.5, TypeError, "seed must be an int"),
    ],
)
def test_what_cannot_be_initialised_is_refused(make, seed, error, message):
    with pytest.raises(error, match=message):
        ps.init_params(make, seed)


@pytest.mark.compiler
def test_gamma_numbers_are_refused_by_name_where_they_are_compiled():
    """Dynamo shows `torch._standard_gamma` to no mode."""
    model, optimizer = nn.Linear(4, 4), ps.sgd(0.1)

    def objective(model, x):
        return ps.mean(D.Gamma(1 + model(x).square(), 1.0, validate_args=False).rsample())

    step, state = ps.train_step(model, objective, optimizer), ps.init_state(model, optimizer, seed=0)
    step(state, torch.ones(2, 4))
    with pytest.raises(ps.UnkeyedDrawError, match="_standard_gamma"):
        ps.compile(step)(state, torch.ones(2, 4))
