"""The scripts of bench/: each way works, the ways of a work train alike, and the documentation's figures are theirs.

Sizes are tiny and nothing is timed. What compiles is left to one test; a peer that is not installed is skipped. JAX
has a process of its own, so that its threads are not in that of other tests.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import purestep as ps

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
RESULTS = sorted((BENCH / "results").glob("*.json"))
PEERS = {"Lightning Fabric": "lightning_fabric", "accelerate": "accelerate", "TorchOpt": "torchopt"}
RATE = ps.schedules.warmup_cosine(peak=0.01, warmup_steps=2, total_steps=8, initial=0.001)
FIELDS = {"median_seconds", "iqr_seconds", "min_seconds", "max_seconds", "interval_seconds", "samples", "calls"}
STEPS = 4
# Rounding makes 7e-7 of a GPT's loss; another GELU makes 3e-6 of it.
CLOSE = {"rtol": 2e-6, "atol": 0.0}


def load():
    """The modules of bench/ by name, with the folder on the path only while they are imported."""
    names = ("_report", "_works", "_step_ways", "_jax_ways", "step", "step_overhead", "adamw_update", "schedules")
    sys.path.insert(0, str(BENCH))
    try:
        modules = {
            name: importlib.import_module(name)
            for name in (*names, "orders", "optimizers", "data", "checkpoint", "fill_tables")
        }
    finally:
        sys.path.remove(str(BENCH))
    return SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def bench():
    yield load()
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").parent == BENCH:
            del sys.modules[name]


@pytest.fixture(scope="module")
def jax_losses():
    """What :func:`by_jax` returns, in a process of its own."""
    if any(importlib.util.find_spec(module) is None for module in ("jax", "optax")):
        pytest.skip("jax and optax are not installed: pip install -e '.[peers]'")
    program = "import json, test_bench; print(json.dumps(test_bench.by_jax()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: torch.tensor(each).double() for name, each in json.loads(done.stdout).items()}


def by_jax():
    """The losses of each work in JAX, of an ensemble, and of a twin that is wrong."""
    bench = load()
    step, setting = bench._jax_ways.step, bench._report.Setting()
    made = works(bench)
    wrong = replace(made["mlp"], jax_layout=lambda name, array: array.T[::-1] if array.ndim == 2 else array)
    found = {name: step(work, setting) for name, work in made.items()} | {"wrong": step(wrong, setting)}
    found["ensemble"] = step(made["mlp"], setting, members=3)
    return {name: losses(way).tolist() for name, way in found.items()}


@pytest.fixture(autouse=True)
def _settings_are_put_back():
    """Peers and scripts set torch's threads and precision for a process of their own."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


def works(bench):
    made = bench._works
    return {
        "mlp": made.mlp(6, 5, 4, 3, rate=RATE),
        "conv": made.conv(3, 2, 8, 8, rate=RATE),
        "gpt": made.gpt(2, 6, 8, 2, 2, rate=RATE),
        "accumulate": made.mlp(6, 5, 4, 3, accumulate=3, rate=RATE),
    }


WORKS = ("mlp", "conv", "gpt", "accumulate")
WAYS = ("torch, one graph by hand", "Lightning Fabric", "accelerate", "TorchOpt", "purestep, eager")


def skip_without(way):
    module = next((module for peer, module in PEERS.items() if way.startswith(peer)), None)
    if module is not None and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -e '.[peers]'")


def make(bench, work, way, **changes):
    """The way of that name, without compilation."""
    setting = bench._report.Setting()
    if way.startswith("torch, one graph"):
        return bench._step_ways._torch_ways.functional(work, setting, compiled=False, **changes)
    ways = bench._step_ways.step_ways(work, setting)
    return next(maker for name, maker in ways.items() if name.startswith(way))(**changes)


def losses(way, steps=STEPS):
    """``(steps, members)``"""
    return torch.tensor([_members(way()) for _ in range(steps)], dtype=torch.float64)


def _members(loss):
    loss = loss.value() if isinstance(loss, ps.Mean) else loss
    values = loss.tolist()
    return values if isinstance(values, list) else [values]


