"""Partition, masked and freeze: who updates what; and what a parameter is, read off a model."""

from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict
from torch import nn
from torch.nn.utils import parametrizations

import purestep as ps
from _rules import SHAPES, assert_same_bits, context, gradients, moved, transformed, tree
from purestep import laws, transforms
from purestep.optimizers.averaging import ema
from purestep.transforms import by_kind, freeze, masked, partition, unit_axes, unit_axes_of

PARAMS = tree()
SMALL = {"scalar": "small", "bias": "small", "weight": "large", "kernel": "large", "empty": "large"}
OPTIMIZERS = {
    "partition of optimizers": lambda rate: partition(
        {"small": ps.sgd(rate, momentum=0.9), "large": ps.adamw(rate)}, SMALL
    ),
    "partition of chains": lambda rate: partition(
        {"small": ps.chain(ps.clip_by_global_norm(0.5), ps.sgd(rate)), "large": ps.chain(ps.adamw(rate))}, SMALL
    ),
    "partition of partitions": lambda rate: partition(
        {
            "small": ps.sgd(rate),
            "large": partition({"a": ps.adamw(rate), "b": ps.sgd(rate)}, {"weight": "a", "[ke]*": "b"}),
        },
        SMALL,
    ),
    "masked": lambda rate: masked(ps.adamw(rate), ps.matrices_only),
    "freeze": lambda rate: freeze(ps.adamw(rate, weight_decay=0.3), ["b*", "weight"]),
}
few = settings(max_examples=25, deadline=None)


@laws.parametrize_with_laws({name: partial(laws.check_optimizer, make) for name, make in OPTIMIZERS.items()})
def test_they_keep_the_laws_of_optimizers(law):
    law()


# A partition.
RULES = [
    ps.sgd(0.1, momentum=0.9, weight_decay=0.1),
    ps.adamw(0.1),
    ps.chain(transforms.clip_by_norm(0.5), transforms.add_noise(0.1), transforms.trace(0.9), ps.sgd(0.1)),
    ema(ps.sgd(0.1), 0.9),
]


def check_partition(rule, labels, cut):
    """``cut`` gives each leaf and its state the bits that ``rule`` gives them in the whole."""
    grads = gradients(3)
    right, _ = moved(rule, grads, PARAMS)
    got, state = moved(cut, grads, PARAMS)
    assert_same_bits(got, right)
    assert list(got[-1].keys()) == list(SHAPES)
    assert set(state.keys()) == set(labels)


@given(
    rule=st.sampled_from(RULES), labels=st.lists(st.sampled_from("abc"), min_size=5, max_size=5), patterns=st.booleans()
)
@few
def test_a_partition_into_parts_of_one_rule_is_that_rule(rule, labels, patterns):
    table = dict(zip(SHAPES, labels, strict=True))
    parts = dict.fromkeys(labels, rule)
    check_partition(rule, labels, partition(parts, table if patterns else lambda name, parameter: table[name]))


def test_that_law_catches_parts_that_differ():
    other = partition({"small": ps.sgd(0.1), "large": ps.sgd(0.1001)}, SMALL)
    with pytest.raises(AssertionError):
        check_partition(ps.sgd(0.1), ["small", "large"], other)


def test_each_part_updates_its_own_and_keeps_its_own():
    optimizer = partition({"small": ps.sgd(0.1), "large": ps.adamw(0.2)}, SMALL)
    grads = gradients(2)
    got, state = moved(optimizer, grads, PARAMS)
    for label, alone in (("small", ps.sgd(0.1)), ("large", ps.adamw(0.2))):
        own = [name for name in SHAPES if SMALL[name] == label]
        right, kept = moved(alone, [one.select(*own) for one in grads], PARAMS.select(*own))
        assert_same_bits([one.select(*own) for one in got], right)
        assert_same_bits(state[label], kept)


def test_what_parts_report_has_their_label():
    optimizer = partition({"small": ps.chain(ps.clip_by_global_norm(1.0), ps.sgd(0.1)), "large": ps.adamw(0.2)}, SMALL)
    _, state = moved(optimizer, gradients(1), PARAMS)
    used = optimizer.hyperparams(state, context())
    assert set(used) == {"grad_norm.small", "learning_rate.small", "learning_rate.large"}
    assert used["learning_rate.large"].item() == 0.2


def test_a_partition_of_transformations_is_one():
    rule = partition({"small": transforms.scale(2.0), "large": transforms.scale(0.0)}, SMALL)
    assert isinstance(rule, ps.GradientTransformation)
    [got], _ = transformed(rule, [PARAMS], PARAMS)
    for name, leaf in PARAMS.items():
        assert torch.equal(got[name], leaf * {"small": 2, "large": 0}[SMALL[name]])


