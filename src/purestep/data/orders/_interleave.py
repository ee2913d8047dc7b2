"""An exact interleave: a pure map k -> (which of several sequences, which of its items), in given proportions."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
from torch import Tensor

MOST = 2**31
"""The weights of an interleave add up to less than this, so that products of two of them stay within int64."""


@dataclass(frozen=True)
class Interleave:
    r"""Sequences in proportion to integer ``weights`` (each at least 1).

    Of two sequences with weights a and b, the first has :math:`\lfloor k\,a / (a + b) \rfloor` of the first k items,
    and the second the others. Of more, the two lightest are first taken for one sequence, again and again (Huffman's
    tree), and each k goes down from the root. So every a + b + ... consecutive items have exactly the weights, and the
    first k have each within 3 of its share.
    """

    weights: tuple[int, ...]

    def __call__(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of the sequence, and that of its item, for each ``k`` (int64, at least 0, any shape)."""
        left, right, part, whole, own = (table.to(k.device) for table in self._tree)
        total = sum(self.weights)
        turns = k.div(total, rounding_mode="floor")
        item = k - turns * total
        node = torch.full_like(k, len(left) - 1)
        for _ in range(self._depth):
            a, total_here = part[node], whole[node]
            product = item * a
            before = product.div(total_here, rounding_mode="floor")
            goes_left = product - before * total_here + a >= total_here  # ⌊(k + 1) a / total⌋ is larger
            item = torch.where(goes_left, before, item - before)
            node = torch.where(goes_left, left[node], right[node])
        return node, item + turns * own[node]

    @cached_property
    def _nodes(self) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
        """Lists by node, the leaves first and the root last: left, right, weight of the left, weight, height."""
        left = list(range(len(self.weights)))
        right, part, whole, height = left[:], list(self.weights), list(self.weights), [0] * len(left)
        order = count()  # equal weights join in the order in which they came
        heap = [(weight, next(order), node) for node, weight in enumerate(self.weights)]
        heapq.heapify(heap)
        while len(heap) > 1:
            (light, _, a), (other, _, b) = heapq.heappop(heap), heapq.heappop(heap)
            heapq.heappush(heap, (light + other, next(order), len(left)))
            height.append(1 + max(height[a], height[b]))
            for numbers, number in zip((left, right, part, whole), (a, b, light, light + other), strict=True):
                numbers.append(number)
        return left, right, part, whole, height

    @cached_property
    def _tree(self) -> tuple[Tensor, ...]:
        return tuple(torch.tensor(numbers) for numbers in (*self._nodes[:4], self.weights))

    @property
    def _depth(self) -> int:
        return self._nodes[4][-1]


def fits(weights: Sequence[int]) -> bool:
    """Whether an interleave can have these weights."""
    return 0 < sum(weights) < MOST
