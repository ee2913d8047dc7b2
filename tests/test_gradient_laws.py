"""The laws of accumulated gradients over generated models, objectives, batches and partitions, and their mutants.

Each law is a function of what it is about, so that the same function passes ours and catches each mutant.
"""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation
from purestep.laws._compare import Comparison, named_leaves, named_tensors, norm, same_bits
from purestep.laws.strategies import make_batch
from purestep.schedules import linear

OPTIMIZER = ps.chain(ps.clip_by_global_norm(0.3), ps.sgd(linear(start=0.5, end=0.1, steps=5), momentum=0.9))


def state_of(problem, seed=0):
    return ps.init_state(problem.model, OPTIMIZER, seed=seed)


def gradient_of(problem, batch, **options):
    return ps.grad_step(problem.model, problem.objective, **options)(state_of(problem), batch)


def cut(batch, lengths):
    return laws.partition(batch, lengths)


def agree(got, right, tolerance=1e-12):
    Comparison("law 2", "cut", "whole", tolerance).gradients(got, right)


# Law 2: split-invariant.


@st.composite
def ways_to_cut(draw, length):
    """Draw a function (problem, batch) -> Gradient that takes the batch in micro-batches."""
    lengths, size = draw(laws.partitions(length)), draw(st.integers(1, length + 1))
    return draw(
        st.sampled_from(
            [
                lambda problem, batch: gradient_of(problem, cut(batch, lengths), accumulate="given"),
                lambda problem, batch: functools.reduce(
                    ps.merge, [gradient_of(problem, part) for part in cut(batch, lengths)]
                ),
                lambda problem, batch: gradient_of(problem, batch, accumulate=size),
                lambda problem, batch: gradient_of(problem, batch, microbatch=size),
                lambda problem, batch: gradient_of(problem, batch, microbatch=size, loop="scan"),
            ]
        )
    )


@given(problem=laws.problems(), data=st.data())
@settings(max_examples=40)
def test_any_cut_gives_the_gradient_of_the_whole(problem, data):
    way = data.draw(ways_to_cut(problem.length))
    agree(way(problem, problem.batch), gradient_of(problem, problem.batch))


@given(problem=laws.problems(names=["masked"]), more=st.integers(1, 5), data=st.data())
def test_padding_changes_nothing(problem, more, data):
    """Whole examples that do not count, with any numbers in them, in micro-batches of nothing else too."""
    padding = make_batch(more, problem.seed + 1)
    padding["where"] = torch.zeros(more, dtype=torch.bool)
    padded = torch.cat([padding, problem.batch, padding])
    parts = cut(padded, data.draw(laws.partitions(len(padded))))
    agree(gradient_of(problem, parts, accumulate="given"), gradient_of(problem, problem.batch))


ROUNDINGS = 64


def float32_bound(problem):
    """How far two orders of computing a gradient in float32 may be apart, as a norm.

    With u = 2^-24, the gradient g of each of n examples is computed with an error of at most c·u·‖g‖, to first order:
    c counts the roundings one after another on the longest way forward and back (each dot product of length L has L,
    Higham, "Accuracy and stability of numerical algorithms", 2nd edition, equation 3.5; a convolution of 9, tables and
    layers of 4 to 8, a softmax, tanh: below 64), where layers whose norm is about one do not amplify what came before.
    Adding n of them in any order adds (n - 1)·u·Σ‖gᵢ‖ (equation 4.4), the division one more. Both computations may
    be off by that much: 2·(c + n)·u·Σ‖gᵢ‖ / W for each term.
    """
    singles = [gradient_of(problem, part) for part in cut(problem.batch, [1] * problem.length)]
    whole = gradient_of(problem, problem.batch)
    lengths = [
        sum(norm(named_tensors(single.total[term], "")) for single in singles) / float(weight)
        for term, weight in enumerate(whole.weight)
    ]
    return 2 * (ROUNDINGS + problem.length) * 2.0**-24 * sum(lengths)


def apart(got, right):
    one, other = (named_tensors(g.mean(), "") for g in (got, right))
    return norm({name: one[name].double() - leaf.double() for name, leaf in other.items()})


@given(problem=laws.problems(dtype=torch.float32), data=st.data())
@settings(max_examples=30)
def test_any_cut_gives_the_float32_gradient_up_to_its_roundings(problem, data):
    way = data.draw(ways_to_cut(problem.length))
    assert apart(way(problem, problem.batch), gradient_of(problem, problem.batch)) <= float32_bound(problem)


