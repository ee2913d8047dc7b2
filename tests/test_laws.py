"""The single laws of steps, over generated models and objectives, and a mutant for each that it must catch."""

from __future__ import annotations

import copy
import random

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation
from purestep.schedules import cosine


def optimizer_of(rate=0.05):
    return ps.chain(ps.clip_by_global_norm(0.5), ps.sgd(rate, momentum=0.9))


STEPS = {
    "loss_step": lambda problem: ps.loss_step(problem.model, problem.objective),
    "grad_step": lambda problem: ps.grad_step(problem.model, problem.objective),
    "grad_step, accumulate": lambda problem: ps.grad_step(problem.model, problem.objective, accumulate=2),
    "train_step": lambda problem: ps.train_step(problem.model, problem.objective, optimizer_of()),
    "train_step, accumulate": lambda problem: ps.train_step(
        problem.model, problem.objective, optimizer_of(), accumulate=2
    ),
    "eval_step": lambda problem: ps.eval_step(problem.model, problem.objective),
}


@pytest.mark.parametrize("name", STEPS)
@given(problem=laws.problems(norm=None, min_length=4))
def test_steps_are_pure(name, problem):
    state = ps.init_state(problem.model, optimizer_of(), seed=problem.seed)
    laws.check_pure(STEPS[name](problem), state, problem.batch, model=problem.model)


@given(problem=laws.problems(dtype=torch.float32))
def test_the_update_step_is_pure(problem):
    state = ps.init_state(problem.model, optimizer_of(), seed=0)
    gradient = ps.grad_step(problem.model, problem.objective)(state, problem.batch)
    laws.check_pure(ps.update_step(optimizer_of()), state, gradient)


@given(problem=laws.problems(), data=st.data())
def test_any_partition_gives_the_whole_gradient(problem, data):
    parts = [data.draw(laws.partitions(problem.length)) for _ in range(2)]
    laws.check_split_invariant(problem.model, problem.objective, problem.batch, parts=parts)


@given(problem=laws.problems(min_length=4), seed=st.integers(1, 9))
def test_an_ensemble_does_what_its_members_do(problem, seed):
    states = [ps.init_state(problem.model, optimizer_of(), seed=s) for s in (0, seed)]
    states[1].params.apply_(lambda leaf: leaf.mul_(1.5))
    for make in (ps.train_step, ps.grad_step, ps.eval_step):
        rest = (optimizer_of(),) if make is ps.train_step else ()
        laws.check_ensemble(make(problem.model, problem.objective, *rest), states, problem.batch)


def dropout_model():
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).double()


def test_the_laws_hold_with_dropout(job):
    model = dropout_model()
    laws.check_split_invariant(model, classify, job.batch(), parts=(), accumulate=(2, 3, 8))
    states = [ps.init_state(model, optimizer_of(), seed=seed) for seed in (0, 1)]
    step = ps.train_step(model, classify, optimizer_of(), accumulate=2)
    laws.check_pure(step, states[0], job.batch(), model=model)
    laws.check_ensemble(step, states, job.batch())
    later, _ = step(states[0], job.batch())
    losses = {step(state, job.batch())[1]["loss"].value().item() for state in (*states, later)}
    assert len(losses) == 3


def test_a_part_cut_by_hand_does_not_know_its_masks(job):
    with pytest.raises(LawViolation, match=r"law 2.*merged from parts of \[3, 5\]"):
        laws.check_split_invariant(dropout_model(), classify, job.batch(), parts=[(3, 5)])


@pytest.mark.compiler
def test_the_step_is_execution_invariant(job, compiled_step, donated_step):
    others = {"compiled": compiled_step, "donated": donated_step}
    laws.check_execution_invariant(job.step, job.state(), job.batch(), others=others, steps=3)


@pytest.mark.compiler
def test_compiled_steps_are_pure(job, compiled_step, donated_step):
    laws.check_pure(compiled_step, job.state(), job.batch(), model=job.model)
    laws.check_pure(donated_step, job.state(), job.batch(), model=job.model, donates=True)