# --- the ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORKS)
def test_the_ways_of_a_work_train_alike(bench, name, way):
    skip_without(way)
    work = works(bench)[name]
    right = losses(make(bench, work, "torch, eager"))
    assert (right[1:] - right[:-1]).abs().min() > 1e-4, "the losses hardly change, so equal ones would say little"
    torch.testing.assert_close(losses(make(bench, work, way)), right, **CLOSE)


@pytest.mark.parametrize("way", ["torch, eager", *WAYS])
def test_accumulation_takes_a_forward_for_each_micro_batch(bench, way):
    """Of what the whole batch's losses cannot tell."""
    skip_without(way)
    work, lengths = works(bench)["accumulate"], []

    class Counting(torch.nn.Sequential):
        def forward(self, x):
            lengths.append(len(x))
            return super().forward(x)

    step = make(bench, replace(work, module=lambda: Counting(*work.module())), way)
    step()  # a first call may look at the module before it trains
    lengths.clear()
    step()
    assert lengths == [2, 2, 2]


@pytest.mark.parametrize("name", WORKS)
def test_the_twins_in_jax_train_alike(bench, jax_losses, name):
    right = losses(make(bench, works(bench)[name], "torch, eager"))
    torch.testing.assert_close(jax_losses[name], right, **CLOSE)


@pytest.mark.parametrize("rate", [RATE.shift(1), 1.1 * RATE], ids=["late", "scaled"])
def test_a_way_that_trains_otherwise_is_seen(bench, rate):
    work = works(bench)["mlp"]
    off = losses(make(bench, replace(work, rate=rate), "purestep, eager")) - losses(make(bench, work, "torch, eager"))
    assert off.abs().max() > 1e-4


def test_a_twin_that_is_wrong_is_seen(jax_losses):
    assert (jax_losses["wrong"] - jax_losses["mlp"]).abs().max() > 1e-4


@pytest.mark.parametrize("way", ["torch, one graph by hand", "purestep, eager", "jax"])
def test_an_ensemble_is_its_members(bench, way, request):
    work, setting = works(bench)["mlp"], bench._report.Setting()
    loop = bench._step_ways._torch_ways.loop
    right = torch.cat([losses(loop(work, setting, seed=seed)) for seed in range(3)], dim=1)
    if way == "jax":
        found = request.getfixturevalue("jax_losses")["ensemble"]
    else:
        found = losses(make(bench, work, way, members=3))
    torch.testing.assert_close(found, right, **CLOSE)


@pytest.mark.compiler
def test_the_graph_by_hand_trains_alike_compiled(bench):
    """Two of them, since it is called without guards."""
    for batch in (6, 7):
        work = bench._works.mlp(batch, 5, 4, 3, rate=RATE)
        found = losses(bench._step_ways._torch_ways.functional(work, bench._report.Setting()))
        torch.testing.assert_close(found, losses(make(bench, work, "torch, eager")), **CLOSE)


def test_the_updates_agree(bench):
    """AdamW by hand against torch's, over some updates."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, 4, generator=generator) for _ in range(2)]
    grads = [torch.randn(3, 4, generator=generator) for _ in range(2)]
    update = bench._step_ways._torch_ways.AdamW(values, RATE)
    rivals = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = torch.optim.AdamW(rivals, lr=1.0, weight_decay=0.01)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = float(RATE(step))
        for rival, grad in zip(rivals, grads, strict=True):
            rival.grad = grad
        optimizer.step()
        update(values, grads)
    torch.testing.assert_close(values, [rival.detach() for rival in rivals], rtol=1e-5, atol=1e-6)


def test_the_schedules_by_hand_are_the_schedule(bench):
    script, steps = bench.schedules, torch.tensor([0, 10, 999, 1_000, 5_000, 899_999, 900_000, 1_000_000])
    torch.testing.assert_close(script.expression(steps), script.RATE(steps), rtol=1e-12, atol=1e-18)
    plain = torch.tensor([script.plain(step) for step in steps.tolist()], dtype=torch.float64)
    torch.testing.assert_close(plain, script.RATE(steps), rtol=1e-12, atol=1e-18)


def test_small_scripts_run(bench):
    """Each way that neither compiles, nor starts a process, nor is a peer's is called once."""
    setting = bench._report.Setting()
    benches = [*bench.adamw_update.benches(2, 4), *bench.schedules.benches(10), *bench.orders.benches(5_000, 5_000)]
    benches += [
        *bench.optimizers.benches(2, 4),
        *bench.data.benches(200, 3, 8, 16),
        *bench.checkpoint.benches(1 << 20, 0.01),
    ]
    left = ("compiled", "graph", "inlined", "jax", "TorchOpt", "1 worker", "2 workers", "processes")
    for each in benches:
        ways = {name: make for name, make in each.ways(setting).items() if not any(word in name for word in left)}
        alone = each.name in ("data_images", "data_start")  # all others start processes
        if alone:
            pytest.importorskip("PIL")
            ways = {"purestep, pipeline, threads": ways["purestep, pipeline, threads"]}
        made, seconds, left_out = bench._report.build(ways)
        assert len(made) >= (1 if alone else 2)
        assert seconds.keys() == made.keys()
        assert made.keys() == ways.keys()
        assert not left_out


