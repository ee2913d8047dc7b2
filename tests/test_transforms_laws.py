"""Laws of gradient transformations over all of them, and a mutant for each law."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict

import purestep as ps
from _rules import SHAPES, assert_close, assert_same_bits, context, gradients, transformed, tree
from purestep import laws, random, transforms

WAVE = ps.schedules.cosine(peak=0.7, total_steps=9)
# By name: a rule that treats each leaf by itself.
LEAFWISE = {
    "scale": transforms.scale(-1.5),
    "scale_by_schedule": transforms.scale_by_schedule(WAVE),
    "scale_by_sign": transforms.scale_by_sign(),
    "scale_by_trust_ratio": transforms.scale_by_trust_ratio(coefficient=0.3, eps=1e-3),
    "normalize, a leaf at a time": transforms.normalize(per_leaf=True),
    "clip_by_value": transforms.clip_by_value(0.4),
    "clip_by_norm": transforms.clip_by_norm(0.5),
    "adaptive_clip": transforms.adaptive_clip(0.1),
    "centralize": transforms.centralize(),
    "add_decayed_weights": transforms.add_decayed_weights(0.1),
    "add_decayed_weights to matrices": transforms.add_decayed_weights(WAVE, mask=ps.matrices_only),
    "add_noise": transforms.add_noise(0.3),
    "zero_nonfinite": transforms.zero_nonfinite(),
    "trace": transforms.trace(0.9),
    "trace, nesterov": transforms.trace(0.9, nesterov=True),
    "ema": transforms.ema(0.9),
    "ema of a scheduled decay": transforms.ema(WAVE),
    "ema without debias": transforms.ema(0.9, debias=False),
    "scale_by_adam": transforms.scale_by_adam(),
    "scale_by_adam with eps_root": transforms.scale_by_adam(betas=(0.5, 0.9), eps_root=1e-3),
    "scale_by_rms": transforms.scale_by_rms(),
    "stateless": transforms.stateless(lambda grads, params, context: {n: g.tanh() for n, g in grads.items()}),
}
OTHERS = {
    "normalize": transforms.normalize(),
    "normalize with eps": transforms.normalize(eps=1e-2),
    "clip_by_global_norm": transforms.clip_by_global_norm(0.5),
    "partition": transforms.partition(
        {"small": transforms.trace(0.9), "large": ps.clip_by_global_norm(0.5)},
        {"scalar": "small", "bias": "small", "[wke]*": "large"},
    ),
    "masked": transforms.masked(ps.chain(transforms.trace(0.5), transforms.clip_by_value(0.3)), ["kernel", "b*"]),
}
ALL = {**LEAFWISE, **OTHERS}
LINEAR = ["scale", "scale_by_schedule", "centralize", "trace", "trace, nesterov", "ema", "ema without debias"]
IDEMPOTENT = [
    *("scale_by_sign", "normalize", "normalize, a leaf at a time", "clip_by_value", "clip_by_norm"),
    *("clip_by_global_norm", "adaptive_clip", "centralize", "zero_nonfinite"),
]
SCALE_FREE = ["scale_by_sign", "normalize", "normalize, a leaf at a time"]
MOMENTS = ["trace", "trace, nesterov", "ema", "scale_by_adam", "scale_by_rms"]
few = settings(max_examples=25, deadline=None)


@laws.parametrize_with_laws(ALL)
def test_every_transformation_keeps_the_laws_of_update_rules(law):
    law()


def named(name):
    return st.sampled_from([name] if isinstance(name, str) else list(name))


# Each leaf by itself.
def check_leafwise(rule, grads, params, sides):
    """Whatever the partition, a part for each side gives the bits of the whole, its states included."""
    whole, kept = transformed(rule, grads, params)
    parts = dict.fromkeys(set(sides.values()), rule)
    cut, states = transformed(transforms.partition(parts, lambda name, parameter: sides[name]), grads, params)
    assert_same_bits(cut, whole)
    for side, state in states.items():
        own = [name for name in sides if sides[name] == side]
        for entry, value in kept.items():
            if not isinstance(value, torch.Tensor):
                assert_same_bits(state[entry], value.select(*own))


@given(
    name=named(LEAFWISE),
    labels=st.lists(st.sampled_from("ab"), min_size=5, max_size=5),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
@few
def test_a_rule_for_each_leaf_knows_nothing_of_partitions(name, labels, dtype):
    sides = dict(zip(SHAPES, labels, strict=True))
    check_leafwise(LEAFWISE[name], gradients(3, dtype=dtype), tree(dtype=dtype), sides)


def noise_by_place():
    def update(grads, state, params, context):
        keys = random.split(context.key, len(grads.keys()))
        noisy = {n: g + random.normal(k, g.shape, dtype=g.dtype) for k, (n, g) in zip(keys, grads.items(), strict=True)}
        return TensorDict(noisy), state

    return ps.GradientTransformation(lambda params: TensorDict({}), update)


@pytest.mark.parametrize("mutant", [ps.clip_by_global_norm(0.01), transforms.normalize(), noise_by_place()])
def test_that_law_catches_a_rule_that_looks_at_other_leaves(mutant):
    sides = dict(zip(SHAPES, "abaab", strict=True))
    with pytest.raises(AssertionError):
        check_leafwise(mutant, gradients(1), tree(), sides)


# Linear in the gradients.
def check_linear(rule, one, other, factor):
    """Sums go to sums, so a gradient may be summed over parts of a batch before or after."""
    params = tree()
    both = [TensorDict({n: factor * a[n] + b[n] for n in SHAPES}) for a, b in zip(one, other, strict=True)]
    together, _ = transformed(rule, both, params)
    apart = [transformed(rule, grads, params)[0] for grads in (one, other)]
    summed = [{n: factor * a[n] + b[n] for n in SHAPES} for a, b in zip(*apart, strict=True)]
    assert_close([dict(t.items()) for t in together], summed, relative=1e-11)


@given(name=named(LINEAR), seed=st.integers(0, 999), factor=st.floats(-3, 3))
@few
def test_a_linear_rule_takes_sums_to_sums(name, seed, factor):
    check_linear(ALL[name], gradients(4, seed=seed), gradients(4, seed=seed + 5000), factor)


@pytest.mark.parametrize("mutant", ["clip_by_norm", "scale_by_sign", "add_decayed_weights", "scale_by_adam"])
def test_that_law_catches_a_rule_that_is_not_linear(mutant):
    with pytest.raises(AssertionError):
        check_linear(ALL[mutant], gradients(2), gradients(2, seed=7), 2.0)


# Twice is once.
def check_idempotent(rule, grads, params):
    [once], _ = transformed(rule, [grads], params)
    [twice], _ = transformed(rule, [once], params)
    assert_close(twice, once, relative=1e-14)


@given(name=named(IDEMPOTENT), seed=st.integers(0, 999), scale=st.sampled_from([1e-6, 0.1, 1.0, 1e6]))
@few
def test_what_was_clipped_or_normalised_stays(name, seed, scale):
    check_idempotent(ALL[name], tree(seed, scale=scale), tree())


@pytest.mark.parametrize("mutant", [transforms.scale(0.5), transforms.normalize(eps=0.1), transforms.scale_by_rms()])
def test_that_law_catches_a_rule_that_goes_on(mutant):
    with pytest.raises(AssertionError):
        check_idempotent(mutant, tree(1), tree())


# Whatever the unit of the gradient.
def check_scale_free(rule, seed, factor):
    params, grads = tree(), gradients(3, seed=seed)
    scaled = [TensorDict({n: factor * leaf for n, leaf in one.items()}) for one in grads]
    assert_close(transformed(rule, scaled, params)[0], transformed(rule, grads, params)[0], relative=1e-12)


@given(name=named([*SCALE_FREE, "trust", "adam", "rms"]), seed=st.integers(0, 999), power=st.integers(-9, 9))
@few
def test_some_rules_do_not_know_the_gradients_unit(name, seed, power):
    without_eps = {
        "trust": transforms.scale_by_trust_ratio(coefficient=0.3),
        "adam": transforms.scale_by_adam(eps=0.0),
        "rms": transforms.scale_by_rms(eps=1e-60),
    }
    check_scale_free({**ALL, **without_eps}[name], seed, 10.0**power)


@pytest.mark.parametrize("mutant", [transforms.scale_by_adam(eps=1e-3), transforms.clip_by_norm(1.0)])
def test_that_law_catches_an_eps(mutant):
    with pytest.raises(AssertionError):
        check_scale_free(mutant, 0, 0.01)


# Chains.
@given(names=st.lists(named(ALL), min_size=3, max_size=3))
@few
def test_chains_are_associative(names):
    a, b, c = (ALL[name] for name in names)
    params, grads = tree(), gradients(2)
    flat, _ = transformed(ps.chain(a, b, c), grads, params)
    for nested in (ps.chain(ps.chain(a, b), c), ps.chain(a, ps.chain(b, c))):
        assert_same_bits(transformed(nested, grads, params)[0], flat)


# The state.
def check_state_of_shapes(rule):
    states = [rule.init(tree(seed, scale=scale)) for seed, scale in ((0, 1.0), (1, 1e6), (2, 0.0))]
    for state in states[1:]:
        assert_same_bits(state, states[0])


@pytest.mark.parametrize("name", ALL)
def test_a_first_state_is_a_function_of_shapes_alone(name):
    check_state_of_shapes(ALL[name])


def test_that_law_catches_a_state_of_values():
    with pytest.raises(AssertionError):
        check_state_of_shapes(ps.GradientTransformation(lambda params: params.clone(), lambda *given: given[:2]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("wrong", ["missing", "extra", "misshaped"])
def test_gradients_that_are_not_the_parameters(name, wrong):
    params, grads = tree(), tree(1)
    state = ALL[name].init(params)
    changed = dict(grads.items())
    if wrong == "missing":
        del changed["bias"]
    else:
        changed["bias" if wrong == "misshaped" else "bogus"] = torch.ones(1, dtype=torch.float64)
    says = {"missing": "bias", "extra": "bogus", "misshaped": r"grads\['bias'\] must have its parameter's shape \(5,\)"}
    with pytest.raises((KeyError, ValueError), match=says[wrong]):
        ALL[name].update(TensorDict(changed), state, params, context())


@pytest.mark.parametrize("name", [name for name in ALL if set(ALL[name].init(tree()).keys()) - {"norm"}])
def test_a_state_of_another_rule_is_refused(name):
    for state in (TensorDict({}), ALL[name].init(tree(shapes={"other": (2,)})) if name in MOMENTS else TensorDict({})):
        with pytest.raises(KeyError, match="key"):  # which a step turns into a sentence about whose state it is
            ALL[name].update(tree(1), state, tree(), context())
