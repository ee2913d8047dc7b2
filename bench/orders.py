"""Shuffled orders: a keyed bijection against a permutation that is drawn whole.

first: the first block of an epoch, which is what a start and a resume wait for. epoch: all blocks of an epoch.
block: one block in the middle of an epoch, by kind of order and length. weighted: the first block of an epoch of
weighted draws.

    python bench/orders.py [first] [epoch] [block] [weighted]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, WeightedRandomSampler

import purestep as ps
from _report import Bench, Setting, Way, main

BLOCK = 4_096


LARGE_BLOCK = 8_192


def benches(large: int = 10_000_000, small: int = 1_000_000) -> list[Bench]:
    first = f"The first {BLOCK:,} indices of a shuffled epoch of {large:,}"
    block = f"{LARGE_BLOCK:,} indices in the middle of an epoch"
    weighted = f"The first {BLOCK:,} of {small:,} draws by as many weights"
    epoch = f"A shuffled epoch of {small:,} in blocks of {BLOCK:,}"
    return [
        Bench("orders_first", first, partial(first_block, large), {"length": large, "block": BLOCK}),
        Bench("orders_epoch", epoch, partial(whole_epoch, small), {"length": small, "block": BLOCK}),
        Bench("orders_block", block, partial(one_block, small), {"stored": small, "block": LARGE_BLOCK}),
        Bench("orders_weighted", weighted, partial(weighted_block, small), {"weights": small, "block": BLOCK}),
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


def one_block(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    """Orders that hold something hold it for ``size`` examples; torch's draw beside them is of as many numbers."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(LARGE_BLOCK, device=setting.device) + size // 2
    labels, weights = torch.randint(0, 100, (size,), generator=generator), torch.rand(size, generator=generator)
    short = LARGE_BLOCK + size // 2
    orders = {
        "shuffled, of 10^6": ps.data.shuffled(max(10**6, short), seed=0),
        "shuffled, of 10^9": ps.data.shuffled(10**9, seed=0),
        "shuffled, of 10^12": ps.data.shuffled(10**12, seed=0),
        "with_replacement, of 10^12": ps.data.with_replacement(10**12, 10**12, seed=0),
        "weighted": ps.data.weighted(weights, 10**12, seed=0),
        "mixed, of three": ps.data.mixed(
            {name: ps.data.shuffled(10**8, seed=i) for i, name in enumerate("abc")}, [7, 2, 1]
        ),
        "stratified, of 100 labels": ps.data.stratified(labels, seed=0).repeat(3),
        "grouped": ps.data.grouped(weights, 128, seed=0).repeat(3),
    }
    calls = {f"purestep, {name}": partial(partial, order, 3, positions) for name, order in orders.items()}
    return {"torch.randint": lambda: lambda: torch.randint(0, 10**9, (LARGE_BLOCK,), device=setting.device), **calls}


def weighted_block(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    weights = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = torch.arange(BLOCK, device=setting.device)
    order = ps.data.weighted(weights, size, seed=0)
    once = ps.data.weighted(weights, size, seed=0, replacement=False)
    count = min(BLOCK, size)
    epochs = iter(range(10**9))

    def sampled(replacement: bool) -> Tensor:
        sampler = WeightedRandomSampler(weights, size, replacement=replacement)  # type: ignore[arg-type]
        return torch.tensor(list(islice(sampler, count)))

    return {
        "torch's WeightedRandomSampler": lambda: partial(sampled, True),
        "purestep, weighted": lambda: lambda: order(next(epochs), positions[:count]),
        "torch's, without replacement": lambda: partial(sampled, False),
        "purestep, without replacement": lambda: lambda: once(next(epochs), positions[:count]),
    }


if __name__ == "__main__":
    main(__doc__, benches(), max_time=5.0)
