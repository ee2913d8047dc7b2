"""The laws of accumulated gradients over generated models, objectives, batches and partitions.

Their mutants are in test_laws_gradient_mutants.py.
"""

from __future__ import annotations

import functools
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

import purestep as ps
from _gradient_laws import (
    OPTIMIZER,
    agree,
    check_buffers,
    check_counts,
    check_skip,
    cut,
    gradient_of,
    mean_of_means,
    poisonable,
    state_of,
)
from purestep import laws
from purestep.laws._compare import named_leaves, named_tensors, norm, same_bits
from purestep.laws.problems import make_batch

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


@given(problem=laws.problems(), data=st.data())
def test_step_counts_updates(problem, data):
    parts = cut(problem.batch, data.draw(laws.partitions(problem.length)))
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER, accumulate="given")
    check_counts(step, state_of(problem), parts)


@given(problem=laws.problems(min_length=4, norm=True), first=st.integers(2, 5))
def test_buffers_pass_from_one_micro_batch_to_the_next(problem, first):
    parts = cut(problem.batch, [min(first, problem.length - 2), max(problem.length - first, 2)])
    step = ps.train_step(problem.model, problem.objective, OPTIMIZER, accumulate="given")
    check_buffers(step, problem.model, problem.objective, state_of(problem), parts)


# Law 9: what is not finite is not applied.


@given(
    problem=laws.problems(min_length=4, norm=None),
    count=st.integers(1, 2),
    poison=st.sampled_from([math.nan, math.inf, -math.inf]),
)
def test_a_skipped_step_is_the_identity(problem, count, poison):
    step = ps.train_step(problem.model, poisonable(problem.objective), OPTIMIZER, accumulate=count, on_nonfinite="skip")
    check_skip(step, state_of(problem), problem.batch, poison)
