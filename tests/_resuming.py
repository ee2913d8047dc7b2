"""What a new process makes again in tests of resuming: a step, its first state and its batches, by name."""

from __future__ import annotations

import torch
from torch import nn

import purestep as ps


def make():
    """A step with dropout, a schedule and momentum."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 1))
    optimizer = ps.sgd(ps.schedules.cosine(0.1, 10), momentum=0.9)

    def objective(model, batch):
        return ps.mean(model(batch["x"]).square())

    return ps.train_step(model, objective, optimizer), ps.init_state(model, optimizer, seed=0), loader()


def loader():
    generator = torch.Generator().manual_seed(0)
    source = ps.data.from_tensors({"x": torch.randn(12, 3, generator=generator)})
    return ps.data.pipeline(source, ps.data.shuffled(12, seed=3), batch_size=5)


def make_with_a_rate_of_its_own():
    """Another process counts its own steps: each rate depends on how many this process took."""
    step, state, batches = make()
    taken = []

    def counts(state, batch):
        taken.append(None)
        after, metrics = step(state, batch)
        return after.replace(params=after.params.apply(lambda leaf: leaf * (1 - 0.01 * len(taken)))), metrics

    return counts, state, batches