def test_every_work_has_its_name_once(bench):
    benches = [*bench.step.benches(), *bench.step_overhead.benches(), *bench.schedules.benches()]
    benches += [*bench.adamw_update.benches(2, 4), *bench.orders.benches()]
    names = [each.name for each in benches]
    assert len(set(names)) == len(names)
    cuda = bench._report.Setting(torch.device("cuda"))
    assert any("captured" in name for name in bench._step_ways.step_ways(works(bench)["mlp"], cuda))


# --- the common room -------------------------------------------------------------------------------------------------


def options(tmp_path, **changes):
    return SimpleNamespace(**{"only": None, "baseline": None, "rounds": 2, "max_time": 0.1, "json": tmp_path} | changes)


def run_pair(bench, tmp_path, **changes):
    def absent():
        raise bench._report.LeftOut("peer is not installed")

    ways = {"first": lambda: lambda: sum(range(50)), "second": lambda: lambda: sum(range(90)), "gone": lambda: absent()}
    made = bench._report.Bench("pair", "A pair", lambda setting: ways, {"size": 3})
    return bench._report.run(made, bench._report.Setting(), options(tmp_path, **changes))


def test_a_run_writes_what_it_measured(bench, tmp_path, capsys):
    result = run_pair(bench, tmp_path)
    assert json.loads((tmp_path / "pair.json").read_text()) == result
    check_schema(result)
    assert result["left_out"] == {"gone": "peer is not installed"}
    assert result["settings"]["size"] == 3
    assert result["settings"]["rounds"] == 2
    said = capsys.readouterr().out
    assert "left out: gone (peer is not installed)" in said
    assert "A pair" in said


def test_a_way_that_fails_is_an_error(bench):
    def broken():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken") as raised:
        bench._report.build({"a way": lambda: broken})
    assert "raised by 'a way'" in raised.value.__notes__


def test_a_peer_that_cannot_be_imported_is_an_error(bench, tmp_path, monkeypatch):
    (tmp_path / "broken_peer.py").write_text("import no_such_module_of_a_peer")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_of_a_peer"):
        bench._report.needed("broken_peer")
    with pytest.raises(bench._report.LeftOut, match=r"absent_peer is not installed"):
        bench._report.needed("absent_peer")


def test_only_and_baseline_choose(bench, tmp_path):
    result = run_pair(bench, tmp_path, only=["FIRST", "second"], baseline="second", json=tmp_path / "here.json")
    assert list(result["results"]) == ["first", "second"]
    assert result["left_out"] == {}
    assert result["baseline"] == "second"
    assert (tmp_path / "here.json").exists()
    with pytest.raises(SystemExit, match=r"--only must name some of the ways \(first; second; gone\), got 'third'"):
        run_pair(bench, tmp_path, only=["third"])


