"""The words of a key where nothing is traced or transformed, on the CPU: in place, in pieces that stay in cache.

The same bits as :func:`purestep.random._philox.philox` gives, in a fifth of its time or less. Two lanes, each of a row:
row 0 begins with c0 and row 1 with c2, and they change places each round. A round of a lane is

    p ← x · multiplier,    x ← high(p) ⊕ low(p of the other lane, a round before) ⊕ key word

where the 64-bit product wraps into int64, and its halves are read as the 32-bit integers that lie there. What does not
differ from block to block (all words but c0 in round 1, half of them in round 2) is computed once, by Python.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from purestep import _tree
from purestep.random._philox import MASK, MULTIPLIERS, ROUNDS, WEYL

# Blocks in a piece: five arrays of int64 over two lanes, which a second-level cache of 512 KiB nearly holds.
PIECE = 8192
# Up to so many blocks Python's long integers are faster than torch's calls, some 40 of 2 microseconds each.
_FEW = 256
_LITTLE_ENDIAN = sys.byteorder == "little"
_LOCAL = threading.local()


def available(key: Tensor, start: int | Tensor) -> bool:
    """Whether this way is open: values can be read, nobody records the operations, and the layout is known."""
    return (
        not torch.compiler.is_compiling()
        and key.device.type == "cpu"
        and _LITTLE_ENDIAN
        and _tree.readable(key)
        and (type(start) is int or (isinstance(start, Tensor) and _tree.readable(start)))
        and not torch._C._len_torch_dispatch_stack()
    )


def fill(
    out: Callable[[], Tensor], key: Tensor, start: int, count: int, place: tuple[int, int], use: Callable
) -> Tensor:
    """Return ``out()``, one-dimensional, after ``use(words, piece of it)`` on each piece; ``words`` are int32 with the
    bits of the unsigned words from ``start`` on, and may be overwritten."""
    if torch._C._functorch.peek_interpreter_stack() is None:
        return _fill(out(), key, start, count, place, use)
    while torch._C._functorch.is_functorch_wrapped_tensor(key):
        key = torch._C._functorch.get_unwrapped(key)
    with torch._C._DisableFuncTorch():  # a transform has nothing to see here: no input has a derivative
        return _fill(out(), key, start, count, place, use)


def _fill(result: Tensor, key: Tensor, start: int, count: int, place: tuple[int, int], use: Callable) -> Tensor:
    k0, k1 = key.tolist()
    (block, skip), done = divmod(start, 4), 0
    while done < count:
        # A piece ends where the high word of the blocks' number changes.
        blocks = min(PIECE, (skip + count - done + 3) // 4, (1 << 32) - (block & MASK))
        words = (_few if blocks <= _FEW else _many)(blocks, k0, k1, block, *place)
        size = min(4 * blocks - skip, count - done)
        if size < 4 * blocks:
            words = words[skip : skip + size]
        use(words, result if size == count else result[done : done + size])
        done, block, skip = done + size, block + blocks, 0
    return result


def _key_words(k0: int, k1: int) -> list[tuple[int, int]]:
    return [((k0 + WEYL[0] * i) & MASK, (k1 + WEYL[1] * i) & MASK) for i in range(ROUNDS)]


class _Workspace:
    """Arrays for one number of blocks, and all views of them: making a view takes as long as a short operation."""

    def __init__(self, blocks: int) -> None:
        self.steps = torch.arange(blocks, dtype=torch.int64, device="cpu") * MULTIPLIERS[0]
        # The high halves stay zero: a round writes the low ones.
        self.x = torch.zeros(2, blocks, dtype=torch.int64, device="cpu")
        self.rows = self.x.unbind()
        self.low = self.x.view(torch.int32)[:, ::2].unbind()
        self.products = [torch.empty(2, blocks, dtype=torch.int64, device="cpu") for _ in range(2)]
        self.first = [p[0] for p in self.products]
        self.highs = [p.view(torch.int32)[:, 1::2].unbind() for p in self.products]
        self.lows = [p.view(torch.int32)[:, ::2].unbind() for p in self.products]
        words = torch.empty(blocks, 4, dtype=torch.int32, device="cpu")
        self.words, self.columns = words.view(-1), words.unbind(1)
        m0, m1 = MULTIPLIERS
        self.multipliers = [torch.tensor(m, dtype=torch.int64, device="cpu") for m in ([[m0], [m1]], [[m1], [m0]])]


def _workspace(blocks: int) -> _Workspace:
    """A thread's arrays of this length; those of the four lengths used last are kept."""
    kept: dict[int, _Workspace] = _LOCAL.__dict__.setdefault("kept", {})
    found = kept.pop(blocks, None)
    if found is None:
        if len(kept) == 4:
            del kept[next(iter(kept))]
        with torch.inference_mode(False):  # else they could not be written to outside it
            found = _Workspace(blocks)
    kept[blocks] = found
    return found