# Mutants of law 1: a step, and what is done beside it.
IMPURE = {
    "draws from torch's generator": (lambda model, state, batch: torch.rand(()), "random state of torch on the CPU"),
    "draws from Python's generator": (lambda model, state, batch: random.random(), "random state of Python"),
    "draws from NumPy's generator": (lambda model, state, batch: np.random.rand(), "random state of NumPy"),
    "writes into its batch": (lambda model, state, batch: batch["x"].mul_(2), "batch['x']"),
    "writes the same values": (lambda model, state, batch: batch["x"].mul_(1), "version of batch['x']"),
    "adds to its batch": (lambda model, state, batch: batch.set("extra", batch["x"] + 1), "batch['extra']"),
    "replaces a part of its batch": (lambda model, state, batch: batch.set("x", batch["x"] + 1), "batch['x']"),
    "writes into its state": (lambda model, state, batch: state.step.add_(1), "state.step"),
    "marks a parameter": (
        lambda model, state, batch: state.params["0.weight"].requires_grad_(),
        "requires_grad of state.params['0.weight']",
    ),
    "changes a buffer": (lambda model, state, batch: model[1].running_mean.add_(1), "model.1.running_mean"),
    "changes a mode": (lambda model, state, batch: model[1].eval(), "model.1.training"),
    "leaves a gradient": (
        lambda model, state, batch: model(batch["x"]).sum().backward(),
        "model.0.weight",
    ),
    "switches gradients off": (lambda model, state, batch: torch.set_grad_enabled(False), "grad mode"),
    "changes the default dtype": (
        lambda model, state, batch: torch.set_default_dtype(torch.float64),
        "the default dtype",
    ),
}


@pytest.mark.parametrize("name", IMPURE)
def test_law_1_catches_a_step_that(name, job):
    act, culprit = IMPURE[name]
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()

    def mutant(state, batch):
        act(model, state, batch)
        return job.step(state, batch)

    with pytest.raises(LawViolation, match="law 1") as caught:
        laws.check_pure(mutant, job.state(), job.batch(), model=model)
    assert culprit in str(caught.value)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_law_1_catches_a_step_with_a_memory(job):
    calls = []

    def counts(state, batch):
        calls.append(None)
        after, metrics = job.step(state, batch)
        return after, {**metrics, "calls": torch.tensor(len(calls))}

    with pytest.raises(LawViolation, match=r"metrics\['calls'\] differs: 2 at a second call .* 1 at the first"):
        laws.check_pure(counts, job.state(), job.batch())


def test_law_1_catches_a_step_that_hides_its_draw(job):
    def hides(state, batch):
        with torch.random.fork_rng(devices=[]):
            noise = torch.rand(())
        after, metrics = job.step(state, batch)
        return after, {**metrics, "noise": noise}

    with pytest.raises(LawViolation, match=r"metrics\['noise'\]"):
        laws.check_pure(hides, job.state(), job.batch())


def test_law_1_catches_a_result_that_is_written_again(job):
    result = torch.zeros(())

    def reuses(state, batch):
        return {"calls": result.add_(1).mul_(0).add_(state.step.sum() + result.numel())}

    def keeps(state, batch):
        result.add_(1)
        return {"calls": result}

    laws.check_pure(reuses, job.state(), job.batch())
    with pytest.raises(LawViolation, match="calls"):
        laws.check_pure(keeps, job.state(), job.batch())


def test_law_1_leaves_the_world_as_it_was(job):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    laws.check_pure(job.step, job.state(), job.batch())
    assert torch.equal(torch.rand(3), expected)


# Mutants of law 2.
def mean_of_means(model, batch):
    return ps.Mean(F.cross_entropy(model(batch["x"]), batch["y"]), torch.ones((), dtype=torch.float64))


def sum_over_a_count_of_batches(model, batch):
    values = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return ps.Mean(values.sum(), torch.ones((), dtype=torch.float64))


def contrastive(model, batch):
    codes = F.normalize(model(batch["x"]), dim=-1)
    return ps.mean(F.cross_entropy(codes @ codes.T, torch.arange(len(codes)), reduction="none"))


def bare(model, batch):
    return F.cross_entropy(model(batch["x"]), batch["y"])


def bare_metric(model, batch):
    logits = model(batch["x"])
    return ps.mean(F.cross_entropy(logits, batch["y"], reduction="none")), {"largest": logits.max()}


def wrong_metric(model, batch):
    values = F.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    return ps.mean(values), {"again": ps.Mean(values.mean(), torch.ones((), dtype=torch.float64))}


def classify(model, batch):
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


COUPLED = {
    mean_of_means: "gradient",
    sum_over_a_count_of_batches: "gradient",
    contrastive: "gradient",
    bare: "bare tensor",
    bare_metric: "'largest'",
    wrong_metric: "'again'",
}


def plain_model():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("objective", COUPLED, ids=lambda objective: objective.__name__)
def test_law_2_catches(objective, job):
    with pytest.raises(LawViolation, match="law 2") as caught:
        laws.check_split_invariant(plain_model(), objective, job.batch())
    assert COUPLED[objective] in str(caught.value)


def test_law_2_catches_batch_statistics(job):
    with pytest.raises(LawViolation, match="law 2"):
        laws.check_split_invariant(job.model, classify, job.batch())
    frozen = copy.deepcopy(job.model)
    frozen[1].eval()
    laws.check_split_invariant(frozen, classify, job.batch())