def test_settings_have_names_of_their_own(bench):
    setting = bench._report.Setting
    cuda = torch.device("cuda")
    suffixes = [setting().suffix, setting(threads=2).suffix, setting(cuda).suffix, setting(cuda, 1, "bf16").suffix]
    assert suffixes == ["", "-all-threads", "-cuda", "-cuda-bf16"]


# --- the results, and the figures of the documentation ----------------------------------------------------------------


def check_schema(result):
    """Machine, versions, date, settings, and the spread of each way."""
    assert {"benchmark", "title", "date", "machine", "device", "threads", "versions", "left_out"} <= result.keys()
    assert {"processor", "cores", "memory", "accelerator", "system", "python", "torch"} <= result["machine"].keys()
    assert {"rounds", "turns", "max_time", "precision"} <= result["settings"].keys()
    assert result["versions"]["torch"] == result["machine"]["torch"]
    rows = result["results"]
    assert rows[result["baseline"]]["ratio"] == 1
    assert len(rows) >= 2
    for row in rows.values():
        assert row.keys() == FIELDS | {"ratio", "ratio_interval", "verdict", "first_call_seconds"}
        assert 0 < row["min_seconds"] <= row["median_seconds"] <= row["max_seconds"]
        low, high, confidence = row["ratio_interval"]
        assert low <= row["ratio"] <= high
        assert 0 < confidence <= 1


def ours(path):
    """Whether a result was written by the scripts that this file is about."""
    return '"left_out"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [path for path in RESULTS if ours(path)], ids=lambda path: path.stem)
def test_kept_results_are_whole(bench, path):
    result = json.loads(path.read_text(encoding="utf-8"))
    check_schema(result)
    assert path.stem.startswith(result["benchmark"])


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_figures_are_those_of_the_results(bench, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert bench.fill_tables.fill(text) == text, f"run python bench/fill_tables.py: {page} is not what it writes"
    assert bench.fill_tables.unmarked(text) == []


def test_a_changed_figure_is_seen(bench, tmp_path):
    fill, results = bench.fill_tables.fill, tmp_path
    run_pair(bench, tmp_path)
    blank = (
        "text <!-- bench: pair.json | second | ratio | .3f --><!-- /bench --> and <!-- bench: pair.json | second | to "
        "first | .3f --><!-- /bench -->\n<!-- bench: pair.json --><!-- /bench -->\n"
    )
    page = fill(blank, results)
    assert fill(page, results) == page
    figures = [figure for figure in _figures(page) if page.count(figure) == 1]
    assert len(figures) >= 6
    for figure in figures:
        changed = page.replace(figure, figure[:-1] + ("1" if figure[-1] != "1" else "2"))
        assert fill(changed, results) == page != changed


def _figures(page):
    between = " ".join(re.findall(r"-->(.*?)<!-- /bench", page, re.DOTALL))
    return set(re.findall(r"\d+\.\d+", between))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- bench: pair.json --> and no end", "has no `<!-- /bench -->` after it"),
        (
            "<!-- bench: pair.json | first --><!-- /bench -->",
            "must be `FILE.json` or `FILE.json | WAY | FIELD | FORMAT`",
        ),
        ("<!-- bench: none.json | first | ratio | .2f --><!-- /bench -->", "none.json is not in"),
        ("<!-- bench: pair.json | third | ratio | .2f --><!-- /bench -->", "pair.json has no way 'third'"),
        ("<!-- bench: pair.json | first | verdict | .2f --><!-- /bench -->", "has no number 'verdict' of 'first'"),
    ],
)
def test_comments_that_cannot_be_followed(bench, tmp_path, page, message):
    run_pair(bench, tmp_path)
    with pytest.raises(ValueError) as raised:
        bench.fill_tables.fill(page, tmp_path)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    "claim", ["takes 139 µs a step", "is 2.6 times as fast", "0.4 ms", "3x faster", "20 % faster", "346 steps a second"]
)
def test_a_claim_outside_the_comments_is_seen(bench, claim):
    unmarked = bench.fill_tables.unmarked
    assert unmarked(f"It {claim}.") == [f"It {claim}."]
    assert unmarked(f"<!-- bench: a.json -->{claim}<!-- /bench -->\n```\n{claim}\n```\n") == []
