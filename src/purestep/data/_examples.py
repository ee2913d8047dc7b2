"""Making batches of torch's datasets: of the examples that are indexed, or of those that an iterator gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from purestep.data._globals import OwnGenerators, number_of, seed_globals
from purestep.data._making import Made
from purestep.data._plans import Block
from purestep.data.sources import Source


class _Make:
    """Turns a block into a batch, with the global generators seeded, and put back where they are the loop's own."""

    def __call__(self, block: Block) -> Made:
        left = block.place_only()
        try:
            if get_worker_info() is not None:
                return self._made(block, left)
            with OwnGenerators():
                return self._made(block, left)
        except Exception as error:
            error.add_note(f"in the batch that ends at position {block.end} of epoch {block.epoch}")
            return Made(None, error, left)

    def _made(self, block: Block, left: Block) -> Made:
        raise NotImplementedError


class MakeFromDataset(_Make):
    """Batches of a dataset that is indexed."""

    def __init__(self, dataset: Any, gather: Callable[[Any], Any], seed: int, single: bool) -> None:
        self.dataset = dataset
        self.gather = gather
        self.seed = seed
        self.single = single

    def _made(self, block: Block, left: Block) -> Made:
        indices = block.indices.tolist() if isinstance(block.indices, torch.Tensor) else block.indices
        if self.single:
            return Made(self.gather(self._example(block, block.start, indices[0])), None, left)
        if hasattr(self.dataset, "__getitems__"):
            seed_globals(number_of(self.seed, block.epoch, block.start))
            return Made(self.gather(self.dataset.__getitems__(indices)), None, left)
        positions = block.positions.tolist()
        examples = [self._example(block, *each) for each in zip(positions, indices, strict=True)]
        return Made(self.gather(examples), None, left)

    def _example(self, block: Block, position: int, index: Any) -> Any:
        seed_globals(number_of(self.seed, block.epoch, position))
        try:
            return self.dataset[index]
        except Exception as error:
            error.add_note(f"in dataset[{index!r}]")
            raise


class MakeFromTensors:
    """Batches of what is in memory: rows are selected, which draws nothing."""

    def __init__(self, tensors: tuple[Tensor, ...] | Source) -> None:
        self.tensors = tensors

    def __call__(self, block: Block) -> Made:
        left = block.place_only()
        try:
            indices = torch.as_tensor(block.indices)
            if isinstance(self.tensors, tuple):
                return Made(tuple(tensor.index_select(0, indices) for tensor in self.tensors), None, left)
            return Made(self.tensors.fetch(indices), None, left)
        except Exception as error:
            error.add_note(f"in the batch that ends at position {block.end} of epoch {block.epoch}")
            return Made(None, error, left)


class MakeFromIterable(_Make):
    """Batches of a dataset that is iterated; each worker has its own iterator."""

    def __init__(
        self, dataset: Any, batch_size: int | None, drop_last: bool, gather: Callable[[Any], Any], seed: int
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.gather = gather
        self.seed = seed
        self._examples: Iterator[Any] = iter(())

    def _made(self, block: Block, left: Block) -> Made:
        seed_globals(number_of(self.seed, block.epoch, block.start))
        info = get_worker_info()
        if block.start < (1 if info is None else info.num_workers):  # the worker's first batch of a pass
            self._examples = iter(self.dataset)
        examples = list(islice(self._examples, self.batch_size or 1))
        if not examples or (self.drop_last and len(examples) < (self.batch_size or 1)):
            return Made(None, None, left, exhausted=True)
        if block.discard:
            return Made(None, None, left)
        return Made(self.gather(examples[0] if self.batch_size is None else examples), None, left)
