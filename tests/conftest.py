"""What the tests share: the marker for tests that compile, and one small job with its steps, compiled once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep.execution.compile import compiler_missing
from purestep.schedules import cosine

hypothesis.settings.register_profile("dev", max_examples=12, deadline=None)
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("dev"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_collection_modifyitems(items):
    needing = [item for item in items if item.get_closest_marker("compiler")]
    reason = compiler_missing() if needing else None
    if reason is not None:
        for item in needing:
            item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Job:
    """A classifier in float64 with a BatchNorm, clipping, a schedule and AdamW: what a step is made of."""

    model: nn.Module
    objective: Callable[..., Any]
    optimizer: ps.Optimizer
    rate: Callable[..., Any]
    step: Callable[..., Any]

    def state(self, seed: int = 0) -> ps.TrainState:
        return ps.init_state(self.model, self.optimizer, seed=seed)

    def batch(self, length: int = 8, seed: int = 0) -> TensorDict:
        generator = torch.Generator().manual_seed(seed)
        return TensorDict(
            {
                "x": torch.randn(length, 4, generator=generator, dtype=torch.float64),
                "y": torch.randint(0, 3, (length,), generator=generator),
            },
            batch_size=[length],
        )


def classify(model, batch):
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


def make_job() -> Job:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))
        model = nn.Sequential(*layers).double()
    rate = cosine(peak=0.05, total_steps=40)
    optimizer = ps.chain(ps.clip_by_global_norm(0.5), ps.adamw(rate, weight_decay=0.1, decay_mask=ps.matrices_only))
    return Job(model, classify, optimizer, rate, ps.train_step(model, classify, optimizer))


@pytest.fixture(scope="session")
def job() -> Job:
    """The job; nothing in it is changed by a test."""
    return make_job()


@pytest.fixture(scope="session")
def compiled_step(job) -> Callable[..., Any]:
    """The job's step as one graph, compiled at its first call: tests share it, since each compilation takes seconds."""
    return ps.compile(job.step)


@pytest.fixture(scope="session")
def donated_step(job) -> Callable[..., Any]:
    """The job's step as one graph that writes over the state it is given."""
    return ps.compile(job.step, donate=True)