def _many(blocks: int, k0: int, k1: int, block: int, c2: int, c3: int) -> Tensor:
    """Return the words of blocks from ``block`` on, whose numbers have one high word: int32, flat, the thread's own."""
    work, keys = _workspace(blocks), _key_words(k0, k1)
    (m0, m1), c0, c1 = MULTIPLIERS, block & MASK, block >> 32
    xor, (high, low), (row0, row1) = torch.bitwise_xor, (work.highs, work.lows), work.low
    # Round 1: only c0 differs from block to block, and its products are an arithmetic sequence.
    torch.add(work.steps, _signed(c0 * m0, 64), out=work.first[0])
    constant = c2 * m1
    xor(high[0][0], _signed(c3 ^ keys[0][1], 32), out=row0)
    # Round 2: c0 is a constant by now.
    constant, c0 = constant & MASK, (constant >> 32) ^ c1 ^ keys[0][0]
    torch.mul(work.rows[0], m1, out=work.first[1])
    xor(high[1][0], _signed(constant ^ keys[1][0], 32), out=row0)
    constant = c0 * m0
    xor(low[0][0], _signed((constant >> 32) ^ keys[1][1], 32), out=row1)
    # Round 3: c3 is one for the last time.
    torch.mul(work.x, work.multipliers[0], out=work.products[0])
    xor(high[0][0], _signed((constant & MASK) ^ keys[2][1], 32), out=row0)
    xor(high[0][1], low[1][0], out=row1)
    work.rows[1].bitwise_xor_(keys[2][0])
    for number in range(3, ROUNDS):
        now = number % 2
        torch.mul(work.x, work.multipliers[now], out=work.products[now])
        xor(high[now][0], low[1 - now][1], out=row0)
        xor(high[now][1], low[1 - now][0], out=row1)
        work.rows[0].bitwise_xor_(keys[number][1 - now])
        work.rows[1].bitwise_xor_(keys[number][now])
    for column, half in zip(work.columns, (row0, low[1][0], row1, low[1][1]), strict=True):
        column.copy_(half)
    return work.words


def _few(blocks: int, k0: int, k1: int, block: int, c2: int, c3: int) -> Tensor:
    """The same by Python's long integers, in which every block has 64 bits of its own: a product by 32 bits stays
    within them."""
    ones = _ones(blocks)
    masks = ones * MASK
    x0, x1, x2, x3 = ones * (block & MASK) + _counting(blocks), ones * (block >> 32), ones * c2, ones * c3
    k, l = ones * k0, ones * k1  # noqa: E741 (the two words of the key)
    weyl = ones * WEYL[0], ones * WEYL[1]
    for _ in range(ROUNDS):
        p0, p1 = x0 * MULTIPLIERS[0], x2 * MULTIPLIERS[1]
        # The high halves of x1 and x3, which are whole products, and of the shifted ones (a neighbour's) go.
        x0, x1, x2, x3 = (p1 >> 32 ^ x1 ^ k) & masks, p1, (p0 >> 32 ^ x3 ^ l) & masks, p0
        k, l = (k + weyl[0]) & masks, (l + weyl[1]) & masks  # noqa: E741
    pairs = x0 | (x1 & masks) << 32, x2 | (x3 & masks) << 32
    made = torch.frombuffer(bytearray().join(p.to_bytes(8 * blocks, "little") for p in pairs), dtype=torch.int64)
    return made.view(2, blocks).t().contiguous().view(torch.int32).view(-1)


def _ones(blocks: int) -> int:
    """Return 1 in each of so many places of 64 bits."""
    return _LONG_ONES & ((1 << 64 * blocks) - 1)


def _counting(blocks: int) -> int:
    """Return 0, 1, 2, ... in so many places of 64 bits."""
    return _LONG_COUNTING & ((1 << 64 * blocks) - 1)


_LONG_ONES = sum(1 << 64 * i for i in range(_FEW))
_LONG_COUNTING = sum(i << 64 * i for i in range(_FEW))


def _signed(number: int, width: int) -> int:
    """Return the signed integer with the lowest ``width`` bits of ``number``."""
    number &= (1 << width) - 1
    return number - (1 << width) if number >> (width - 1) else number