def cut(batch, count):
    return batch.split(-(-len(batch) // count))


def clips_before_merging(model, count):
    """A step that clips each micro-batch's gradient and adds the clipped ones."""
    gradient = ps.grad_step(model, classify)
    clip = ps.clip_by_global_norm(0.01)

    def step(state, batch):
        whole = None
        for part in cut(batch, count):
            piece = gradient(state, part)
            clipped, _ = clip.update(piece.mean(), clip.init(state.params), state.params, None)
            total = TensorDict({name: leaf * piece.weight[0] for name, leaf in clipped.items()})
            piece = ps.Gradient((total,), piece.weight, piece.buffers, piece.metrics)
            whole = piece if whole is None else whole.merge(piece)
        return whole

    return step


def averages_micro_batches(model, count):
    """A step that divides by the number of micro-batches, as trainers did for years."""
    gradient = ps.grad_step(model, classify)

    def step(state, batch):
        pieces = [gradient(state, part) for part in cut(batch, count)]
        names = pieces[0].total[0].keys()
        total = TensorDict({name: sum(p.mean()[name] for p in pieces) for name in names})
        weight = torch.tensor(float(len(pieces)), dtype=torch.float64)
        metrics = pieces[0].metrics
        for piece in pieces[1:]:
            metrics = ps.merge(metrics, piece.metrics)
        return ps.Gradient((total,), (weight,), pieces[-1].buffers, metrics)

    return step


def forgets_the_last(model, count):
    """A step that drops the examples that are left over."""
    return lambda state, batch: ps.grad_step(model, classify)(state, batch[: len(batch) // count * count])


@pytest.mark.parametrize("mutant", [clips_before_merging, averages_micro_batches, forgets_the_last])
def test_law_2_catches_a_step_that(mutant, job):
    model = plain_model()
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    with pytest.raises(LawViolation, match="law 2"):
        laws.check_accumulation(lambda count: mutant(model, count), state, job.batch(7))


def test_law_2_takes_any_number_of_parts_of_the_right_length(job):
    with pytest.raises(ValueError, match=r"add up to the 8 examples of batch, got \[3, 4\], which add up to 7"):
        laws.partition(job.batch(), [3, 4])
    lengths = [len(part) for part in laws.partition(job.batch(), [0, 3, 5])]
    assert lengths == [0, 3, 5]


# Mutants of law 3.
def test_law_3_catches_another_rate(job):
    other = ps.train_step(job.model, job.objective, ps.chain(ps.clip_by_global_norm(0.5), ps.adamw(0.05 * (1 + 1e-8))))
    mine = ps.train_step(job.model, job.objective, ps.chain(ps.clip_by_global_norm(0.5), ps.adamw(0.05)))
    with pytest.raises(LawViolation, match=r"law 3 .*compiled.* of the norm of the whole update"):
        laws.check_execution_invariant(mine, job.state(), job.batch(), others={"compiled": other})


def test_law_3_catches_a_step_that_forgets_its_buffers(job):
    def forgets(state, batch):
        after, metrics = job.step(state, batch)
        return after.replace(buffers=state.buffers), metrics

    with pytest.raises(LawViolation, match=r"law 3.*state\.buffers"):
        laws.check_same(job.step, forgets, job.state(), job.batch())


def test_law_3_catches_a_rate_that_stands_still(job):
    """A schedule that was read once, when the step was built, is right at the first step only."""
    frozen = ps.chain(
        ps.clip_by_global_norm(0.5), ps.adamw(float(job.rate(0)), weight_decay=0.1, decay_mask=ps.matrices_only)
    )
    other = ps.train_step(job.model, job.objective, frozen)
    laws.check_same(job.step, other, job.state(), job.batch())
    with pytest.raises(LawViolation, match="law 3"):
        laws.check_same(job.step, other, job.state(), job.batch(), steps=2)


def test_law_3_catches_members_that_meet(job):
    def nudged(state, batch):
        together = torch._C._functorch.is_batchedtensor(state.step)
        after, metrics = job.step(state, batch)
        return after.replace(step=after.step + int(together)), metrics

    states = [job.state(), job.state()]
    states[1].params["3.bias"].add_(1)
    laws.check_ensemble(job.step, states, job.batch())
    with pytest.raises(LawViolation, match=r"law 3.*state\.step is 2 as member 0 of an ensemble, and 1 alone"):
        laws.check_ensemble(nudged, states, job.batch())
    with pytest.raises(ValueError, match="at least two"):
        laws.check_ensemble(job.step, states[:1], job.batch())


def test_a_schedule_is_accepted_as_a_rate(job):
    step = ps.train_step(job.model, job.objective, ps.sgd(cosine(peak=0.1, total_steps=3)))
    state = ps.init_state(job.model, ps.sgd(0.1), seed=0)
    _, metrics = step(state, job.batch())
    assert metrics["learning_rate"].item() == pytest.approx(0.1)
