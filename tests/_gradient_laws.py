"""The laws of accumulated gradients, each a function of what it is about: ours pass it, and each mutant is caught."""

from __future__ import annotations

import functools

import torch
from tensordict import TensorDict

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation
from purestep.laws._compare import Comparison, named_leaves, same_bits
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


def check_counts(step, state, batch, updates=2):
    """``step`` counts updates and ``calls`` calls, whatever the number of micro-batches."""
    for count in range(1, updates + 1):
        state, _ = step(state, batch)
        for name in ("step", "calls"):
            if int(getattr(state, name)) != count:
                raise LawViolation(f"state.{name} is {int(getattr(state, name))} after {count} updates")


def check_buffers(step, model, objective, state, parts):
    """The buffers after a window are those of forwards over its micro-batches, one after the other."""
    forward, buffers = ps.loss_step(model, objective), state.buffers
    for part in parts:
        _, buffers, _ = forward(state.replace(buffers=buffers), part)
    after = step(state, parts)
    for name, leaf in (after[0] if isinstance(after, tuple) else after).buffers.items():
        if not same_bits(leaf, buffers[name]):
            raise LawViolation(f"the buffer {name} is not that of micro-batches in order")


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
