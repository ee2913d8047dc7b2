"""Accumulation side by side: what each peer's own way makes of a ragged batch, and what docs/accumulation.md shows."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import purestep as ps
from purestep import laws

ROOT = Path(__file__).parent.parent


def _bench():
    spec = importlib.util.spec_from_file_location("bench_accumulation", ROOT / "bench" / "accumulation.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


bench = _bench()
PROBLEM = bench.token_problem()
# Of each way: whether it knows the number of tokens, and what it makes of a leftover.
EXPECTED = {
    "torch, loss / k": (False, 0.25),
    "optax.MultiSteps": (False, 0.0),
    "optax.MultiSteps, tokens and windows told before": (True, 1.0),
    "Lightning Fabric, no_backward_sync, loss / k": (False, 0.0),
    "Lightning Trainer, accumulate_grad_batches": (False, 0.25),
    "accelerate, accumulate(model)": (False, 0.25),
    "accelerate, recipe with a token count": (True, 1.0),
    "purestep, train_step(accumulate=k)": (True, 1.0),
    "purestep, grad_step and merge": (True, 1.0),
}


@pytest.fixture(params=list(bench.WAYS))
def way(request):
    packages, function = bench.WAYS[request.param]
    if absent := bench.missing(packages):
        pytest.skip(f"needs {', '.join(absent)}, which the tests do without: pip install {' '.join(absent)}")
    return request.param, function


def test_whose_update_is_the_whole_batchs(way):
    name, function = way
    exact, leftover = EXPECTED[name]
    found = bench.judge(PROBLEM, function)
    if exact:
        assert found["error"] < 1e-12
    else:
        assert found["error"] == pytest.approx(0.787, abs=1e-3)
    assert found["leftover"] == pytest.approx(leftover, abs=1e-12)


def test_micro_batches_of_five_and_one(way):
    name, function = way
    assert bench.mean_of_six(function) == pytest.approx(7 if EXPECTED[name][0] else 9, rel=1e-12)


def test_all_are_right_where_every_micro_batch_has_as_many_tokens(way):
    """So it is the ragged batch that tells them apart, and not how they are run."""
    _, function = way
    even = dataclasses.replace(PROBLEM, mask=torch.ones_like(PROBLEM.mask))
    assert bench.judge(even, function)["error"] < 1e-12


def test_the_table_of_the_docs_is_that_of_the_results():
    results = json.loads((ROOT / "bench" / "results" / "accumulation.json").read_text())
    page = (ROOT / "docs" / "accumulation.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([0-9.e-]+) \| ([0-9.]+) \| ([0-9]+) \|$", page, re.MULTILINE)
    assert set(results["results"]) == set(EXPECTED)
    assert len(rows) == len(EXPECTED)
    for (label, error, leftover, mean), found in zip(rows, results["results"].values(), strict=True):
        assert float(error) == pytest.approx(found["error"], rel=0.02), label
        assert float(leftover) == pytest.approx(found["leftover"], abs=1e-12), label
        assert float(mean) == pytest.approx(found["mean_of_six"], rel=1e-12), label
    names = {
        "torch": "torch",
        "optax": "Optax",
        "lightning-fabric": "Lightning Fabric",
        "pytorch-lightning": "Lightning Trainer",
        "accelerate": "accelerate",
    }
    for package, name in names.items():
        assert f"{name} {results['versions'][package].split('+')[0]}," in page


@pytest.fixture(scope="module")
def page():
    """The names that the examples of docs/accumulation.md define."""
    text = (ROOT / "docs" / "accumulation.md").read_text()
    module = types.ModuleType("docs_accumulation_page")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in re.findall(r"^```python[ \t]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            exec(block, module.__dict__)
    return module


def apart(found, wanted, start) -> float:
    """The distance between two updates over the size of the right one."""
    names = list(wanted.params.keys())
    differences = [(found.params[name] - wanted.params[name]).square().sum() for name in names]
    sizes = [(start.params[name] - wanted.params[name]).square().sum() for name in names]
    return float((sum(differences) / sum(sizes)).sqrt())


@pytest.mark.parametrize("accumulate", [1, 2, 3, 9])
def test_two_passes_give_the_gradient_of_a_contrastive_loss(page, accumulate):
    """With dropout and a temperature that is trained; cutting the loss itself is the mutant."""
    pair, sgd, pairs = page.pair, page.sgd, page.pairs
    wanted, whole = ps.train_step(pair, page.whole_batch, sgd)(page.start, pairs)
    found, metrics = page.contrastive_step(pair, sgd, accumulate)(page.start, pairs)
    assert apart(found, wanted, page.start) < 1e-12
    assert metrics["loss"].value().item() == pytest.approx(whole["loss"].value().item(), rel=1e-12)
    assert found.params["log_scale"] != page.start.params["log_scale"]
    if accumulate > 1:
        cut, _ = ps.train_step(pair, page.whole_batch, sgd, accumulate=accumulate)(page.start, pairs)
        assert apart(cut, wanted, page.start) > 0.1


def test_two_passes_are_a_pure_step(page):
    step = page.contrastive_step(page.pair, page.sgd, 3)
    ensemble = torch.stack([page.start, page.start.replace(key=ps.random.fold_in(page.start.key, 1))])
    both, _ = torch.vmap(step, in_dims=(0, None))(ensemble, page.pairs)
    for row, member in enumerate(ensemble.unbind(0)):
        alone, _ = step(member, page.pairs)
        again, _ = step(member, page.pairs)
        assert apart(again, alone, member) == 0
        assert apart(both[row], alone, member) < 1e-12


def test_a_contrastive_loss_is_found_not_to_be_a_sum_and_its_second_pass_to_be_one(page):
    length = len(page.pairs)
    pulled = torch.randn(2, length, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = torch.ones(length, dtype=torch.float64)
    batch = page.pairs.clone().update({"by_image": pulled[0], "by_text": pulled[1], "by_scale": scale})
    plain = page.Pair().double()
    plain.image[1] = nn.Identity()  # a part that was cut by hand does not know its examples' masks
    laws.check_split_invariant(plain, page.along, batch)
    with pytest.raises(laws.LawViolation):
        laws.check_split_invariant(plain, page.whole_batch, batch)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_batchnorm_couples_examples_unless_it_is_frozen(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    model[1].train(not frozen)
    generator = torch.Generator().manual_seed(1)
    batch = {"x": torch.randn(12, 4, dtype=torch.float64, generator=generator)}
    start = ps.init_state(model, ps.sgd(1.0), seed=0)

    def objective(model, batch):
        return ps.mean(model(batch["x"]).exp())

    wanted, _ = ps.train_step(model, objective, ps.sgd(1.0))(start, batch)
    found, _ = ps.train_step(model, objective, ps.sgd(1.0), accumulate=3)(start, batch)
    running, tracked = found.buffers["1.running_mean"], int(found.buffers["1.num_batches_tracked"])
    if frozen:
        assert apart(found, wanted, start) < 1e-12
        assert torch.equal(running, start.buffers["1.running_mean"])
        assert tracked == 0
    else:
        assert apart(found, wanted, start) > 1e-3
        assert tracked == 3
        # In the order of the micro-batches: the last one weighs most.
        hidden = nn.functional.linear(batch["x"], start.params["0.weight"], start.params["0.bias"])
        expected = torch.zeros(6, dtype=torch.float64)
        for part in hidden.split(4):
            expected = 0.9 * expected + 0.1 * part.mean(0)
        torch.testing.assert_close(running, expected, rtol=1e-12, atol=1e-14)


def test_a_vmapped_batchnorm_has_statistics_of_its_own():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 1)).double()
    step = ps.train_step(model, lambda model, x: ps.mean(model(x).square()), ps.sgd(0.1), accumulate=2)
    first = ps.init_state(model, ps.sgd(0.1), seed=0)
    second = first.replace(params=first.params.apply(lambda leaf: 2 * leaf + 1))
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both, _ = torch.vmap(step, in_dims=(0, None))(torch.stack([first, second]), x)
    for row, state in enumerate((first, second)):
        alone, _ = step(state, x)
        torch.testing.assert_close(both.buffers["1.running_var"][row], alone.buffers["1.running_var"])
    assert not torch.allclose(both.buffers["1.running_var"][0], both.buffers["1.running_var"][1])
