"""The overhead of a training step: purestep's compiled, donated step against hand-written torch loops.

A three-layer MLP is small enough that a step's time is mostly what surrounds the mathematics. All ways train the same
model on the same batch with AdamW and a warm-up schedule. Ratios are to the fastest hand-written loop of the run.

    python bench/step_overhead.py [--threads 1] [--rounds 15]
"""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps

import _interleaved

BATCH, INPUTS, HIDDEN, CLASSES = 32, 64, 64, 10
RATE = ps.schedules.warmup_cosine(peak=1e-3, warmup_steps=100, total_steps=100_000)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES)
    )


def objective(model: nn.Module, batch: TensorDict) -> ps.Mean:
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def torch_loop(
    batch: TensorDict, *, compile_model: bool = False, compile_optimizer: bool = False, fused: bool = True
) -> _interleaved.Way:
    """A hand-written loop: zero_grad, forward, backward, step, scheduler step."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(1.0) if compile_optimizer else 1.0, fused=fused)
    values = RATE(torch.arange(20_000)).tolist()  # the loop is not charged for the schedule's mathematics
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: values[step % len(values)])
    forward = torch.compile(net) if compile_model else net
    update = torch.compile(optimizer.step) if compile_optimizer else optimizer.step
    x, y = batch["x"], batch["y"]

    def advance() -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x), y).backward()
        update()
        scheduler.step()

    return advance


def pure_step(batch: TensorDict, *, compiled: bool = True, donate: bool = False, **options: bool) -> _interleaved.Way:
    net = model()
    optimizer = ps.adamw(RATE)
    step = ps.train_step(net, objective, optimizer)
    if compiled:
        step = ps.compile(step, donate=donate, options=options)
    state = ps.init_state(net, optimizer, seed=0)

    def advance() -> None:
        nonlocal state
        state, _ = step(state, batch)

    return advance


def main() -> None:
    options = _interleaved.parser(__doc__, "step_overhead", rounds=15, calls=300, threads=1).parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    batch = TensorDict(
        {
            "x": torch.randn(BATCH, INPUTS, generator=generator),
            "y": torch.randint(0, CLASSES, (BATCH,), generator=generator),
        },
        batch_size=[BATCH],
    )
    ways = {
        "torch, eager, fused AdamW": torch_loop(batch),
        "torch, compiled model, fused AdamW": torch_loop(batch, compile_model=True),
        "torch, compiled model and optimizer": torch_loop(
            batch, compile_model=True, compile_optimizer=True, fused=False
        ),
        "purestep, eager": pure_step(batch, compiled=False),
        "purestep, compiled": pure_step(batch),
        "purestep, compiled, donated": pure_step(batch, donate=True),
        "purestep, compiled, donated, cpp_wrapper": pure_step(batch, donate=True, cpp_wrapper=True),
    }
    times = _interleaved.measure(ways, rounds=options.rounds, calls=options.calls)
    best = min((name for name in times if name.startswith("torch")), key=lambda name: statistics.median(times[name]))
    _interleaved.report(
        "step_overhead",
        f"Three-layer MLP, batch {BATCH}, {options.threads} thread(s)",
        times,
        baseline=best,
        settings={"threads": options.threads, "rounds": options.rounds, "calls": options.calls, "batch": BATCH},
        json_path=options.json,
    )


if __name__ == "__main__":
    main()
