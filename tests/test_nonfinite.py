"""Law 9: nothing that is not finite is applied silently."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _fit import kept
from purestep.laws._compare import named_leaves, same_bits


def make_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()


def objective(model, batch):
    return ps.mean(model(batch["x"]).square(), where=batch["real"])


OPTIMIZER = ps.chain(ps.clip_by_global_norm(0.3), ps.adamw(0.05))


def make_batch(poison=None):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    real = torch.ones(6, 1, dtype=torch.bool)
    if poison == "weight zero":
        real[:] = False
    elif poison is not None:
        x[2, 1] = poison
    return TensorDict({"x": x, "real": real}, batch_size=[6])


def step_of(**options):
    return ps.train_step(make_model(), objective, OPTIMIZER, **options)


def state_of(**options):
    return ps.init_state(make_model(), OPTIMIZER, seed=0, **options)


def same(first, second, but=()):
    one, two = named_leaves(first, "state"), named_leaves(second, "state")
    assert one.keys() == two.keys()
    for name, leaf in one.items():
        if not any(part in name for part in but):
            assert same_bits(leaf, two[name]), name


@pytest.fixture(scope="module", params=["eager", "compiled", "donated"])
def way(request):
    """Each of the ways to run a step; the compiled ones are compiled once each."""
    if request.param == "eager":
        return lambda step: step
    if ps.compiler_missing():
        pytest.skip(ps.compiler_missing())
    return lambda step: ps.compile(step, donate=request.param == "donated")


@pytest.fixture(scope="module")
def raising(way):
    return way(step_of())


@pytest.fixture(scope="module")
def skipping(way):
    return way(step_of(on_nonfinite="skip"))


POISONS = [float("nan"), float("inf"), "weight zero"]


@pytest.mark.parametrize("poison", POISONS)
def test_raise_leaves_the_state_whole(raising, poison):
    state, _ = raising(state_of(), make_batch())
    kept = state.clone()
    with pytest.raises(ps.NonFiniteError, match=r"the loss is (nan|inf).*The state is unchanged"):
        raising(state, make_batch(poison))
    same(state, kept)
    after, metrics = raising(state, make_batch())
    assert int(after.step) == 2
    assert "nonfinite" not in metrics


@pytest.mark.parametrize("poison", POISONS)
def test_skip_changes_the_calls_and_the_count_and_nothing_else(skipping, poison):
    state, _ = skipping(state_of(), make_batch())
    kept = state.clone()
    state, metrics = skipping(state, make_batch(poison))
    same(state, kept, but=("calls", "skipped"))
    assert (int(state.calls), int(state.step)) == (2, 1)
    assert int(state.aux["skipped"]) == int(metrics["skipped"]) == 1
    state, metrics = skipping(state, make_batch())
    assert (int(state.step), int(metrics["skipped"])) == (2, 1)


def test_a_policy_changes_no_bit_of_a_finite_step(raising, skipping):
    same(raising(state_of(), make_batch())[0], skipping(state_of(), make_batch())[0])


def test_the_message_names_the_parameters_and_an_empty_window():
    with pytest.raises(ps.NonFiniteError, match=r"not finite in '0\.weight'"):
        step_of()(state_of(), make_batch(float("nan")))
    with pytest.raises(ps.NonFiniteError, match="the loss has weight zero: nothing in the batch counts for it"):
        step_of()(state_of(), make_batch("weight zero"))


def two_terms(model, batch):
    return ps.mean(model(batch["x"]).square()) + ps.mean(model(batch["x"]), where=batch["real"])


def test_a_term_without_weight_is_named():
    step = ps.train_step(make_model(), two_terms, OPTIMIZER, accumulate=2)
    with pytest.raises(ps.NonFiniteError, match="term 1 of the loss has weight zero"):
        step(state_of(), make_batch("weight zero"))


def test_a_replica_that_is_not_finite_stays_and_says_so():
    states = [state_of(), state_of()]
    states[1].params["0.weight"].fill_(float("nan"))
    stacked = torch.stack(states)
    after, metrics = torch.vmap(step_of(), in_dims=(0, None))(stacked, make_batch())
    assert metrics["nonfinite"].value().tolist() == [0.0, 1.0]
    same(after[1], states[1])
    moved = step_of()(states[0], make_batch())[0].params["0.weight"]
    assert torch.allclose(after[0].params["0.weight"], moved, rtol=1e-10)


def test_skipping_works_under_vmap_a_replica_each():
    states = [state_of(), state_of()]
    states[0].params["0.weight"].fill_(float("nan"))
    step = step_of(on_nonfinite="skip")
    after, metrics = torch.vmap(step, in_dims=(0, None))(torch.stack(states), make_batch())
    assert metrics["skipped"].tolist() == [1, 0]
    assert after.step.tolist() == [0, 1]


def test_a_gradient_is_seen_even_where_the_loss_is_finite():
    """√x at zero: a finite loss, an infinite gradient."""
    model = nn.Linear(2, 1)
    optimizer = ps.sgd(0.1)
    step = ps.train_step(model, lambda model, batch: ps.mean(model(batch["x"]).square().sqrt()), optimizer)
    state = ps.init_state(model, optimizer, seed=0)
    state.params["weight"].zero_()
    state.params["bias"].zero_()
    with pytest.raises(ps.NonFiniteError, match=r"the loss is 0\.0, its gradient not finite"):
        step(state, {"x": torch.ones(3, 2)})


def test_with_a_scale_raise_means_at_its_minimum():
    scale = ps.DynamicLossScale(initial=4.0)
    step = step_of(loss_scale=scale)
    state = state_of(aux={"loss_scale": scale})
    for left in (2.0, 1.0):
        state, metrics = step(state, make_batch(float("inf")))
        assert float(metrics["loss_scale"]) == left
    with pytest.raises(ps.NonFiniteError):
        step(state, make_batch(float("inf")))
    assert (int(state.calls), int(state.step), int(state.aux["skipped"])) == (2, 0, 2)


def test_a_meta_gradient_may_pass_through_either_policy():
    for policy in ("raise", "skip"):
        step, state = step_of(on_nonfinite=policy), state_of()

        def after(factor, step=step, state=state):
            params = TensorDict({name: leaf * factor for name, leaf in state.params.items()})
            return step(state.replace(params=params), make_batch())[0].params["0.weight"].sum()

        slope = torch.func.grad(after)(torch.tensor(1.0, dtype=torch.float64))
        assert torch.isfinite(slope)


def test_fit_hands_over_a_whole_state(raising, way, tmp_path):
    batches = [make_batch(), make_batch(), make_batch(float("nan")), make_batch()]
    with pytest.raises(ps.NonFiniteError) as caught:
        ps.fit(raising, state_of(), batches, steps=4, checkpoint=tmp_path / "run", progress=False)
    state = caught.value.fit.state
    assert (int(state.step), int(state.calls)) == (2, 2)
    assert all(torch.isfinite(leaf).all() for leaf in state.params.values())
    assert int(kept(tmp_path / "run", state_of()).step) == 2
    # The batch was not used: the run that goes on meets it again, or another in its place.
    with pytest.raises(ps.NonFiniteError):
        ps.fit(raising, state_of(), batches, steps=4, checkpoint=tmp_path / "run", resume="auto", progress=False)
    batches[2] = make_batch()
    result = ps.fit(raising, state_of(), batches, steps=4, checkpoint=tmp_path / "run", resume="auto", progress=False)
    assert int(result.state.step) == 4


SMALL = nn.Linear(3, 1).double(), ps.sgd(0.05)  # what is quick to compile


def small_step():
    return ps.train_step(SMALL[0], objective, SMALL[1])


@pytest.mark.compiler
def test_a_donated_ensemble_is_whole_where_one_replica_raises():
    step = ps.compile(torch.vmap(small_step(), in_dims=(0, None)), donate=True)
    states = [ps.init_state(*SMALL, seed=0), ps.init_state(*SMALL, seed=0)]
    states[1].params["weight"].fill_(float("nan"))
    state = torch.stack(states)
    kept = state.clone()
    with pytest.raises(ps.NonFiniteError):
        step(state, make_batch())
    same(state, kept)


@pytest.mark.compiler
def test_a_donated_step_of_two_is_whole_where_the_second_raises():
    inner = small_step()

    def both(state, batches):
        state, first = inner(state, batches[0])
        state, second = inner(state, batches[1])
        return state.replace(aux=TensorDict({"skipped": state.aux["skipped"] + 7})), ps.merge(first, second)

    step, state = ps.compile(both, donate=True), ps.init_state(*SMALL, seed=0)
    kept = state.clone()
    with pytest.raises(ps.NonFiniteError, match="the loss is nan"):
        step(state, [make_batch(), make_batch(float("nan"))])
    same(state, kept)


def test_a_finding_is_found_in_any_dict():
    from collections import OrderedDict

    from purestep import nonfinite

    found = nonfinite.NonFinite(torch.tensor(True), torch.tensor(float("nan")), torch.ones(1), ("w",))
    with pytest.raises(ps.NonFiniteError):
        nonfinite.raise_pending({"inner": OrderedDict(nonfinite=found)})
    fine = nonfinite.NonFinite(torch.tensor(False), torch.tensor(1.0), torch.ones(1), ("w",))
    assert nonfinite.raise_pending((OrderedDict(nonfinite=fine, loss=1),)) == (OrderedDict(loss=1),)


@pytest.mark.parametrize("size", [5e18, 1.8e19, 1e30])
def test_a_large_gradient_is_judged_alike_eagerly_and_vmapped(size):
    model = nn.Linear(8, 1, bias=False)
    optimizer = ps.sgd(0.0)
    step = ps.train_step(model, lambda m, x: ps.mean(m(x)), optimizer, on_nonfinite="skip")
    state, x = ps.init_state(model, optimizer, seed=0), torch.full((1, 8), size)
    alone = step(state, x)[1]["skipped"]
    together = torch.vmap(step, in_dims=(0, None))(torch.stack([state, state]), x)[1]["skipped"]
    assert together.tolist() == [int(alone)] * 2


# Mutants: what each law would let pass if it were not there.


def test_without_the_guard_a_nan_is_applied_and_the_law_sees_it():
    gradient, optimizer = ps.grad_step(make_model(), objective), OPTIMIZER
    state, batch = state_of(), make_batch(float("nan"))
    grads = gradient(state, batch).mean()
    params, _ = optimizer.update(grads, state.opt_state, state.params, ps.UpdateContext(state.step, state.key))
    with pytest.raises(AssertionError):
        same(params, state.params)


WRONG = {
    "a policy": (lambda: step_of(on_nonfinite="ignore"), ValueError, "on_nonfinite must be one of 'raise', 'skip'"),
    "no count": (
        lambda: step_of(on_nonfinite="skip")(state_of().replace(aux=TensorDict({})), make_batch()),
        ValueError,
        "state.aux lacks 'skipped'",
    ),
    "no scale": (
        lambda: step_of(loss_scale=ps.DynamicLossScale())(state_of(), make_batch()),
        ValueError,
        "state.aux lacks 'loss_scale'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_the_message(case):
    make, kind, message = WRONG[case]
    with pytest.raises(kind, match=message):
        make()
