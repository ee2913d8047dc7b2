"""measure.ceilings and measure.report."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import purestep as ps
from _measuring import roof
from purestep import measure
from purestep.measure._machine import tf32, tf32_allowed


@pytest.fixture
def small_ceilings(monkeypatch):
    module = sys.modules["purestep.measure.ceilings"]
    monkeypatch.setattr(module, "_KEPT", {})
    monkeypatch.setattr(module, "_SIDE", {"cpu": 64})
    monkeypatch.setattr(module, "_COPIED", {"cpu": 1 << 20})
    counted = []
    real = module._measured
    monkeypatch.setattr(module, "_measured", lambda *args: counted.append(args) or real(*args))
    return counted


def test_ceilings_are_measured_once_in_a_process_and_once_in_a_file(small_ceilings, monkeypatch, tmp_path):
    before = torch.get_rng_state()
    first = measure.ceilings(threads=1)
    assert set(first.matmul) == {"float32", "float64", "bfloat16"}
    assert all(rate > 1e6 for rate in (*first.matmul.values(), first.copy))
    assert measure.ceilings("cpu", threads=1) is first
    assert torch.equal(before, torch.get_rng_state())
    path = tmp_path / "kept" / "rates.json"
    measure.ceilings(threads=1, cache=path)
    assert len(small_ceilings) == 1
    module = sys.modules["purestep.measure.ceilings"]
    monkeypatch.setattr(module, "_KEPT", {})
    assert measure.ceilings(threads=1, cache=path) == first
    assert len(small_ceilings) == 1
    assert json.loads(first.to_json())["threads"] == 1
    assert "matmul, float32" in str(first)


def test_a_report_of_an_eager_step(job):
    state, batch = job.state(), job.batch(length=8)
    kept = state.clone()
    seen = measure.report(job.step, state, batch, tokens=lambda b: 5 * len(b), max_time=0.1, ceilings=roof())
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(kept), strict=True))
    assert (seen.examples, seen.tokens, seen.device, seen.dtype) == (8, 40, "cpu", "float64")
    assert (seen.graphs, seen.graph_breaks, seen.recompilations, seen.launches) == (0, 0, 0, None)
    # 4 -> 6 without an input gradient, and 6 -> 3 with one; two operations a product.
    assert seen.flops == 2 * 8 * (2 * 4 * 6 + 3 * 6 * 3)
    after, _ = job.step(state, batch)
    changed = [new for old, new in zip(leaves(state), leaves(after), strict=True) if not torch.equal(old, new)]
    assert 0 < len(changed) < len(leaves(state))  # the key stays
    assert seen.bytes_moved == sum(leaf.nbytes for leaf in (*leaves(state), *batch.values(), *changed))
    assert seen.steps_per_second == 1 / seen.seconds
    assert seen.examples_per_second == pytest.approx(8 / seen.seconds)
    assert seen.tokens_per_second == pytest.approx(40 / seen.seconds)
    assert seen.compute_fraction == pytest.approx(seen.flops / seen.seconds / 5e10)
    assert seen.bandwidth_fraction == pytest.approx(seen.bytes_moved / seen.seconds / 1e10)
    assert seen.roofline_fraction == max(seen.compute_fraction, seen.bandwidth_fraction)


def leaves(tree):
    return [tree] if isinstance(tree, torch.Tensor) else [leaf for value in tree.values() for leaf in leaves(value)]


def test_a_report_is_a_table_a_picture_and_json(job):
    seen = measure.report(job.step, job.state(), job.batch(), max_time=0.05, ceilings=roof())
    text = str(seen)
    for fragment in ("steps", "examples", "matrix work", "memory moved", "0 graphs, 0 breaks, 0 compiled again"):
        assert fragment in text
    assert "tokens" not in text
    kept = json.loads(seen.to_json())
    assert kept["flops"] == seen.flops
    assert kept["machine"]["torch"] == torch.__version__
    assert kept["ceilings"]["matmul"]["float64"] == 5e10
    assert "% of the roof" in seen.plot().axes[0].texts[0].get_text()


def test_a_step_without_a_matrix_product_has_no_roofline():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.weight * x

    model, optimizer = Scale(), ps.sgd(0.1)
    step = ps.train_step(model, lambda m, b: ps.mean(m(b["x"])), optimizer)
    seen = measure.report(
        step, ps.init_state(model, optimizer, seed=0), {"x": torch.ones(6, 4)}, repeats=2, ceilings=roof()
    )
    assert seen.flops == 0
    with pytest.raises(ValueError, match="a roofline needs counted FLOPs, got 0"):
        seen.plot()


def test_a_step_that_depends_on_values_is_counted_all_the_same(job):
    def step(state, batch):
        state, metrics = job.step(state, batch)
        return state, metrics if float(batch["x"].sum()) > -1e9 else {}

    seen = measure.report(step, job.state(), job.batch(), repeats=2, ceilings=roof())
    assert seen.flops == 2 * 8 * (2 * 4 * 6 + 3 * 6 * 3)


@pytest.mark.compiler
def test_a_report_of_a_donating_step(job, donated_step):
    state = job.state()
    donated_step(state.clone(), job.batch())  # compiled already: the count of graphs is of what the report compiles
    seen = measure.report(donated_step, state, job.batch(), max_time=0.1, ceilings=roof())
    assert int(state.step) == 0
    assert (seen.graphs, seen.graph_breaks, seen.recompilations) == (0, 0, 0)
    assert seen.flops == 2 * 8 * (2 * 4 * 6 + 3 * 6 * 3)


@pytest.mark.compiler
def test_graphs_are_counted():
    from purestep.measure._work import Compilations

    compiled = torch.compile(lambda x: x + 1, backend="eager")
    counts = Compilations()
    compiled(torch.ones(2))
    compiled(torch.ones(2))
    assert counts.so_far() == (1, 0)
    compiled(torch.ones(2, dtype=torch.float64))
    assert counts.so_far() == (2, 0)


def test_the_products_that_a_step_is_held_against_can_be_named(job):
    seen = measure.report(job.step, job.state(), job.batch(), repeats=1, ceilings=roof(), dtype="float32")
    assert (seen.dtype, seen.matmul_ceiling) == ("float32", 1e11)


@pytest.fixture
def precision():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    yield matmul
    matmul.fp32_precision = before


@pytest.mark.parametrize("before", ["ieee", "tf32"])
def test_tf32_is_put_back_whichever_way_it_was_set(precision, before):
    precision.fp32_precision = before  # after which reading `allow_tf32` may raise
    with tf32(allowed=True):
        assert tf32_allowed()
    with tf32(allowed=False):
        assert not tf32_allowed()
    assert precision.fp32_precision == before
    precision.fp32_precision = "ieee"
    precision.allow_tf32 = True
    assert tf32_allowed()
    precision.allow_tf32 = False
    assert not tf32_allowed()
