"""A training step of purestep: eager, compiled, donated, captured, and of many models at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import purestep as ps
from _report import Setting, Way
from _torch_ways import captured
from _works import Work, losses


def step(
    work: Work,
    setting: Setting,
    *,
    compiled: bool = True,
    donate: bool = False,
    capture: bool = False,
    members: int = 0,
    **options: Any,
) -> Way:
    """``ps.train_step``. With ``members``, that many models of different seeds under ``torch.vmap``; with ``capture``,
    a CUDA graph by hand of the donated step, which changes its state in place."""
    net = work.model(setting)
    optimizer = ps.adamw(work.rate)

    def objective(model: Any, batch: dict[str, Tensor]) -> ps.Mean:
        return ps.mean(losses(model, batch, setting, reduction="none"))

    # The default raises for a gradient that is not finite, and so reads a number from the device, which no capture may.
    guard = {"on_nonfinite": "skip"} if capture else {}
    run: Any = ps.train_step(net, objective, optimizer, accumulate=work.accumulate, **guard)
    state = ps.init_state(net, optimizer, seed=0)
    if members:
        run = torch.vmap(run, in_dims=(0, None))
        models = (work.model(setting, seed) for seed in range(members))
        state = torch.stack([ps.init_state(model, optimizer, seed=i) for i, model in enumerate(models)])
    if compiled:
        run = ps.compile(run, donate=donate, options=options)
    batch = work.batch(setting)

    def advance() -> ps.Mean:
        nonlocal state
        state, metrics = run(state, batch)
        return metrics["loss"]

    return captured(advance) if capture else advance