def test_the_float32_bound_sees_a_mean_of_means():
    problem = laws.Problem("perceptron", "masked", 6, dtype=torch.float32)
    right, bound = gradient_of(problem, problem.batch), float32_bound(problem)
    assert bound < 2e-5 * norm(named_tensors(right.mean(), ""))
    assert apart(mean_of_means(problem, [1, 5]), right) > 100 * bound


# Law 3: execution-invariant.


@given(problem=laws.problems(min_length=4), count=st.integers(1, 5), factor=st.floats(0.5, 2.0))
def test_eager_is_vmapped_is_scanned(problem, count, factor):
    states = [state_of(problem), state_of(problem, seed=1)]
    states[1].params.apply_(lambda leaf: leaf.mul_(factor))
    options = {"accumulate": count, "loop": "scan"} if count > 1 else {}
    for make, rest in ((ps.grad_step, ()), (ps.train_step, (OPTIMIZER,))):
        step = make(problem.model, problem.objective, *rest, accumulate=count)
        laws.check_ensemble(step, states, problem.batch)
        scanned = make(problem.model, problem.objective, *rest, **options)
        laws.check_execution_invariant(step, states[1], problem.batch, others={"scanned": scanned})


@pytest.mark.compiler
def test_eager_is_compiled():
    """One small case: test_compile.py has more, and test_accumulate.py the scan in a graph."""
    problem, optimizer = laws.Problem("perceptron", "masked", 7), ps.sgd(0.1)
    step = ps.train_step(problem.model, problem.objective, optimizer, accumulate=2)
    state = ps.init_state(problem.model, optimizer, seed=0)
    laws.check_execution_invariant(step, state, problem.batch, others={"compiled": ps.compile(step)}, steps=2)


# Weights count in proportion, and gradients pool as numbers add.


def times(factor, objective):
    """The same objective with totals and weights both multiplied."""

    def scaled(model, batch):
        result = objective(model, batch)
        loss, metrics = result if isinstance(result, tuple) else (result, {})
        return ps.Loss(tuple(ps.Mean(t.total * factor, t.weight * factor) for t in loss.terms)), metrics

    return scaled


@given(problem=laws.problems(), exponent=st.floats(-6, 6), data=st.data())
def test_a_common_factor_of_all_weights_does_not_matter(problem, exponent, data):
    parts = cut(problem.batch, data.draw(laws.partitions(problem.length)))
    scaled = ps.grad_step(problem.model, times(10.0**exponent, problem.objective), accumulate="given")
    agree(scaled(state_of(problem), parts), gradient_of(problem, problem.batch))


@given(problem=laws.problems(names=["weighted"]), exponent=st.floats(-6, 6))
def test_a_common_factor_of_the_weights_in_a_batch_does_not_matter(problem, exponent):
    scaled = problem.batch.clone()
    scaled["weight"] = scaled["weight"] * 10.0**exponent
    agree(gradient_of(problem, scaled, accumulate=2), gradient_of(problem, problem.batch))


@given(problem=laws.problems(min_length=3, norm=None), data=st.data())
def test_merging_is_associative_and_commutative_and_an_empty_batch_is_its_identity(problem, data):
    bounds = sorted(data.draw(st.lists(st.integers(2, problem.length), min_size=3, max_size=3)))
    a, b, c = (gradient_of(problem, problem.batch[:stop]) for stop in bounds)
    agree(a.merge(b).merge(c), a.merge(b.merge(c)))
    agree(a.merge(b), b.merge(a))
    if problem.norm:  # a BatchNorm has no statistics of nothing
        return
    nothing = gradient_of(problem, problem.batch[:0])
    for merged in (a.merge(nothing), nothing.merge(a)):
        assert all(same_bits(got, right) for got, right in pairs(merged.mean(), a.mean()))
        assert all(map(same_bits, merged.weight, a.weight))


def pairs(got, right):
    one, other = named_leaves(got, ""), named_leaves(right, "")
    assert one.keys() == other.keys()
    return [(leaf, other[name]) for name, leaf in one.items()]


# A window of micro-batches is one update.


def check_counts(step, state, batch, updates=2):
    """``step`` counts updates and ``calls`` calls, whatever the number of micro-batches."""
    for count in range(1, updates + 1):
        state, _ = step(state, batch)
        for name in ("step", "calls"):
            if int(getattr(state, name)) != count:
                raise LawViolation(f"state.{name} is {int(getattr(state, name))} after {count} updates")


@given(problem=laws.problems(), data=st.data())
def test_step_counts_updates(problem, data):
    parts = cut(problem.batch, data.draw(laws.partitions(problem.length)))
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER, accumulate="given")
    check_counts(step, state_of(problem), parts)


