"""A small run with all that a run has, made the same in any process, for tests that stop it and take it up again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import purestep as ps
from purestep.schedules import plateau

STEPS, LOG_EVERY, VALIDATE_EVERY = 24, 5, 4
ROWS = 23


class Run:
    """A classifier with dropout, momentum, a schedule, a plateau and a loss scale, over a shuffled pipeline.

    ``full``: with BatchNorm and AdamW as well, which take longer. ``seen``: the rows of the batch of each step.
    """

    def __init__(self, *, full: bool = False) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 3)
            self.model = nn.Sequential(*layers) if full else nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3))
            x = torch.randn(ROWS, 4)
        self.machine = plateau(factor=0.5, patience=0)
        rate = ps.schedules.warmup_cosine(peak=0.05, warmup_steps=3, total_steps=40)
        rate = self.machine.times(rate)
        self.optimizer = ps.adamw(rate) if full else ps.sgd(rate, momentum=0.9)
        self.scale = ps.DynamicLossScale(growth_interval=5, initial=4.0)
        self.plain_step = self.step_of_run = ps.train_step(self.model, objective, self.optimizer, loss_scale=self.scale)
        self.data = {"x": x, "y": (x.sum(1) > 0).long() + (x[:, 0] > 0).long(), "row": torch.arange(ROWS)}
        self.batches = pipeline(self.data)
        self.seen: dict[int, list[int]] = {}
        self.records: dict[int, dict[str, float]] = {}

    def state(self) -> ps.TrainState:
        return ps.init_state(
            self.model, self.optimizer, seed=0, aux={"plateau": self.machine, "loss_scale": self.scale}
        )

    def step(self, state: ps.TrainState, batch: Any) -> Any:
        number = int(state.calls) + 1
        after, metrics = self.step_of_run(state, batch)
        self.seen[number] = batch["row"].tolist()
        return after, metrics

    def validate(self, state: ps.TrainState) -> dict[str, Any]:
        return {"loss": ps.mean(state.params["0.weight"].abs())}  # it grows, so the plateau cuts

    def log(self, number: int, scalars: dict[str, float]) -> None:
        self.records.setdefault(number, {}).update(scalars)

    def fit(self, steps: int = STEPS, **options: Any) -> Any:
        options = {
            "validate": self.validate,
            "validate_every": VALIDATE_EVERY,
            "observe": self.machine.observe,
            "log_every": LOG_EVERY,
            "loggers": [self.log],
            "progress": False,
            "batches": self.batches,
            **options,
        }
        step, batches = options.pop("step", self.step), options.pop("batches")
        state = options.pop("state", None)
        return ps.fit(step, self.state() if state is None else state, batches, steps=steps, **options)


def objective(model: Any, batch: Any) -> Any:
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


def pipeline(data: Any, **options: Any) -> ps.data.Pipeline:
    return ps.data.pipeline(ps.data.from_tensors(data), ps.data.shuffled(ROWS, seed=3), batch_size=5, **options)
