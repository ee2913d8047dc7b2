"""check_objective: what it takes, and what it finds out, each on an objective that somebody would write."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation

LENGTH = 7


def make_model(norm=False, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        middle = nn.BatchNorm1d(6) if norm else nn.Dropout(dropout)
        return nn.Sequential(nn.Linear(4, 6), middle, nn.Tanh(), nn.Linear(6, 3)).double()


def make_batch(length=LENGTH):
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(length, 4, generator=generator, dtype=torch.float64),
        "y": torch.randint(0, 3, (length,), generator=generator),
        "kept": torch.arange(length) % 3 != 1,
        "weight": torch.rand(length, generator=generator, dtype=torch.float64),
    }


def nats(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def one():
    return torch.ones((), dtype=torch.float64)


@given(problem=laws.problems(min_length=2))
def test_every_objective_of_the_strategies_passes(problem):
    laws.check_objective(problem.model, problem.objective, problem.batch)


def several(model, batch, context):
    penalty = sum(p.square().sum() for p in model.parameters())
    loss = ps.mean(nats(model, batch), where=batch["kept"]) + 0.1 * ps.mean(nats(model, batch), weight=batch["weight"])
    return loss + 0.01 * ps.once(penalty) - 0.1 * ps.once(context.step.double() + 1), {"anything": loss.value()}


def test_terms_once_dropout_context_and_metrics_pass():
    model, before = make_model(dropout=0.4), make_batch()
    batch = TensorDict(make_batch(), batch_size=[LENGTH])
    laws.check_objective(model, several, batch)
    laws.check_objective(model, several, make_batch(), trainable="3.*")
    laws.check_objective(model, several, make_batch(), state=ps.init_state(model, ps.adamw(0.1), seed=4))
    assert all(torch.equal(batch[name], leaf) for name, leaf in before.items())


def test_other_dtypes_are_allowed_their_roundings():
    batch = {name: leaf.float() if leaf.is_floating_point() else leaf for name, leaf in make_batch().items()}
    laws.check_objective(make_model(dropout=0.4).float(), several, batch)


def mean_of_means(model, batch):
    return ps.Mean(nats(model, batch).mean(), one())


def sum_of_sums(model, batch):
    return ps.Mean(nats(model, batch).sum(), one())


def bare(model, batch):
    return nats(model, batch).mean()


def penalty_of_the_batch(model, batch):
    return ps.mean(nats(model, batch)) + ps.once(model(batch["x"]).square().mean())


def mean_of_what_is_kept(model, batch):
    return ps.Mean(nats(model, batch)[batch["kept"]].mean() * len(batch["y"]), one() * len(batch["y"]))


def nan_of_nothing(model, batch):
    return ps.Mean(nats(model, batch).mean() * len(batch["y"]), one() * len(batch["y"]))


def drops_a_dimension(model, batch):
    return ps.mean(model(batch["x"]).sum(-1, keepdim=True).squeeze())


def noise(model, batch):
    """Its numbers run over the features first, so nobody can tell that they are an example's."""
    return ps.mean(model(batch["x"] + torch.randn_like(batch["x"].T.contiguous()).T))


def terms_that_vary(model, batch):
    loss = ps.mean(nats(model, batch))
    return loss + loss if len(batch["y"]) > 3 else loss


def detached_coupling(model, batch):
    pull = model(batch["x"]).sum(-1)
    pull = pull * pull.mean()
    return ps.mean(nats(model, batch) + pull - pull.detach())


def contrastive(model, batch):
    codes = F.normalize(model(batch["x"]), dim=-1)
    return ps.mean(F.cross_entropy(codes @ codes.T, torch.arange(len(codes)), reduction="none"))


def balance(model, batch):
    return ps.mean(nats(model, batch)) + 0.1 * ps.once(model(batch["x"]).softmax(-1).mean(0).square().sum())


def weights_that_add_up_to_one(model, batch):
    return ps.mean(nats(model, batch), weight=batch["weight"] / batch["weight"].sum())


def weight_with_a_gradient(model, batch):
    return ps.Mean(nats(model, batch).sum(), model(batch["x"]).exp().sum())


def weight_by_the_model(model, batch):
    values = nats(model, batch)
    return ps.mean(values, weight=values.detach())


def writes_into_the_batch(model, batch):
    batch["x"].mul_(2)
    return ps.mean(nats(model, batch))


def adds_to_the_batch(model, batch):
    batch["extra"] = batch["x"]
    return ps.mean(nats(model, batch))


def changes_the_default_dtype(model, batch):
    torch.set_default_dtype(torch.float64)
    return ps.mean(nats(model, batch))