def check_buffers(step, model, objective, state, parts):
    """The buffers after a window are those of forwards over its micro-batches, one after the other."""
    forward, buffers = ps.loss_step(model, objective), state.buffers
    for part in parts:
        _, buffers, _ = forward(state.replace(buffers=buffers), part)
    after = step(state, parts)
    for name, leaf in (after[0] if isinstance(after, tuple) else after).buffers.items():
        if not same_bits(leaf, buffers[name]):
            raise LawViolation(f"the buffer {name} is not that of micro-batches in order")


@given(problem=laws.problems(min_length=4, norm=True), first=st.integers(2, 5))
def test_buffers_pass_from_one_micro_batch_to_the_next(problem, first):
    parts = cut(problem.batch, [min(first, problem.length - 2), max(problem.length - first, 2)])
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER, accumulate="given")
    check_buffers(step, problem.model, problem.objective, state_of(problem), parts)


# Law 9: what is not finite is not applied.


def poisonable(objective):
    """The same objective times the product of ``batch["factor"]``, of ones or of something else."""

    def multiplied(model, batch):
        result = objective(model, batch)
        loss = result[0] if isinstance(result, tuple) else result
        return loss * batch["factor"].prod()

    return multiplied


def check_skip(step, state, batch, poison):
    """A step that is skipped changes ``calls`` and the count, and no other bit; the next one is as if it were first."""
    factor = torch.ones(len(batch), dtype=torch.float64)
    good = batch.clone().set("factor", factor)
    bad = good.clone()
    bad["factor"][len(batch) // 2] = poison
    state, _ = step(state, good)  # so that momentum and buffers are something
    after, metrics = step(state.clone(), bad)
    before, now = named_leaves(state, "state"), named_leaves(after, "state")
    changed = {name for name, leaf in now.items() if not same_bits(leaf, before[name])}
    if changed != {"state.calls", "state.aux['skipped']"}:
        raise LawViolation(f"a step that was to be skipped changed {sorted(changed)}")
    assert int(after.aux["skipped"]) == int(metrics["skipped"]) == int(state.aux["skipped"]) + 1
    right, _ = step(state.clone(), good)
    for name, leaf in named_leaves(step(after, good)[0], "state").items():
        if name not in changed and not same_bits(leaf, named_leaves(right, "state")[name]):
            raise LawViolation(f"the step after one that was skipped has another {name}")


@given(
    problem=laws.problems(min_length=4, norm=None),
    count=st.integers(1, 2),
    poison=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_skipped_step_is_the_identity(problem, count, poison):
    step = ps.train_step(problem.model, poisonable(problem.objective), OPTIMIZER, accumulate=count, on_nonfinite="skip")
    check_skip(step, state_of(problem), problem.batch, poison)


# Mutants: what trainers did and do, each caught by one of the laws above.

PROBLEM = laws.Problem("perceptron", "weighted", 7)
NORMED = laws.Problem("perceptron", "single_term", 8, norm=True)


def pieces_of(problem, lengths):
    return [gradient_of(problem, part) for part in cut(problem.batch, lengths)]


def pooled(pieces, trees, weight):
    """A Gradient of given totals (a flat dict for each piece, added up) and weight."""
    total = TensorDict({name: sum(tree[name] for tree in trees) for name in list(trees[0].keys())})
    metrics = functools.reduce(ps.merge, [piece.metrics for piece in pieces])
    return ps.Gradient((total,), (weight,), pieces[-1].buffers, metrics)


def mean_of_means(problem, lengths):
    """The gradients of micro-batches, divided each by its own weight, over their number."""
    pieces = pieces_of(problem, lengths)
    dtype = pieces[0].weight[0].dtype
    return pooled(pieces, [piece.mean() for piece in pieces], torch.tensor(float(len(pieces)), dtype=dtype))


def weight_of_micro_batches(problem, lengths):
    """Totals as they should be, over the number of micro-batches instead of the weight."""
    pieces = pieces_of(problem, lengths)
    return pooled(pieces, [piece.total[0] for piece in pieces], torch.tensor(float(len(pieces)), dtype=torch.float64))


def clips_before_merging(problem, lengths):
    """Each micro-batch's gradient is clipped, and the clipped ones are pooled."""
    clip, pieces = ps.clip_by_global_norm(0.05), pieces_of(problem, lengths)
    trees = []
    for piece in pieces:
        clipped, _ = clip.update(piece.mean(), clip.init(piece.mean()), None, None)
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
        laws.check_objective(contrastive, problem.model, problem.batch)


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
