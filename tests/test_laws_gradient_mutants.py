"""Mutants of accumulation: what trainers did and do, each caught by one of the laws of accumulated gradients."""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _gradient_laws import (
    NORMED,
    OPTIMIZER,
    PROBLEM,
    agree,
    check_buffers,
    check_counts,
    check_skip,
    cut,
    gradient_of,
    mean_of_means,
    pieces_of,
    poisonable,
    pooled,
    state_of,
)
from purestep import laws
from purestep.laws import LawViolation


def weight_of_micro_batches(problem, lengths):
    """Totals as they should be, over the number of micro-batches instead of the weight."""
    pieces = pieces_of(problem, lengths)
    return pooled(pieces, [piece.total[0] for piece in pieces], torch.tensor(float(len(pieces)), dtype=torch.float64))


def clips_before_merging(problem, lengths):
    """Each micro-batch's gradient is clipped, and the clipped ones are pooled."""
    clip, pieces = ps.clip_by_global_norm(0.05), pieces_of(problem, lengths)
    trees = []
    for piece in pieces:
        clipped, _ = clip.update(piece.mean(), clip.init(piece.mean()), piece.mean(), None)
        trees.append({name: leaf * piece.weight[0] for name, leaf in clipped.items()})
    return pooled(pieces, trees, sum(piece.weight[0] for piece in pieces))


@pytest.mark.parametrize("mutant", [mean_of_means, weight_of_micro_batches, clips_before_merging])
def test_the_law_of_splits_catches(mutant):
    whole = gradient_of(PROBLEM, PROBLEM.batch)
    agree(functools.reduce(ps.merge, pieces_of(PROBLEM, [2, 5])), whole)
    with pytest.raises(LawViolation, match="of the norm of the whole gradient"):
        agree(mutant(PROBLEM, [2, 5]), whole)


def an_update_for_each_micro_batch(problem):
    """Each micro-batch is a step of its own, as where nobody accumulates."""
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER)
    return lambda state, parts: functools.reduce(lambda done, part: step(done[0], part), parts, (state, {}))


def counts_micro_steps(problem):
    """One update, and a step count that says how many micro-batches there were: the schedule runs away."""
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER, accumulate="given")

    def mutant(state, parts):
        after, metrics = step(state, parts)
        return after.replace(step=state.step + len(parts)), metrics

    return mutant


@pytest.mark.parametrize("mutant", [an_update_for_each_micro_batch, counts_micro_steps])
def test_the_law_of_counts_catches(mutant):
    with pytest.raises(LawViolation, match=r"state\.step is 2 after 1 updates"):
        check_counts(mutant(PROBLEM), state_of(PROBLEM), cut(PROBLEM.batch, [3, 4]))


def keeps_the_first_buffers(problem):
    gradient = ps.grad_step(problem.model, problem.objective)

    def mutant(state, parts):
        pieces = [gradient(state, part) for part in parts]
        whole = functools.reduce(ps.merge, pieces)
        return ps.Gradient(whole.total, whole.weight, pieces[0].buffers, whole.metrics)

    return mutant


def starts_each_from_the_same_buffers(problem):
    gradient = ps.grad_step(problem.model, problem.objective)
    return lambda state, parts: functools.reduce(ps.merge, [gradient(state, part) for part in parts])


@pytest.mark.parametrize("mutant", [keeps_the_first_buffers, starts_each_from_the_same_buffers])
def test_the_law_of_buffers_catches(mutant):
    with pytest.raises(LawViolation, match=r"the buffer layers\.1\.running_mean"):
        check_buffers(mutant(NORMED), NORMED.model, NORMED.objective, state_of(NORMED), cut(NORMED.batch, [3, 5]))


