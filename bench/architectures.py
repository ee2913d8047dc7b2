"""Architectures that nobody here wrote, through a step: do the laws hold on them?

Each is a model of transformers, tiny and of random weights, in float64 as far as the model allows it (several compute
some parts in float32 whatever their dtype). What is checked, and the error that is printed:

- plain loop: five steps of SGD with momentum, and the same in a loop of plain torch. All that the loss has is in it.
- accumulate: one step with ``accumulate=4`` and with 1, on seven examples of different lengths. What couples examples
  is off; what that makes of the error is printed beside it.
- random: the same with dropout on, whose masks belong to the examples.
- compiled: three steps with dropout by ``ps.compile(donate=True)``, and eagerly; and the seconds of the first call.
- pure: arguments, module and global random states are untouched, and a second call gives the same bits.

Errors are relative to the norm of the whole update (buffers' to their norm, the loss's to the loss).

    python bench/architectures.py [--only BERT T5] [--no-compile] [--json bench/results/architectures.json]
    python bench/architectures.py --fill        writes the table of the JSON into docs/architectures.md, runs nothing

With ``--only`` the others' rows in the JSON stay, where the versions are the same. It exits with 1 where a law fails.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import purestep as ps
from _architectures import ARCHITECTURES, LENGTHS, Architecture
from purestep import laws
from purestep.measure._machine import machine

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
MARKS = "<!-- architectures -->", "<!-- /architectures -->"

RATE, MOMENTUM, P, PARTS = 0.05, 0.9, 0.3, 4
STEPS, COMPILED_STEPS = 5, 3
# A hundred roundings of float32, for a model that computes in it somewhere.
BOUND32 = 100 * 2.0**-24
BOUNDS = {"parity": 1e-12, "accumulate": 1e-12, "random": 1e-12, "compiled": 1e-10}

Row = dict[str, Any]


def error(got: ps.TrainState, right: ps.TrainState, start: ps.TrainState, *, buffers: bool = True) -> float:
    """How far two states that came from ``start`` are apart, relative to the norm of the whole update."""
    change = {name: leaf - start.params[name] for name, leaf in right.params.items()}
    found = _norm({name: got.params[name] - right.params[name] for name in change}) / _norm(change)
    moved = {name: buffer.double() for name, buffer in right.buffers.items()}
    if buffers and moved:
        found = max(found, _norm({name: got.buffers[name] - each for name, each in moved.items()}) / _norm(moved))
    return found


def _norm(tree: Mapping[str, Tensor]) -> float:
    return float(sum(leaf.detach().double().square().sum() for leaf in tree.values())) ** 0.5


def _optimizer() -> ps.Optimizer:
    return ps.sgd(RATE, momentum=MOMENTUM)


def parity(each: Architecture, steps: int = STEPS) -> float:
    """Some steps, and as many of a plain loop."""
    model, batch, optimizer = each.build(), each.batch(), _optimizer()
    step = ps.train_step(model, each.coupled_objective, optimizer)
    state = start = ps.init_state(model, optimizer, seed=0)
    for _ in range(steps):
        state, metrics = step(state, batch)
    plain = copy.deepcopy(model)
    torch_optimizer = torch.optim.SGD(plain.parameters(), lr=RATE, momentum=MOMENTUM)
    for _ in range(steps):
        torch_optimizer.zero_grad()
        loss = each.plain_loss(plain, batch)
        loss.backward()
        torch_optimizer.step()
    of_loss = abs(float(metrics["loss"]) / float(loss.detach()) - 1)
    return max(of_loss, error(state, ps.init_state(plain, optimizer, seed=0), start))


def accumulated(each: Architecture, p: float = 0.0, *, coupled: bool = False) -> float:
    """One step in four micro-batches, and in one."""
    model, batch, optimizer = each.build(p, frozen=not coupled), each.batch(), _optimizer()
    objective = each.coupled_objective if coupled else each.objective
    start = ps.init_state(model, optimizer, seed=0)
    whole, _ = ps.train_step(model, objective, optimizer)(start, batch)
    parts, _ = ps.train_step(model, objective, optimizer, accumulate=PARTS)(start, batch)
    return error(parts, whole, start, buffers=not coupled)


def pure(each: Architecture) -> None:
    """Raises where the law does not hold."""
    model, optimizer = each.build(P), _optimizer()
    step = ps.train_step(model, each.coupled_objective, optimizer, accumulate=PARTS)
    laws.check_pure(step, ps.init_state(model, optimizer, seed=0), each.batch(), model=model)


def compiled(each: Architecture) -> tuple[float, float, int]:
    """Three compiled steps that donate, and three eager ones: the error, the first call's seconds, and the graphs."""
    model, batch, optimizer = each.build(P), each.batch(), _optimizer()
    if each.prepare is not None:
        each.prepare(model, batch)
    step = ps.train_step(model, each.coupled_objective, optimizer)
    start = ps.init_state(model, optimizer, seed=0)
    donated, state, right = ps.compile(step, donate=True), start.clone(), start
    torch._dynamo.utils.counters.clear()
    began = time.perf_counter()
    state, _ = donated(state, batch)
    seconds = time.perf_counter() - began
    for _ in range(COMPILED_STEPS - 1):
        state, metrics = donated(state, batch)
    for _ in range(COMPILED_STEPS):
        right, expected = step(right, batch)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    of_loss = abs(float(metrics["loss"]) / float(expected["loss"]) - 1)
    return max(of_loss, error(state, right, start)), seconds, graphs


