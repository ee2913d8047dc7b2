"""Orders that the tests of orders share: the mutants that laws and statistics must catch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from purestep.data import IndexOrder
from purestep.data.orders.basic import _Shuffled


@dataclass(frozen=True, repr=False)
class Network(_Shuffled):
    """The Feistel network at every size, also where the shuffle sorts."""

    sorted_up_to = 0


@dataclass(frozen=True, repr=False)
class FourRounds(Network):
    """The mutant that the statistics must catch: as many rounds as grain takes."""

    rounds = 4


@dataclass(frozen=True, repr=False)
class Aliased(_Shuffled):
    """The mutant of a key that adds seed and epoch."""

    def _keys(self, epoch: int) -> tuple[int, ...]:
        return _Shuffled(self.n, self.seed + epoch)._keys(0)


def epoch_of(order: IndexOrder, epoch: int) -> Tensor:
    return order(epoch, torch.arange(len(order)))