SUM, COUPLED, WEIGHTS = (
    "law 2 (a sum over",
    "law 2 (examples are not coupled)",
    "law 2 (weights are free of parameters)",
)
# The objective: what the message says, and what it must not say.
WRONG = {
    mean_of_means: ((f"{SUM} examples): term 0 on examples 0 to 1 cut into 1 + 1", "return ps.mean(values)"), COUPLED),
    sum_of_sums: ((SUM, "weight adds up to 2 and is 1", "as if its values were reduced"), "off by"),
    bare: ((SUM, "a bare tensor", 'reduction="none"'), COUPLED),
    penalty_of_the_batch: ((f"{SUM} examples): term 1", "the same in every part is ps.once"), "term 0"),
    mean_of_what_is_kept: ((SUM, "term 0 on examples 0 to 1 cut into 1 + 1", "where=..."), "draws"),
    nan_of_nothing: ((SUM, "an empty part has total nan and weight 0.0"), COUPLED),
    drops_a_dimension: ((SUM, "it fails with ValueError", "cut into 1 + 6"), COUPLED),
    noise: ((SUM, "what it draws"), COUPLED),
    terms_that_vary: ((SUM, "the loss has 1 or 2 terms"), COUPLED),
    detached_coupling: ((SUM, "its gradient does not: off by", "of its norm"), WEIGHTS),
    contrastive: ((SUM, "see the coupling below", COUPLED, "depends on example 3", "two passes"), WEIGHTS),
    balance: ((COUPLED, "term 1: another example in the place of example 0 changes its total by"), "term 0"),
    weights_that_add_up_to_one: ((COUPLED, "not divided by their sum"), WEIGHTS),
    weight_with_a_gradient: ((WEIGHTS, "it carries a gradient"), SUM),
    weight_by_the_model: ((WEIGHTS, "the weight of term 0 is", "multiply the values"), SUM),
    writes_into_the_batch: (("law 1 (pure): the objective wrote into batch['x']",), "law 2"),
    adds_to_the_batch: (("law 1 (pure)", "batch['extra']"), "law 2"),
    changes_the_default_dtype: (("law 1 (pure)", "the default dtype"), "law 2"),
}


def violation_of(objective, model=None, batch=None, **options):
    with pytest.raises(LawViolation) as caught:
        laws.check_objective(model or make_model(), objective, make_batch() if batch is None else batch, **options)
    return caught.value


def found(*arguments, **options):
    return str(violation_of(*arguments, **options))


@pytest.mark.parametrize("objective", WRONG, ids=lambda objective: objective.__name__)
def test_it_finds(objective):
    said, unsaid = WRONG[objective]
    violation = violation_of(objective)
    message = str(violation)
    assert f"the objective {objective.__name__} breaks" in message
    names = {"pure": "law 1", "sum": SUM, "not coupled": COUPLED, "weights": WEIGHTS}
    assert violation.report.broken == tuple(law for law, label in names.items() if label in message)
    assert violation.by
    assert violation.on
    for part in said:
        assert part in message
    assert unsaid not in message
    assert torch.get_default_dtype() == torch.float32


def test_laws_are_chosen_by_name():
    check = functools.partial(laws.check_objective, make_model(), penalty_of_the_batch, make_batch())
    assert check(laws=["pure", "weights"]).held == ("pure", "weights")
    assert check(skip=["sum", "not coupled"]).held == ("pure", "weights")
    with pytest.raises(LawViolation) as caught:
        check(laws=["sum"])
    assert caught.value.report.broken == ("sum",)
    with pytest.raises(laws.LawDoesNotApplyError, match="'padding' does not: where= is not given"):
        check(laws=["padding"])
    with pytest.raises(ValueError, match=r"got 'sums' \(did you mean 'sum'"):
        check(skip=["sums"])


def test_an_objective_that_remembers():
    calls = []

    def remembers(model, batch):
        calls.append(1)
        return ps.mean(nats(model, batch) * len(calls))

    message = found(remembers)
    assert "law 1 (pure): term 0 has total" in message
    assert "not looked at: sum (nothing can be compared with what changes by itself)" in message


def test_an_objective_that_writes_into_the_module():
    model = make_model(norm=True)
    model[1].eval()

    def writes(bound, batch):
        model[1].running_mean.add_(1)
        return ps.mean(nats(bound, batch))

    message = found(writes, model)
    assert "law 1 (pure)" in message
    assert "model.1.running_mean" in message


