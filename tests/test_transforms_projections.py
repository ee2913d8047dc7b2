"""Projections after an optimizer: the nearest point, and what a chain does with them."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tensordict import TensorDict

import purestep as ps
from _rules import assert_close, assert_same_bits, context, gradients, moved, tree
from purestep import transforms
from purestep.transforms import project, project_nonnegative, project_norm_ball

PARAMS = tree()
few = settings(max_examples=25, deadline=None)


def check_projection(projection, inside, params):
    """What it gives is inside, the nearest such point, and stays where it is."""
    projected = projection.project(params, context())
    assert inside(projected)
    assert_close(dict(projection.project(projected, context()).items()), dict(projected.items()), relative=1e-14)
    distance = transforms.global_norm(TensorDict({n: p - projected[n] for n, p in params.items()}))
    for seed in range(20):
        other = projection.project(tree(seed, scale=0.5 + seed / 10), context())
        assert distance <= transforms.global_norm(TensorDict({n: p - other[n] for n, p in params.items()})) + 1e-12


def nonnegative(params):
    return all((leaf >= 0).all() for leaf in params.values())


def in_ball(params):
    return transforms.global_norm(params) <= 0.7 * (1 + 1e-12)


def each_in_ball(params):
    return all(leaf.norm() <= 0.7 * (1 + 1e-12) for leaf in params.values())


PROJECTIONS = {
    "project_nonnegative": (project_nonnegative(), nonnegative),
    "project_norm_ball": (project_norm_ball(0.7), in_ball),
    "project_norm_ball, each": (project_norm_ball(0.7, per_leaf=True), each_in_ball),
}


@given(
    name=st.sampled_from(list(PROJECTIONS)), seed=st.integers(100, 999), scale=st.sampled_from([0.0, 0.01, 1.0, 100.0])
)
@few
def test_a_projection_gives_the_nearest_point(name, seed, scale):
    check_projection(*PROJECTIONS[name], tree(seed, scale=scale))


@pytest.mark.parametrize(
    ("mutant", "inside"),
    [(project(torch.abs), nonnegative), (project(lambda p: p / 2), in_ball), (project(lambda p: p), nonnegative)],
)
def test_that_law_catches_what_is_no_projection(mutant, inside):
    with pytest.raises(AssertionError):
        check_projection(mutant, inside, tree(100, scale=3.0))


def test_a_chain_projects_after_the_optimizer():
    optimizer = ps.chain(ps.sgd(1.0), project_nonnegative(where=["bias", "weight"]))
    got, state = moved(optimizer, gradients(3), PARAMS)
    assert list(state.keys()) == ["0", "1"]
    assert list(state["1"].keys()) == []
    params = PARAMS
    for step, grads in enumerate(gradients(3)):
        params = TensorDict({n: p - grads[n] for n, p in params.items()})
        params = TensorDict({n: p.clamp(min=0) if n in ("bias", "weight") else p for n, p in params.items()})
        assert_same_bits(got[step], params)
    assert (got[-1]["kernel"] < 0).any()


def test_a_scheduled_radius():
    shrinking = ps.chain(ps.sgd(0.0), project_norm_ball(ps.schedules.linear(1.0, 0.2, 2)))
    norms = [transforms.global_norm(p).item() for p in moved(shrinking, gradients(3), PARAMS)[0]]
    assert norms == pytest.approx([1.0, 0.6, 0.2])


def test_derivatives_at_the_edge():
    def slope(projection, at):
        return torch.func.grad(lambda w: projection.project(TensorDict({"w": w}), context())["w"].sum())(
            torch.tensor(at, dtype=torch.float64)
        ).tolist()

    assert slope(project_nonnegative(), [0.0, 1.0, -1.0]) == [1, 1, 0]
    assert slope(project_norm_ball(1.0), [0.0, 0.0]) == [1, 1]
    assert slope(project_norm_ball(5.0), [3.0, 4.0]) == [1, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: project(3), TypeError, "fn must be a function parameter -> parameter, got 3"),
        (lambda: project(torch.abs, where=3), TypeError, "where must be a shell pattern over names, several"),
        (lambda: project_norm_ball(0.0), ValueError, "radius must be a finite number above 0, got 0.0"),
        (lambda: project_norm_ball(1.0, per_leaf="no"), TypeError, "per_leaf must be True or False, got 'no'"),
        (
            lambda: ps.chain(ps.sgd(0.1), project_nonnegative(where="wieght")).init(PARAMS),
            ValueError,
            "where='wieght' names no parameter (did you mean 'weight'",
        ),
        (
            lambda: project(lambda p: p.float()).project(PARAMS, context()),
            ValueError,
            "fn must keep shape and dtype: 'scalar' must be () torch.float64, got () torch.float32",
        ),
        (
            lambda: ps.chain(project_nonnegative(), ps.sgd(0.1)),
            ValueError,
            "a projection must follow an optimizer, got one as part 0 of 2",
        ),
        (
            lambda: ps.chain(transforms.scale(1.0), project_nonnegative()),
            ValueError,
            "a projection must follow an optimizer, got one as part 1 of 2",
        ),
        (lambda: ps.chain(project_nonnegative()), ValueError, "a projection must follow an optimizer"),
        (
            lambda: ps.chain(ps.sgd(0.1), project_nonnegative(), ps.sgd(0.1)),
            ValueError,
            "an optimizer must be the last part of chain but for projections, got one as part 0 of 3",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