def test_the_law_of_purity_catches_buffers_that_leak_into_the_module():
    problem = laws.Problem("perceptron", "single_term", 8, norm=True)
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER, accumulate=2)

    def leaks(state, batch):
        after, metrics = step(state, batch)
        for name, buffer in problem.model.named_buffers():
            buffer.copy_(after.buffers[name])
        return after, metrics

    laws.check_pure(step, state_of(problem), problem.batch, model=problem.model)
    with pytest.raises(LawViolation, match=r"law 1 .*wrote into model\.layers\.1\.running_mean"):
        laws.check_pure(leaks, state_of(problem), problem.batch, model=problem.model)


def unguarded(change):
    """A step that updates by ``change(gradient)`` and asks nothing."""
    gradient = ps.grad_step(NORMED.model, poisonable(NORMED.objective))

    def step(state, batch):
        piece = gradient(state, batch)
        context = ps.UpdateContext(state.step, state.key)
        grads = TensorDict({name: change(leaf) for name, leaf in piece.mean().items()})
        params, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params, context)
        bad = not torch.isfinite(piece.metrics["loss"].value())
        aux = TensorDict({"skipped": state.aux["skipped"] + int(bad)})
        after = state.replace(
            params=params,
            buffers=piece.buffers,
            opt_state=opt_state,
            step=state.step + 1,
            calls=state.calls + 1,
            aux=aux,
        )
        return after, {"skipped": aux["skipped"]}

    return step


def skips_the_parameters_only(state, batch):
    """What a bare `if finite: optimizer.step()` does: the forward has written the running statistics before."""
    guarded = ps.train_step(NORMED.model, poisonable(NORMED.objective), OPTIMIZER, on_nonfinite="skip")
    _, buffers, _ = ps.loss_step(NORMED.model, poisonable(NORMED.objective))(state, batch)
    after, metrics = guarded(state, batch)
    return after.replace(buffers=buffers), metrics


UNGUARDED = {
    "a NaN that is applied": (unguarded(lambda leaf: leaf), "params"),
    "a NaN taken for zero": (unguarded(torch.nan_to_num), "state.step"),
    "buffers of a step that was skipped": (skips_the_parameters_only, "running_mean"),
}


@pytest.mark.parametrize("name", UNGUARDED)
def test_the_law_of_skipping_catches(name):
    mutant, what = UNGUARDED[name]
    with pytest.raises(LawViolation, match=f"was to be skipped changed .*{what}"):
        check_skip(mutant, state_of(NORMED), NORMED.batch, math.nan)


def contrastive(model, batch):
    codes = F.normalize(model(batch["inputs"]), dim=-1)
    return ps.mean(F.cross_entropy(codes @ codes.T, torch.arange(len(codes)), reduction="none"))


@given(problem=laws.problems(min_length=4), data=st.data())
def test_a_coupled_loss_is_caught_on_any_model(problem, data):
    lengths = data.draw(laws.partitions(problem.length, empty=False).filter(lambda parts: len(parts) > 1))
    with pytest.raises(LawViolation, match="law 2"):
        laws.check_split_invariant(problem.model, contrastive, problem.batch, parts=[lengths])
    with pytest.raises(LawViolation, match="depends on"):
        laws.check_objective(problem.model, contrastive, problem.batch)


def test_a_mask_for_each_micro_batch_is_caught():
    """Micro-batches that do not know their place in the whole batch draw the mask of its first examples each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()

    def objective(model, batch):
        return ps.mean(F.cross_entropy(model(batch["inputs"]["table"]), batch["label"], reduction="none"))

    def by_hand(count):
        gradient = ps.grad_step(model, objective)
        size = -(-PROBLEM.length // count)
        return lambda state, batch: functools.reduce(ps.merge, [gradient(state, part) for part in batch.split(size)])

    state = ps.init_state(model, OPTIMIZER, seed=0)
    laws.check_accumulation(lambda k: ps.grad_step(model, objective, accumulate=k), state, PROBLEM.batch)
    with pytest.raises(LawViolation, match=r"law 2 .* by accumulate=2"):
        laws.check_accumulation(by_hand, state, PROBLEM.batch)