def test_parts_evaluate_with_what_is_theirs_and_others_with_what_they_are():
    optimizer = partition({"small": ema(ps.sgd(0.1), 0.5), "large": ps.sgd(0.1)}, SMALL)
    got, state = moved(optimizer, gradients(3), PARAMS)
    # A step asks with all parameters, those that nobody trains among them.
    everything = TensorDict({"frozen": torch.ones(2), **dict(got[-1].items())})
    evaluated = optimizer.eval_params(everything, state)
    assert set(evaluated.keys()) == set(everything.keys())
    for name, leaf in everything.items():
        if SMALL.get(name) == "small":
            assert torch.equal(evaluated[name], state["small", "average", name])
            assert not torch.equal(evaluated[name], leaf)
        else:
            assert torch.equal(evaluated[name], leaf)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"*": "small", "weight": "large"}, "labels gives 'weight' more than one label: 'small' by '*' and 'large' by"),
        ({"bias": "small", "weight": "large"}, "labels leaves out 'scalar', 'kernel', 'empty'"),
        ({**SMALL, "wieght": "large"}, "the pattern of labels='wieght' names no parameter (did you mean 'weight'"),
        (dict.fromkeys(SHAPES, "small"), "no parameter has the label 'large' of parts"),
        (lambda name, p: "small", "no parameter has the label 'large' of parts"),
        (lambda name, p: "smal", "the label of 'scalar' must be one of 'small', 'large', which parts has, got 'smal'"),
        (lambda name, p: None, "which parts has, got None"),
    ],
)
def test_every_parameter_exactly_once(labels, message):
    optimizer = partition({"small": ps.sgd(0.1), "large": ps.adamw(0.1)}, labels)
    for call in (optimizer.init, lambda params: optimizer.update(params, {}, params, context())):
        with pytest.raises(ValueError) as caught:
            call(PARAMS)
        assert message in str(caught.value)


def test_two_patterns_may_agree_on_a_parameter():
    optimizer = partition({"a": ps.sgd(0.1)}, {"*": "a", "weight": "a"})
    assert_same_bits(moved(optimizer, gradients(1), PARAMS)[0], moved(ps.sgd(0.1), gradients(1), PARAMS)[0])


# Masks.
@given(
    chosen=st.sets(st.sampled_from(list(SHAPES)), min_size=1),
    rule=st.sampled_from(RULES),
    by=st.sampled_from(["names", "function"]),
)
@few
def test_masked_is_a_partition_beside_what_does_nothing(chosen, rule, by):
    mask = sorted(chosen) if by == "names" else lambda name, parameter: name in chosen
    grads = gradients(2)
    got, state = moved(masked(rule, mask), grads, PARAMS)
    own = [name for name in SHAPES if name in chosen]
    right, kept = moved(rule, [one.select(*own) for one in grads], PARAMS.select(*own))
    assert_same_bits([one.select(*own) for one in got], right)
    assert_same_bits(state, kept)
    for name in set(SHAPES) - chosen:
        assert torch.equal(got[-1][name], PARAMS[name])
    if len(chosen) < len(SHAPES):
        rest = [name for name in SHAPES if name not in chosen]
        assert_same_bits(moved(freeze(rule, rest), grads, PARAMS)[0], got)


def test_masked_lets_other_gradients_pass():
    rule = masked(transforms.scale(0.0), "weight")
    assert isinstance(rule, ps.GradientTransformation)
    [got], _ = transformed(rule, [PARAMS], PARAMS)
    for name, leaf in PARAMS.items():
        assert torch.equal(got[name], torch.zeros_like(leaf) if name == "weight" else leaf)


def test_frozen_parameters_do_not_move_by_decay_or_momentum_and_take_no_memory():
    optimizer = freeze(ema(ps.adamw(0.1, weight_decay=0.5), 0.5), "*e*")
    got, state = moved(optimizer, gradients(4), PARAMS)
    evaluated = optimizer.eval_params(got[-1], state)
    for name, leaf in PARAMS.items():
        assert torch.equal(got[-1][name], leaf) == ("e" in name)
        assert torch.equal(evaluated[name], leaf) == ("e" in name)
    assert set(state["inner", "exp_avg"].keys()) == {"scalar", "bias"}


def test_freezing_in_a_step():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    optimizer = freeze(ps.adamw(0.1), "0.*")
    step = ps.train_step(model, lambda model, batch: ps.mean(model(batch).square()), optimizer)
    state = ps.init_state(model, optimizer, seed=0)
    after, _ = step(state, torch.ones(2, 3))
    assert {n for n, p in after.params.items() if torch.equal(p, state.params[n])} == {"0.weight", "0.bias"}


# Kinds.
class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.memory = nn.GRU(4, 3)
        self.batch = nn.BatchNorm1d(3)
        self.up = nn.ConvTranspose1d(4, 6, 3)
        self.bare = nn.Parameter(torch.ones(3))
        self.weighed = parametrizations.weight_norm(nn.Linear(3, 2))
        self.head = nn.Linear(4, 7)
        self.head.weight = self.words.weight

        class MyRMSNorm(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(2))

        self.own = MyRMSNorm()