def check(each: Architecture, *, compiling: bool) -> Row:
    """All of it, as the JSON has it: an outcome for each check (``None``: it does not apply)."""
    row: Row = {name: getattr(each, name) for name in ("kind", "random", "float32", "coupling", "needed")}
    row["parameters"] = sum(parameter.numel() for parameter in each.build().parameters())
    row["parity"] = _outcome(each, "parity", lambda: {"error": parity(each)})
    row["accumulate"] = _outcome(each, "accumulate", lambda: {"error": accumulated(each)})
    row["coupled"] = _outcome(each, "", lambda: {"error": accumulated(each, coupled=True)}) if each.coupling else None
    row["random_masks"] = _outcome(each, "random", lambda: {"error": accumulated(each, P)}) if each.random else None
    row["pure"] = _outcome(each, "", lambda: {"holds": pure(each) is None})
    row["compiled"] = None
    if compiling:
        names = ("error", "seconds", "graphs")
        row["compiled"] = _outcome(each, "compiled", lambda: dict(zip(names, compiled(each), strict=True)))
    return row


def _outcome(each: Architecture, name: str, run: Callable[[], Row]) -> Row:
    """What a check found, with the bound that it has to keep; or why it could not be made."""
    try:
        found = run()
    except Exception as why:
        traceback.print_exc()
        return {"failed": _reason(why)}
    if name:
        bound = BOUND32 if each.float32 else BOUNDS[name]
        found |= {"bound": bound, "holds": found["error"] <= bound}
    return found


def _reason(why: Exception) -> str:
    """The first line of an error, and what Dynamo explains below it."""
    first, *rest = str(why).strip().splitlines() or [""]
    explained = [line.split(":", 1)[1] for line in rest if line.strip().startswith("Explanation:")]
    return "".join([f"{type(why).__name__}: {first}", *(f":{text.split(' This ')[0]}" for text in explained[:1])])


CHECKS = ("parity", "accumulate", "random_masks", "pure", "compiled")


def failures(rows: Mapping[str, Row]) -> dict[tuple[str, str], str]:
    """What does not hold, by architecture and check: the error, or why the check could not be made."""
    outcomes = {(name, what): row[what] for name, row in rows.items() for what in CHECKS if row[what] is not None}
    return {
        key: outcome.get("failed") or f"{outcome['error']:.0e}, with a bound of {outcome['bound']:.0e}"
        for key, outcome in outcomes.items()
        if not outcome.get("holds")
    }


