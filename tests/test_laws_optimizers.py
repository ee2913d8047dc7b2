"""check_optimizer and check_transformation, over the rules that purestep has, and a mutant for each law."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict

import purestep as ps
from purestep import laws
from purestep.laws import LawViolation

OPTIMIZERS = {
    "sgd": ps.sgd,
    "sgd with momentum": lambda rate: ps.sgd(rate, momentum=0.9, dampening=0.3, weight_decay=0.1),
    "sgd with Nesterov's momentum": lambda rate: ps.sgd(rate, momentum=0.9, nesterov=True, maximize=True),
    "adamw": ps.adamw,
    "adamw with amsgrad": lambda rate: ps.adamw(rate, amsgrad=True, maximize=True),
    "adamw with a mask": lambda rate: ps.adamw(rate, weight_decay=0.5, decay_mask=ps.matrices_only),
    "chain": lambda rate: ps.chain(ps.clip_by_global_norm(0.5), ps.adamw(rate)),
}
TRANSFORMATIONS = {
    "clip_by_global_norm, above": ps.clip_by_global_norm(0.5),
    "clip_by_global_norm, below": ps.clip_by_global_norm(100.0),
    "clip_by_global_norm with torch's eps": ps.clip_by_global_norm(0.5, eps=1e-6),
    "chain of transformations": ps.chain(ps.clip_by_global_norm(0.5), ps.clip_by_global_norm(0.25)),
}


@laws.parametrize_with_laws({name: partial(laws.check_optimizer, make) for name, make in OPTIMIZERS.items()})
def test_optimizers(law):
    law()


@laws.parametrize_with_laws(TRANSFORMATIONS)
def test_transformations(law):
    law()


@given(optimizer=laws.optimizers(), transformation=laws.gradient_transformations())
@settings(max_examples=4)
def test_drawn_rules_keep_every_law(optimizer, transformation):
    laws.check_optimizer(optimizer, dtypes=[torch.float32])
    laws.check_transformation(transformation, dtypes=[torch.float32])


# Mutants of the laws of optimizers: `update` of SGD with something wrong.
def mutated(update=None, init=None, hyperparams=None):
    def make(rate):
        right = ps.sgd(rate, momentum=0.9)
        return ps.Optimizer(
            init or right.init, update(rate, right) if update else right.update, hyperparams or right.hyperparams
        )

    return make


def in_place(rate, right):
    def update(grads, state, params, context):
        for name, leaf in params.items():
            leaf.sub_(grads[name], alpha=0.1)
        return params, state

    return update


def widening(rate, right):
    def update(grads, state, params, context):
        params, state = right.update(grads, state, params, context)
        return params, state.apply(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf)

    return update


def schedule_blind(rate, right):
    first = rate(0) if callable(rate) else rate
    return ps.sgd(float(torch.as_tensor(first).detach()), momentum=0.9).update


def detached(rate, right):
    def update(grads, state, params, context):
        return right.update(grads.apply(torch.Tensor.detach), state, params, context)

    return update


def naive_root(rate, right):
    def update(grads, state, params, context):
        return right.update(grads.apply(lambda g: g.square().sqrt()), state, params, context)

    return update


def noisy(rate, right):
    def update(grads, state, params, context):
        return right.update(grads.apply(lambda g: g + torch.rand(())), state, params, context)

    return update


def divides_by_the_gradient(rate, right):
    def update(grads, state, params, context):
        return right.update(grads.apply(lambda g: g / g.abs()), state, params, context)

    return update


def meets_its_members(rate, right):
    def update(grads, state, params, context):
        together = torch._C._functorch.is_batchedtensor(next(iter(params.values())))
        grads = grads.apply(lambda g: g * (1 + 1e-3 * together))
        return right.update(grads, state, params, context)

    return update


# The update: the law that it breaks, what is said, and the smallest input.
WRONG_UPDATES = {
    in_place: ("pure", "law 1", "parameter 'scalar' alone, torch.float64"),
    noisy: ("pure", "law 1", "parameter 'scalar' alone, torch.float64"),
    widening: ("form", "stable form", "parameter 'scalar' alone, torch.float32"),
    divides_by_the_gradient: ("form", "is nan after 1 updates", "parameter 'scalar' alone, torch.float64"),
    schedule_blind: ("rates", "not called", "parameter 'scalar' alone, torch.float64"),
    meets_its_members: ("ensemble", "as member 0 of an ensemble", "parameter 'scalar' alone, torch.float64"),
    naive_root: ("finite", "law 8", "parameter 'scalar' alone, torch.float64"),
    detached: ("derivatives", "law 8", "parameter 'scalar' alone, torch.float64"),
}


@pytest.mark.parametrize("update", WRONG_UPDATES, ids=lambda update: update.__name__)
def test_the_laws_of_optimizers_catch_an_update_that_is(update):
    law, says, on = WRONG_UPDATES[update]
    with pytest.raises(LawViolation, match=says) as caught:
        laws.check_optimizer(mutated(update), laws=[law])
    assert caught.value.on == on
    with pytest.raises(LawViolation) as caught:
        laws.check_optimizer(mutated(update))
    assert law in caught.value.report.broken


def test_the_parameter_that_shows_it_is_named():
    """A rule that looks at matrices alone, and is wrong there."""

    def of_matrices(rate, right):
        def update(grads, state, params, context):
            wrong = {name: g.detach() if g.dim() == 2 else g for name, g in grads.items()}
            return right.update(TensorDict(wrong, batch_size=[]), state, params, context)

        return update

    with pytest.raises(LawViolation) as caught:
        laws.check_optimizer(mutated(of_matrices))
    assert caught.value.report.broken == ("derivatives",)
    assert caught.value.on == "parameter 'weight' alone, torch.float64"


def test_a_transformation_that_is_wrong_is_caught():
    right = ps.clip_by_global_norm(0.5)

    def update(grads, state, params, context):
        grads, state = right.update(grads, state, params, context)
        return grads.apply(lambda g: g + torch.rand(())), state

    with pytest.raises(LawViolation, match="random state of torch on the CPU") as caught:
        laws.check_transformation(ps.GradientTransformation(right.init, update, right.hyperparams))
    assert "pure" in caught.value.report.broken


def test_the_laws_of_optimizers_refuse_what_is_none():
    with pytest.raises(TypeError, match="optimizer must be an Optimizer or a function of the rate"):
        laws.check_optimizer(ps.clip_by_global_norm(1.0))
    with pytest.raises(TypeError, match="transformation must be a GradientTransformation"):
        laws.check_transformation(ps.sgd(0.1))
    with pytest.raises(laws.LawDoesNotApplyError, match="'rates' does not: an optimizer is given"):
        laws.check_optimizer(ps.sgd(0.1), laws=["rates"])
    with pytest.raises(laws.LawDoesNotApplyError, match="'derivatives' does not: smooth=False"):
        laws.check_optimizer(ps.sgd, smooth=False, laws=["derivatives"])
