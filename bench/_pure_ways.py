"""A training step of purestep: eager, compiled, donated, captured, and of many models at once; and an update alone."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

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


def update(
    optimizer: ps.Optimizer, values: dict[str, Tensor], grads: dict[str, Tensor], *, donate: bool = True, **options: Any
) -> Way:
    """A compiled ``ps.update_step`` of given gradients; ``options`` are inductor's."""
    once = next(iter(grads.values())).new_ones(())
    pure = ps.update_step(optimizer)

    def step(state: ps.TrainState, grads: TensorDict) -> Any:
        return pure(state, ps.Gradient((grads,), (), state.buffers, {"loss": ps.Mean(once, once)}))

    compiled = ps.compile(step, donate=donate, options=options)
    model = nn.ParameterDict({name: nn.Parameter(value) for name, value in values.items()})
    state, given = ps.init_state(model, optimizer, seed=0), TensorDict(grads)

    def advance() -> None:
        nonlocal state
        state, _ = compiled(state, given)

    return advance
