"""What the tests of the loop need: batches, plain and donating steps, and a logger that remembers."""

from __future__ import annotations

from itertools import count, islice

import torch

import purestep as ps
from purestep.execution import _boundary


def batches(job, first: int = 0):
    """An endless stream of ragged batches."""
    for number in count(first):
        yield job.batch(length=5 + number % 4, seed=number)


def plain_loop(job, steps: int):
    state, seen = job.state(), []
    for batch in islice(batches(job), steps):
        state, metrics = job.step(state, batch)
        seen.append(metrics)
    return state, seen


def donating(step):
    """What ``ps.compile(step, donate=True)`` does to its argument, without compiling."""

    def donated(state, batch):
        flat = _boundary.flatten_state(state)
        after, metrics = step(state, batch)
        for old, new in zip(flat.leaves, _boundary.flatten_state(after).leaves, strict=True):
            old.copy_(new)
        return _boundary.hand_over(state, flat, "donated"), metrics

    return donated


def counting(state, batch):
    """A step that trains nothing: its metrics are the batch's numbers."""
    after = state.replace(step=state.step + 1, calls=state.calls + 1)
    return after, {"loss": ps.mean(batch["x"]), "rate": state.calls * 0.5}


def numbers(*each: float) -> list[dict]:
    return [{"x": torch.tensor([value])} for value in each]


def same(one: ps.TrainState, other: ps.TrainState) -> bool:
    return bool((one == other).all())


def kept(folder, like: ps.TrainState) -> ps.TrainState:
    """The state in the newest checkpoint of a folder."""
    path = ps.checkpoint.latest(folder)
    assert path is not None
    return ps.checkpoint.load(path, like=like)


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def __call__(self, step, scalars):
        self.calls.append((step, scalars))

    def close(self):
        self.closed += 1