def test_kinds_of_parameters():
    labels = by_kind(Zoo()).table
    names = {kind: {name for name, label in labels.items() if label == kind} for kind in set(labels.values())}
    assert names["embeddings"] == {"words.weight"}  # the head's, tied to it, has no other name
    assert names["norms"] == {"norm.weight", "norm.bias", "batch.weight", "batch.bias", "own.scale"}
    assert names["biases"] == {
        *("attention.in_proj_bias", "attention.out_proj.bias", "memory.bias_ih_l0", "memory.bias_hh_l0"),
        *("up.bias", "weighed.bias", "head.bias"),
    }
    assert {"bare", "up.weight", "weighed.parametrizations.weight.original0"} <= names["weights"]
    assert sum(map(len, names.values())) == len(dict(Zoo().named_parameters()))


def test_a_partition_by_kind():
    model = Zoo()
    kinds = by_kind(model)
    rates = {"weights": 0.1, "biases": 0.2, "norms": 0.3, "embeddings": 0.4}
    optimizer = partition({kind: ps.sgd(rate) for kind, rate in rates.items()}, kinds)
    params = TensorDict({name: p.detach() for name, p in model.named_parameters()})
    ones = params.apply(torch.ones_like)
    [after], _ = moved(optimizer, [ones], params)
    for name, leaf in params.items():
        assert torch.allclose(leaf - after[name], torch.full_like(leaf, rates[kinds.table[name]]), atol=1e-6)
    assert repr(kinds) == "by_kind(Zoo)"
    with pytest.raises(ValueError, match=r"by_kind\(Zoo\) knows no parameter 'head\.wieght' \(did you mean"):
        kinds("head.wieght", torch.ones(1))
    with pytest.raises(ValueError, match=r"the label of 'words\.weight' must be one of 'weights', 'biases'"):
        partition({"weights": ps.sgd(0.1), "biases": ps.sgd(0.1)}, kinds).init(params)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got 3"):
        by_kind(3)


def test_axes_of_units():
    model = Zoo()
    axes = unit_axes_of(model)
    assert axes("up.weight", model.up.weight) == (0, 2)
    assert unit_axes("up.weight", model.up.weight) == (1, 2)
    for name, parameter in model.named_parameters():
        if name != "up.weight":
            assert axes(name, parameter) == unit_axes(name, parameter)
    assert unit_axes("", torch.ones(())) == ()
    assert unit_axes("", torch.ones(3)) == (0,)
    given = TensorDict({"up.weight": model.up.weight.detach().double()})
    [clipped], _ = transformed(transforms.adaptive_clip(1e-4, axes=axes), [given], given)
    norms = clipped["up.weight"].square().sum((0, 2)).sqrt()
    assert torch.allclose(norms, 1e-4 * given["up.weight"].square().sum((0, 2)).sqrt())
    [centred], _ = transformed(transforms.centralize(axes=axes), [given], given)
    assert centred["up.weight"].mean((0, 2)).abs().max() < 1e-15


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: partition({}, {}),
            TypeError,
            "parts must be a dict from labels to updates, with at least one, got {}",
        ),
        (lambda: partition([ps.sgd(0.1)], {}), TypeError, "parts must be a dict from labels to updates"),
        (lambda: partition({1: ps.sgd(0.1)}, {}), TypeError, "parts must have strings as its labels, got 1"),
        (
            lambda: partition({"a": ps.sgd}, {}),
            TypeError,
            "parts['a'] must be a GradientTransformation or an Optimizer",
        ),
        (
            lambda: partition({"a": ps.sgd(0.1), "b": transforms.scale(2.0)}, {}),
            ValueError,
            "parts must all be optimizers or all be gradient transformations, got an optimizer as 'a' and a "
            "transformation as 'b': close it",
        ),
        (lambda: partition({"a": ps.sgd(0.1)}, "a"), TypeError, "labels must be a dict from patterns to labels or a"),
        (lambda: partition({"a": ps.sgd(0.1)}, {1: "a"}), TypeError, "labels must have shell patterns over names"),
        (
            lambda: partition({"body": ps.sgd(0.1)}, {"*": "boddy"}),
            ValueError,
            "labels['*'] must be one of 'body', which parts has, got 'boddy' (did you mean 'body'?)",
        ),
        (lambda: masked(ps.sgd, "a"), TypeError, "update must be a GradientTransformation or an Optimizer, got"),
        (
            lambda: masked(ps.sgd(0.1), None),
            TypeError,
            "mask must be a shell pattern over names, several, or a function",
        ),
        (lambda: masked(ps.sgd(0.1), []), ValueError, "mask must name at least one parameter, got an empty list"),
        (
            lambda: masked(ps.sgd(0.1), "kernal").init(PARAMS),
            ValueError,
            "mask='kernal' names no parameter (did you mean 'kernel'?); there are 'scalar', 'bias'",
        ),
        (lambda: masked(ps.sgd(0.1), lambda n, p: False).init(PARAMS), ValueError, "mask must choose at least one of"),
        (lambda: freeze("a", ps.sgd(0.1)), TypeError, "optimizer must be a GradientTransformation or an Optimizer"),
        (lambda: freeze(ps.sgd(0.1), "*").init(PARAMS), ValueError, "patterns='*' freezes every parameter: 'scalar'"),
        (lambda: freeze(ps.sgd(0.1), "hed").init(PARAMS), ValueError, "patterns='hed' names no parameter"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
