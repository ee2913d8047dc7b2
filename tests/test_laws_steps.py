"""check_step: every law of a step in one report, and a mutant for each that it must catch."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation, bundle
from purestep.laws._randomness import recorded_masks

OPTIMIZER = ps.chain(ps.clip_by_global_norm(0.5), ps.sgd(0.1, momentum=0.9))
EAGER = ("pure", "counts", "split-invariant", "ensemble", "draws anew", "own streams", "resumable", "non-finite")


def model_of(first=nn.Dropout, second=nn.Dropout):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(4, 32), first(0.5), nn.Tanh(), nn.Linear(32, 32), second(0.5), nn.Linear(32, 3))
        return nn.Sequential(*layers).double()


def objective(model, batch):
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


MODEL = model_of()


def make(count, model=MODEL):
    return ps.train_step(model, objective, OPTIMIZER, accumulate=count)


STEP = make(1)


def state_of(model=MODEL):
    return ps.init_state(model, OPTIMIZER, seed=0)


def report_of(step, job, **options):
    with pytest.raises(LawViolation) as caught:
        laws.check_step(step, options.pop("state", state_of()), job.batch(), **options)
    assert str(caught.value) == str(caught.value.report)
    return caught.value.report


def finding(report, law):
    return next(each for each in report.findings if each.law == law)


def test_a_step_with_dropout_keeps_all_laws(job):
    report = laws.check_step(STEP, state_of(), job.batch(), model=MODEL, make=make, draws=True)
    assert report.held == EAGER
    assert report.broken == ()
    assert "the step train_step keeps 8 of 8 laws" in str(report)
    assert "not looked at: compiled (compiled=True is not given); donated" in str(report)


def test_a_step_without_randomness_has_less_to_look_at(job):
    report = laws.check_step(job.step, job.state(), job.batch(), model=job.model, skip=["split-invariant"])
    assert report.held == ("pure", "counts", "ensemble", "resumable", "non-finite")
    assert "draws nothing" in finding(report, "draws anew").says


@pytest.mark.parametrize("make_step", [ps.grad_step, ps.eval_step, ps.loss_step], ids=lambda make: make.__name__)
def test_a_step_that_returns_no_state_is_looked_at_too(make_step, job):
    report = laws.check_step(make_step(MODEL, objective), state_of(), job.batch(), model=MODEL)
    assert {"pure", "ensemble"} <= {*report.held} if make_step is not ps.loss_step else "pure" in report.held
    assert "it returns no (state, metrics)" in finding(report, "counts").says


def test_drawn_inputs_shrink_to_what_shows_it():
    """The mutant is wrong from the third update on and from four examples on: that state and that batch are told."""
    problem = laws.Problem("perceptron", "single_term", 4)
    right = ps.train_step(problem.model, problem.objective, OPTIMIZER)

    def wrong(state, batch):
        if len(batch) > 3 and int(state.step) > 1:
            torch.rand(())
        return right(state, batch)

    states, batches = laws.train_states(problem.model, OPTIMIZER), laws.batches()
    with pytest.raises(LawViolation) as caught:
        laws.check_step(wrong, states, batches, laws=["pure"], max_examples=60)
    assert caught.value.on == (
        "state=make_train_state(model, optimizer, seed=0, updates=2, skipped=0), "
        "batch=make_batch(4, 0, dtype=torch.float64)"
    )
    laws.check_step(right, states, batches, laws=["pure", "counts", "non-finite"], max_examples=5)


# Mutants. Each is a step, or what makes one for a number of micro-batches.


def slips_through(state, batch):
    return STEP(state, {**batch, "x": batch["x"] + torch.randn_like(batch["x"])})


def keeps_calls(state, batch):
    after, metrics = STEP(state, batch)
    return after.replace(calls=state.calls), metrics


def first_mask_again(state, batch):
    after, metrics = STEP(state.replace(calls=torch.zeros_like(state.calls)), batch)
    return after.replace(calls=state.calls + 1), metrics


def a_key_of_its_own(state, batch):
    after, metrics = STEP(state.replace(key=ps.random.key(7)), batch)
    return after.replace(key=state.key), metrics


def members_that_meet(state, batch):
    together = torch._C._functorch.is_batchedtensor(state.step)
    after, metrics = STEP(state, batch)
    return after.replace(params=after.params.apply(lambda leaf: leaf * (1 + 1e-3 * together))), metrics


def mask_per_micro_batch(count):
    """Micro-batches that do not know their place draw the masks of the first examples each."""
    gradient, update = ps.grad_step(MODEL, objective), ps.update_step(OPTIMIZER)

    def step(state, batch):
        parts = [gradient(state, part) for part in batch.split(-(-len(batch) // count))]
        return update(state, functools.reduce(ps.merge, parts))

    return step


def momentum_in_a_closure():
    kept = {}

    def step(state, batch):
        gradient = ps.grad_step(MODEL, objective)(state, batch)
        for name, leaf in gradient.mean().items():
            kept[name] = leaf + 0.9 * kept.get(name, 0.0)
        params = state.params.named_apply(lambda name, leaf: leaf - 0.1 * kept[name])
        return state.replace(params=params, step=state.step + 1, calls=state.calls + 1), gradient.metrics

    return step


def unguarded(change):
    gradient = ps.grad_step(MODEL, objective)

    def step(state, batch):
        piece = gradient(state, batch)
        grads = piece.mean()
        params = state.params.named_apply(lambda name, leaf: leaf - 0.1 * change(grads[name]))
        return state.replace(params=params, step=state.step + 1, calls=state.calls + 1), piece.metrics

    return step


def writes_and_raises(state, batch):
    state.params["0.bias"].add_(1 - torch.isfinite(batch["x"]).all().double())
    return STEP(state, batch)


class OneMask(nn.Dropout):
    """One mask for all examples."""

    def forward(self, given):
        return given * F.dropout(torch.ones_like(given[0]), self.p, self.training)


class OneStream(nn.Dropout):
    """A mask that depends on no call site, for it is always the first of one seed."""

    def forward(self, given):
        key = ps.random.key(3)
        return given * (ps.random.uniform(key, given.shape) < 0.5).to(given.dtype) * 2


MUTANTS = {
    "a global draw that slips through": (slips_through, "pure", {}, r"random state of torch on the CPU"),
    "a count of calls that stands": (keeps_calls, "counts", {}, r"adds 0 to state\.calls and 1 to state\.step"),
    "a key that is not advanced": (keeps_calls, "draws anew", {}, r"draws what this one drew"),
    "masks of the first call": (first_mask_again, "draws anew", {}, r"draws what this one drew"),
    "a key that is not the state's": (a_key_of_its_own, "draws anew", {"draws": True}, r"another key changes nothing"),
    "one mask at every call": (make(1, model_of(OneStream)), "draws anew", {}, r"drops the same entries at the next"),
    "members that meet": (members_that_meet, "ensemble", {}, r"as member 0 of an ensemble"),
    "a mask per micro-batch": (
        STEP,
        "split-invariant",
        {"make": mask_per_micro_batch},
        r"by accumulate=2",
    ),
    "a mask per micro-batch, seen by itself": (mask_per_micro_batch(2), "own streams", {}, r"drop the same entries"),
    "two call sites with one stream": (make(1, model_of(OneStream, OneStream)), "own streams", {}, r"call 0 .* call 1"),
    "one mask for all examples": (make(1, model_of(OneMask)), "own streams", {}, r"example 0 in .* example 1 in"),
    "a momentum in a closure": (momentum_in_a_closure(), "resumable", {}, r"in the run that was resumed"),
    "a NaN that is applied": (unguarded(lambda leaf: leaf), "non-finite", {}, r"nan in batch\['x'\]"),
    "a NaN taken for zero": (unguarded(torch.nan_to_num), "non-finite", {}, r"the loss is not finite"),
    "a refusal that wrote before": (writes_and_raises, "non-finite", {}, r"which refused nan in .*wrote into"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_check_step_catches(name, job):
    step, law, options, says = MUTANTS[name]
    report = report_of(step, job, laws=[law], **options)
    (found,) = report.findings
    assert found.result == "BROKEN"
    assert found.by
    assert found.on
    with pytest.raises(LawViolation, match=says):
        raise LawViolation(found.says)


def test_the_fewest_examples_are_told(job):
    """The loss is reduced over pairs, so that one example is right and two show it."""

    def by_pairs(state, batch):
        after, metrics = STEP(state, batch)
        return after.replace(calls=state.calls + int(len(batch) < 2)), metrics

    report = report_of(by_pairs, job, laws=["counts"])
    assert finding(report, "counts").on == "examples 0 to 1 of the batch"


def test_all_laws_are_looked_at_though_the_first_is_broken(job):
    report = report_of(slips_through, job, model=MODEL, make=make)
    assert report.broken == ("pure", "ensemble", "resumable")
    assert report.held == ("counts", "split-invariant", "draws anew", "own streams", "non-finite")
    text = str(report)
    assert "the step slips_through breaks 3 of 8 laws" in text
    assert "- pure: law 1 (pure): the step changed the random state of torch on the CPU" in text


def test_a_policy_of_skipping_keeps_the_law_of_what_is_not_finite(job):
    step = ps.train_step(MODEL, objective, OPTIMIZER, on_nonfinite="skip")
    laws.check_step(step, state_of(), job.batch(), laws=["non-finite"])


def test_a_call_made_again_may_have_its_masks_again(job):
    """The same input and the same mask are one call: what a rematerialised block does, and a forward made twice."""

    def twice(state, batch):
        STEP(state, batch)
        return STEP(state, batch)

    with recorded_masks() as masks:
        twice(state_of(), job.batch())
    assert len(masks) == 4
    remade = ps.remat(model_of(), "1", "4")
    for step, model in ((twice, MODEL), (make(1, remade), remade)):
        laws.check_step(step, state_of(model), job.batch(), laws=["own streams"])


@pytest.mark.compiler
def test_compiled_and_donated(job, compiled_step, donated_step, monkeypatch):
    """With the steps that the session has compiled: each compilation takes seconds."""
    monkeypatch.setattr(bundle, "compile", lambda step, donate=False: donated_step if donate else compiled_step)
    executed = ["compiled", "donated"]
    assert laws.check_step(job.step, job.state(), job.batch(), compiled=True, laws=executed).held == tuple(executed)
    found = laws.check_step(donated_step, job.state(), job.batch(), donates=True, model=job.model, skip=["ensemble"])
    assert found.held == ("pure", "counts", "resumable", "non-finite")


def test_what_differs_when_it_is_compiled_is_caught(job, monkeypatch):
    def one_more(state, batch):
        after, metrics = STEP(state, batch)
        return after.replace(step=after.step + 1), metrics

    monkeypatch.setattr(bundle, "compile", lambda step, donate=False: one_more if donate else step)
    report = report_of(STEP, job, compiled=True, laws=["compiled", "donated"])
    assert report.held == ("compiled",)
    assert r"state.step is 2 donated, and 1 eagerly" in finding(report, "donated").says


ARGUMENTS = {
    "no state": (
        lambda job: laws.check_step(STEP, {}, job.batch()),
        TypeError,
        "state must be a TrainState or a strat",
    ),
    "no such law": (
        lambda job: laws.check_step(STEP, state_of(), job.batch(), laws=["purity"]),
        ValueError,
        r"laws must name laws of 'pure', .*, got 'purity' \(did you mean 'pure'\?\)",
    ),
    "a law of the wrong kind": (
        lambda job: laws.check_step(STEP, state_of(), job.batch(), skip=["permutation"]),
        ValueError,
        "skip must name laws of 'pure'",
    ),
    "a string": (
        lambda job: laws.check_step(STEP, state_of(), job.batch(), laws="pure"),
        TypeError,
        "laws must be a sequence of names of laws, got the string 'pure'",
    ),
    "nothing left": (
        lambda job: laws.check_step(STEP, state_of(), job.batch(), laws=["pure"], skip=["pure"]),
        ValueError,
        "must leave a law to look at",
    ),
    "a law without what it needs": (
        lambda job: laws.check_step(STEP, state_of(), job.batch(), laws=["split-invariant"]),
        laws.LawDoesNotApplyError,
        "'split-invariant' does not: make= is not given",
    ),
    "a step that fails": (
        lambda job: laws.check_step(STEP, state_of(), {"x": torch.zeros(2, 4).double()}),
        KeyError,
        "the objective asked for 'y'",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_message(case, job):
    call, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        call(job)