# --- what is shown ---------------------------------------------------------------------------------------------------

COLUMNS = ("model", "plain loop", "accumulate", "what couples", "random", "compiled, donated", "first call", "pure")


def cells(name: str, row: Row) -> tuple[str, ...]:
    seconds = (row["compiled"] or {}).get("seconds")
    return (
        name,
        *(_cell(row[what]) for what in ("parity", "accumulate", "coupled", "random_masks", "compiled")),
        "" if seconds is None else f"{seconds:.0f} s",
        _cell(row["pure"]),
    )


def _cell(outcome: Row | None) -> str:
    if outcome is None:
        return ""
    if "failed" in outcome:
        return "**fails**"
    text = "yes" if "error" not in outcome else "0" if outcome["error"] == 0 else f"{outcome['error']:.0e}"
    return text if outcome.get("holds", True) else f"**{text}**"


def markdown(result: Mapping[str, Any]) -> str:
    """The table of the documentation."""
    rows = [cells(name, row) for name, row in result["results"].items()]
    lines = [f"| {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * (len(COLUMNS) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name != "purestep")
    where = result["machine"]
    caption = f"{where['processor']}, {where['cores']} cores; Python {where['python']}, {versions}; {result['date']}."
    failed = [f"- {name}, {what}: {why}" for (name, what), why in failures(result["results"]).items()]
    return "\n".join([*lines, "", caption, *(["", "What does not hold:", "", *failed] if failed else [])])


def filled(page: str, result: Mapping[str, Any]) -> str:
    """The page with its table written anew."""
    begin, end = (page.index(mark) for mark in MARKS)
    return f"{page[: begin + len(MARKS[0])]}\n\n{markdown(result)}\n\n{page[end:]}"


def show(rows: Mapping[str, Row]) -> None:
    table = Table(title=f"{len(LENGTHS)} examples, accumulate={PARTS}, float64; errors of the whole update")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "model" else "right", overflow="fold")
    for name, row in rows.items():
        table.add_row(*cells(name, row))
    Console(width=120).print(table)
    for name, row in rows.items():
        notes = {"in float32": "float32", "draws": "random", "couples": "coupling", "needs": "needed"}
        print(f"{name}: {row['kind']}", *(f"{said} {row[key]}" for said, key in notes.items() if row[key]), sep="; ")


# --- running ---------------------------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("purestep", "torch", "tensordict", "transformers")}


def record(rows: Mapping[str, Row], path: Path) -> dict[str, Any]:
    """Write the JSON, with the other rows that were in it, and return it."""
    kept: dict[str, Row] = {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        kept = before["results"] if before["versions"] == versions() else {}
    every = {**kept, **rows}
    result = {
        "benchmark": "architectures",
        "date": date.today().isoformat(),
        "machine": dataclasses.asdict(machine(torch.device("cpu"))),
        "versions": versions(),
        "settings": {"lengths": LENGTHS, "accumulate": PARTS, "steps": STEPS, "dropout": P, "dtype": "float64"},
        "results": {name: every[name] for name in ARCHITECTURES if name in every},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(ARCHITECTURES), help=", ".join(ARCHITECTURES))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--fill", action="store_true", help="write the table of the JSON into the docs, and stop")
    options = parser.parse_args()
    if options.fill:
        result = json.loads(options.json.read_text(encoding="utf-8"))
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
        return 0
    torch.set_num_threads(1)
    rows: dict[str, Row] = {}
    for name in options.only or ARCHITECTURES:
        began = time.perf_counter()
        rows[name] = check(ARCHITECTURES[name], compiling=not options.no_compile)
        record(rows, options.json)
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    show(rows)
    for (name, what), why in (failed := failures(rows)).items():
        print(f"does not hold: {name}, {what}: {why}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
