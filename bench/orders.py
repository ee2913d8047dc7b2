"""Shuffled orders: a keyed bijection against a permutation that is drawn whole.

first: the first block of an epoch, which is what a start and a resume wait for. epoch: all blocks of an epoch.

    python bench/orders.py [first] [epoch]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

import purestep as ps
from _report import Bench, Setting, Way, main

BLOCK = 4_096


def benches(large: int = 10_000_000, small: int = 1_000_000) -> list[Bench]:
    first = f"The first {BLOCK:,} indices of a shuffled epoch of {large:,}"
    epoch = f"A shuffled epoch of {small:,} in blocks of {BLOCK:,}"
    return [
        Bench("orders_first", first, partial(first_block, large), {"length": large, "block": BLOCK}),
        Bench("orders_epoch", epoch, partial(whole_epoch, small), {"length": small, "block": BLOCK}),
    ]


def permutation(size: int, setting: Setting) -> Tensor:
    return torch.randperm(size, device=setting.device)


def sampled(size: int, count: int) -> Tensor:
    """What torch's RandomSampler, which yields Python numbers, gives for a block."""
    return torch.tensor(list(islice(RandomSampler(range(size)), count)))


def first_block(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    order, positions = ps.data.shuffled(size, seed=0), torch.arange(BLOCK, device=setting.device)
    return {
        "torch.randperm": lambda: lambda: permutation(size, setting)[:BLOCK],
        "torch's RandomSampler": lambda: lambda: sampled(size, BLOCK),
        "purestep, shuffled": lambda: lambda: order(0, positions),
    }


def whole_epoch(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    order = ps.data.shuffled(size, seed=0)
    blocks = torch.arange(size, device=setting.device).split(BLOCK)

    def by_sampler() -> None:
        numbers = iter(RandomSampler(range(size)))
        while block := list(islice(numbers, BLOCK)):
            torch.tensor(block)

    return {
        "torch.randperm": lambda: lambda: permutation(size, setting).split(BLOCK),
        "torch's RandomSampler": lambda: by_sampler,
        "purestep, shuffled": lambda: lambda: deque((order(0, block) for block in blocks), maxlen=0),
    }


if __name__ == "__main__":
    main(__doc__, benches(), max_time=5.0)
