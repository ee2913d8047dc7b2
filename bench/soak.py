"""A long run with logging, validation and saving: does it leak?

20,000 steps of a small classifier from a pipeline with a worker thread, a line of JSON for each window of 50 steps, a
validation every 500 steps, and a checkpoint every 100 steps, in the background by turns with at once. Every 500 steps
the resident memory, the open files and the threads of the process are noted, after a collection of garbage. After a
warm-up of a fifth of the steps the memory must stay within 2 % of what it is then, and files and threads must be as
many as then; once the run is over, as many as before it.

    python bench/soak.py [--steps 20000] [--compiled] [--json runs/bench/soak.json]

It exits with 1 where that fails. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import purestep as ps
from purestep.checkpoint import Manager
from purestep.measure._machine import machine

STEPS, WINDOW, SAVE_EVERY, NOTE_EVERY = 20_000, 50, 100, 500
TOLERANCE = 0.02
PARTS = 4  # of the run: saved at once, in the background, and again


class Note(NamedTuple):
    """What the process holds at a step: megabytes of resident memory, open files, threads, objects of Python."""

    step: int
    resident: float
    files: int
    threads: int
    objects: int


def note(step: int) -> Note:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(os.listdir("/proc/self/fd"))
    return Note(
        step, pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, threading.active_count(), len(gc.get_objects())
    )


class JsonLines:
    """A logger that writes a line for each window, and takes notes."""

    def __init__(self, path: Path, notes: list[Note]) -> None:
        self._file, self._notes = open(path, "a", buffering=1), notes  # noqa: SIM115 (closed by close)

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        if step % NOTE_EVERY == 0 and (not self._notes or self._notes[-1].step != step):
            self._notes.append(note(step))

    def close(self) -> None:
        self._file.close()


def objective(model: nn.Module, batch: Any) -> Any:
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


def run(steps: int, compiled: bool, folder: Path) -> list[Note]:
    """Take the steps in parts, each of which goes on from the checkpoint of the one before; return the notes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
    x = torch.randn(5_000, 32)
    data = {"x": x, "y": (x @ torch.randn(32, 10)).argmax(-1)}
    optimizer = ps.adamw(ps.schedules.warmup_cosine(peak=1e-3, warmup_steps=100, total_steps=steps))
    step = ps.train_step(model, objective, optimizer)
    step = ps.compile(step, donate=True) if compiled else step
    evaluate = ps.eval_step(model, objective)
    source = ps.data.from_tensors(data)
    held_out = ps.data.pipeline(source, ps.data.sequential(1_000), batch_size=250, epochs=1)
    notes: list[Note] = []
    for part in range(1, PARTS + 1):
        batches = ps.data.pipeline(
            source, ps.data.shuffled(5_000, seed=0), batch_size=64, workers=1, prefetch=2, drop_last=True
        )
        with Manager(
            folder / "run",
            every=SAVE_EVERY,
            keep_every=steps // 2,
            keep_best=2,
            best=("val/loss", "min"),
            asynchronous=part % 2 == 1,
        ) as manager:
            ps.fit(
                step,
                ps.init_state(model, optimizer, seed=0),
                batches,
                steps=steps * part // PARTS,
                validate=lambda state: ps.evaluate(evaluate, state, held_out),
                validate_every=500,
                log_every=WINDOW,
                loggers=[JsonLines(folder / "log.jsonl", notes)],
                checkpoint=manager,
                resume="auto",
                progress=False,
            )
    return notes


def check(before: Note, notes: list[Note], after: Note, steps: int) -> list[str]:
    """Return what fails."""
    warm = [each for each in notes if each.step >= steps // 5]
    first, wrong = warm[0], []
    for each in warm:
        if abs(each.resident / first.resident - 1) > TOLERANCE:
            wrong.append(f"step {each.step}: {each.resident:.1f} MB resident, {first.resident:.1f} MB at {first.step}")
    # A write in the background is a thread, and some files, for the time it takes.
    for name, allowed in (("files", 8), ("threads", 2)):
        least = min(getattr(each, name) for each in warm)
        wrong += [
            f"step {each.step}: {getattr(each, name)} {name}, and {least} at another time"
            for each in warm
            if getattr(each, name) > least + allowed
        ]
        if getattr(after, name) > getattr(before, name):
            wrong.append(f"{getattr(after, name)} {name} when it is over, and {getattr(before, name)} before")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--compiled", action="store_true", help="the step as one graph that donates")
    parser.add_argument("--json", type=Path, help="where the figures go")
    given = parser.parse_args()
    if given.steps < 10 * NOTE_EVERY or given.steps % (PARTS * NOTE_EVERY):
        parser.error(f"--steps must be a multiple of {PARTS * NOTE_EVERY} of at least {10 * NOTE_EVERY}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(PARTS * NOTE_EVERY, given.compiled, Path(folder, "before"))  # whatever is made once is made
        before, began = note(0), time.perf_counter()
        notes = run(given.steps, given.compiled, Path(folder, "run"))
        seconds, after = time.perf_counter() - began, note(given.steps)
    table = Table("step", "resident MB", "files", "threads", "objects")
    for each in (before, *notes[3::4], after):
        table.add_row(str(each.step), f"{each.resident:.1f}", str(each.files), str(each.threads), str(each.objects))
    console = Console()
    console.print(table)
    warm = [each.resident for each in notes if each.step >= given.steps // 5]
    spread = (max(warm) / warm[0] - 1, min(warm) / warm[0] - 1)
    console.print(
        f"{given.steps} steps, {given.steps // SAVE_EVERY} checkpoints in {seconds:.0f} s; resident memory after the "
        f"warm-up {spread[1]:+.2%} to {spread[0]:+.2%}"
    )
    wrong = check(before, notes, after, given.steps)
    for each in wrong:
        console.print(f"FAILS {each}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "machine": dataclasses.asdict(machine(torch.device("cpu"))),
            "seconds": seconds,
            "spread": spread,
            "notes": [each._asdict() for each in notes],
            "wrong": wrong,
        }
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
