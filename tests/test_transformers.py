"""Models that nobody here wrote: the laws hold on them, and docs/architectures.md has what was found.

The models and the checks are those of ``bench/architectures.py``, which compiles them as well.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import purestep as ps
from purestep.draws import Draws

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent


def load():
    """The modules of bench/, with the folder on the path only while they are imported."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        models, checks = (importlib.import_module(name) for name in ("_architectures", "architectures"))
    finally:
        sys.path.remove(str(ROOT / "bench"))
    return SimpleNamespace(models=models, checks=checks)


bench = load()
ALL = bench.models.ARCHITECTURES


def over(*, having=lambda each: True):
    """The architectures as parameters."""
    return pytest.mark.parametrize("each", [pytest.param(e, id=e.name) for e in ALL.values() if having(e)])


def bound(each, sharp=1e-12):
    return bench.checks.BOUND32 if each.float32 else sharp


# --- the laws --------------------------------------------------------------------------------------------------------


@over()
def test_two_steps_lead_where_a_plain_loop_leads(each):
    assert bench.checks.parity(each, steps=2) <= bound(each)


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "ViT", "ResNet"])
def test_twenty_steps_of_adamw_lead_where_a_plain_loop_leads(name):
    """Of the models that are in float64 throughout: Adam makes a step of the size of the rate from any rounding."""
    each = ALL[name]
    model, batch, optimizer = each.build(), each.batch(), ps.adamw(1e-3, weight_decay=0.05)
    step = ps.train_step(model, each.objective, optimizer)
    state = start = ps.init_state(model, optimizer, seed=0)
    plain = copy.deepcopy(model)
    torch_optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.05, foreach=False)
    for _ in range(20):
        state, metrics = step(state, batch)
        torch_optimizer.zero_grad()
        loss = each.plain_loss(plain, batch)
        loss.backward()
        torch_optimizer.step()
    assert metrics["loss"].value().item() == pytest.approx(loss.item(), rel=1e-9)
    # A key's bias has no gradient but rounding, of which Adam makes steps that differ.
    assert bench.checks.error(state, ps.init_state(plain, optimizer, seed=0), start) < 1e-7


@over()
def test_any_micro_batches_lead_there_too(each):
    """Padded tokens count as often as there are of them, whichever micro-batch they fall into."""
    assert bench.checks.accumulated(each) <= bound(each)


@over(having=lambda each: each.random)
def test_random_masks_belong_to_the_examples(each):
    assert bench.checks.accumulated(each, bench.checks.P) <= bound(each)


@over()
def test_a_step_touches_nothing_and_repeats_its_bits(each):
    bench.checks.pure(each)


def test_a_model_built_on_meta_is_the_one_that_was_built():
    """From the seed alone, the state is what the model's own initialisation gives."""
    config = transformers.GPT2Config(vocab_size=17, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    model, state = ps.init_state_from_meta(lambda: transformers.GPT2LMHeadModel(config), ps.sgd(0.1), seed=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        built = transformers.GPT2LMHeadModel(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert list(state.params.keys()) == [name for name, _ in built.named_parameters()]
    for name, parameter in built.named_parameters():
        assert torch.equal(state.params[name], parameter), name
    assert "lm_head.weight" not in state.params  # tied to the embedding


# --- what breaks them is seen ----------------------------------------------------------------------------------------


@over(having=lambda each: each.coupling)
def test_what_couples_examples_is_seen(each):
    assert bench.checks.accumulated(each, coupled=True) > 10 * bound(each)


def test_a_mean_of_means_is_seen():
    def averaged(model, batch):
        values, where, _ = gpt2.losses(model, batch)
        return bench.models.Values(torch.zeros_like(values), where, amount=values[where].mean())

    gpt2 = ALL["GPT-2"]
    wrong = dataclasses.replace(gpt2, coupled_losses=averaged)
    assert bench.checks.accumulated(wrong, coupled=True) > 0.01


def test_masks_of_the_place_in_the_micro_batch_are_seen(monkeypatch):
    monkeypatch.setattr(Draws, "_dim_of_examples", lambda *_: None)
    assert bench.checks.accumulated(ALL["BERT"], 0.3) > 0.01


def test_a_plain_loop_that_draws_for_itself_is_seen():
    each = ALL["ViT"]
    assert bench.checks.parity(dataclasses.replace(each, make=lambda p: each.make(0.3)), steps=1) > 0.01


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return json.loads(bench.checks.RESULTS.read_text(encoding="utf-8"))


def test_the_kept_result_has_every_architecture_and_what_holds(result):
    assert list(result["results"]) == list(ALL)
    assert not bench.checks.failures(result["results"]), "run make soak"
    for name, row in result["results"].items():
        assert (row["random_masks"] is None, row["coupled"] is None) == (not ALL[name].random, not ALL[name].coupling)
        assert row["compiled"].get("graphs", 1) == 1
        assert row["parity"]["bound"] <= bench.checks.BOUND32


def test_the_table_of_the_docs_is_that_of_the_result(result):
    page = bench.checks.PAGE.read_text(encoding="utf-8")
    assert bench.checks.filled(page, result) == page, "run python bench/architectures.py --fill"
    changed = copy.deepcopy(result)
    changed["results"]["T5"]["accumulate"]["error"] *= 2
    assert bench.checks.filled(page, changed) != page


def test_what_does_not_hold_is_told():
    def outcomes(**changed):
        holding = {"error": 1e-16, "bound": 1e-12, "holds": True}
        return {**dict.fromkeys(bench.checks.CHECKS, holding), **changed}

    rows = {
        "BERT": outcomes(parity={"error": float("nan"), "bound": 1e-12, "holds": False}),
        "ViT": outcomes(compiled={"failed": "Unsupported: no"}, pure={"holds": True}),
        "Mamba": outcomes(compiled=None, random_masks=None),
    }
    assert bench.checks.failures(rows) == {
        ("BERT", "parity"): "nan, with a bound of 1e-12",
        ("ViT", "compiled"): "Unsupported: no",
    }
