"""What a step of 8 micro-batches costs beside 8 gradients alone and one update.

The gradient alone is a ``grad_step`` of one micro-batch, the update alone an ``update_step``, run in the same way as
the step: it cannot do less than 8 of the one and one of the other. eager: as it is. compiled: one graph, donated.

    python bench/accumulation_cost.py [eager] [compiled]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purestep as ps
from _report import Bench, Setting, Way, main

PARTS, EXAMPLES, INPUTS, WIDTH, CLASSES = 8, 64, 256, 512, 10
OPTIMIZER = ps.chain(ps.clip_by_global_norm(1.0), ps.adamw(1e-3))
Make = Callable[[Callable[..., Any]], Callable[..., Any]]


def benches(parts: int = PARTS, examples: int = EXAMPLES) -> list[Bench]:
    sizes = {"parts": parts, "examples": examples, "width": WIDTH}
    title = f"{parts} micro-batches of {examples}, MLP of width {WIDTH}"
    eager, compiled = partial(ways, parts, examples, lambda step: step), partial(ways, parts, examples, donated)
    return [
        Bench("accumulation_eager", f"{title}, eager", eager, sizes),
        Bench("accumulation_compiled", f"{title}, compiled, donated", compiled, sizes),
    ]


def donated(step: Callable[..., Any]) -> Callable[..., Any]:
    return ps.compile(step, donate=True)


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [layer for a, b in pairwise([INPUTS, WIDTH, WIDTH, WIDTH]) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def objective(model: nn.Module, batch: Any) -> ps.Mean:
    return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))


def batch_of(examples: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(examples, INPUTS, generator=generator).to(device),
        "y": torch.randint(0, CLASSES, (examples,), generator=generator).to(device),
    }


def ways(parts: int, examples: int, run_as: Make, setting: Setting) -> dict[str, Callable[[], Way]]:
    net, whole = model().to(setting.device), batch_of(examples * parts, setting.device)
    pieces = [{k: v[i * examples :][:examples] for k, v in whole.items()} for i in range(parts)]

    def alone() -> Way:
        gradient, update = run_as(ps.grad_step(net, objective)), run_as(ps.update_step(OPTIMIZER))
        state = ps.init_state(net, OPTIMIZER, seed=0)

        def advance() -> None:
            nonlocal state
            for piece in pieces:
                last = gradient(state, piece)
            state, _ = update(state, last)

        return advance

    def step(**options: Any) -> Way:
        advance_state = run_as(ps.train_step(net, objective, OPTIMIZER, accumulate=parts, **options))
        state = ps.init_state(net, OPTIMIZER, seed=0)

        def advance() -> None:
            nonlocal state
            state, _ = advance_state(state, whole)

        return advance

    made = {f"{parts} gradients and an update": alone, "one step": step}
    return made if run_as is not donated else {**made, "one step, scanned": partial(step, loop="scan")}


if __name__ == "__main__":
    main(__doc__, benches(), max_time=15.0)