def test_a_batch_norm_is_named_until_it_is_frozen():
    model = make_model(norm=True)
    message = found(several, model)
    for part in (COUPLED, "batch statistics", "('1' in training mode)", "a micro-batch can be as short"):
        assert part in message
    frozen = copy.deepcopy(model)
    frozen[1].eval()
    laws.check_objective(frozen, several, make_batch())
    assert "('1' in training mode)" in found(several, copy.deepcopy(model).eval())  # a step puts it into training mode


def test_the_smallest_part_that_differs_is_named():
    """Reduced over pairs of neighbours, so that one example alone, and any two of a pair, are right."""

    def by_fours(model, batch):
        values = nats(model, batch)
        return ps.mean(values + (values[-1] if len(values) > 3 else 0.0))

    message = found(by_fours)
    assert "on examples 0 to 3 cut into 2 + 2" in message


def test_all_that_is_wrong_is_told_at_once():
    def everything(model, batch):
        batch["x"].mul_(2)
        return mean_of_means(model, batch) + contrastive(model, batch) + weight_by_the_model(model, batch)

    message = found(everything)
    assert message.count("see the coupling below") == 1
    assert message.count("\n- ") == 5
    for part in ("law 1 (pure)", f"{SUM} examples): term 0", f"{SUM} examples): term 1", COUPLED, "weight of term 2"):
        assert part in message


class Tokens(nn.Module):
    """(examples, tokens, 4) to (examples, tokens): each token beside the mean over tokens, masked or not."""

    def __init__(self, masked):
        super().__init__()
        self.masked, self.out = masked, nn.Linear(8, 1)

    def forward(self, x, real):
        kept = real[..., None] if self.masked else torch.ones_like(x[..., :1])
        middle = (x * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
        return self.out(torch.cat([x, middle.expand_as(x)], -1)).squeeze(-1)


def padded():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 4, generator=generator, dtype=torch.float64)
    real = torch.arange(4) < torch.tensor([4, 2, 1, 3, 4])[:, None]
    return TensorDict({"x": x, "real": real, "weight": real.double()}, batch_size=[5])


def test_padding_that_is_read_is_found():
    def left_out(model, batch):
        return ps.mean(model(batch["x"], batch["real"]).square(), where=batch["real"])

    def times_a_mask(model, batch):
        return ps.mean(model(batch["x"], batch["real"]).square(), weight=batch["weight"])

    def counted(model, batch):
        return ps.mean(model(batch["x"], batch["real"]).square())

    batch = padded()
    where = batch["real"]
    for objective in (left_out, times_a_mask):
        laws.check_objective(Tokens(masked=True).double(), objective, batch, where=where)
    for objective, model in ((counted, Tokens(masked=True)), (left_out, Tokens(masked=False))):
        laws.check_objective(model.double(), objective, batch)  # sums over examples they are
        message = found(objective, model.double(), batch, where=where)
        assert "law 2 (what does not count is not read)" in message
        assert "the total of term 0 changes by" in message


def check(**options):
    objective = options.pop("objective", lambda model, batch: ps.mean(nats(model, batch)))
    laws.check_objective(make_model(), objective, options.pop("batch", make_batch()), **options)


def refuses(model, batch):
    raise RuntimeError("of its own")


ARGUMENTS = {
    "one example": (lambda: check(batch=make_batch(1)), ValueError, "batch must have at least 2 examples"),
    "a tolerance": (lambda: check(tolerance=0.0), ValueError, "tolerance must be a finite number above 0, got 0.0"),
    "not finite": (lambda: check(objective=lambda m, b: ps.mean(nats(m, b).log() - torch.inf)), ValueError, "-inf"),
    "weight zero": (
        lambda: check(objective=lambda m, b: ps.mean(nats(m, b), where=b["y"] > 5)),
        ValueError,
        "term 0 has total 0.0 and weight 0.0",
    ),
    "a mask of floats": (lambda: check(where=torch.ones(LENGTH)), TypeError, "where must be a bool tensor"),
    "a mask of all": (
        lambda: check(where=torch.ones(LENGTH, dtype=torch.bool)),
        ValueError,
        "where must be false somewhere",
    ),
    "a mask of another shape": (
        lambda: check(where=torch.zeros(3, dtype=torch.bool)),
        ValueError,
        r"got shape \(3,\) with 3 entries that are false",
    ),
    "an error of its own": (lambda: check(objective=refuses), RuntimeError, "of its own"),
    "another model's state": (
        lambda: check(state=ps.init_state(nn.Linear(1, 1), ps.sgd(0.1), seed=0)),
        ValueError,
        "state.params does not belong to this model",
    ),
    "no objective": (lambda: check(objective=3), TypeError, "objective must be a function"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_message(case):
    make, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        make()
