"""The words of a key as one operation of a compiled graph.

Written out in operations of torch, the ten rounds are some 150 nodes for each call site, through which every part of
the compiler has to go; as one node with a lowering of its own they cost a quarter of that or less, and are fused with
what reads them all the same. Without inductor, the operation runs as it does eagerly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purestep.random._philox import FOR_BITS, MASK, MULTIPLIERS, ROUNDS, WEYL, site_words
from purestep.random._stream import derive, draw, result_dtype

torch.library.define(
    "purestep::philox",
    "(Tensor key, Tensor? offset, SymInt start, SymInt count, int site, int purpose, int significand) -> Tensor",
)


# A draw: `count` words from `start` on, plus `offset` where it is given. A key (another purpose): the first two words
# of the block whose number is `offset`. Leading dimensions of `key` are a batch, to which `offset` broadcasts.
@torch.library.impl("purestep::philox", "CompositeExplicitAutograd")
def _philox(
    key: Tensor, offset: Tensor | None, start: int, count: int, site: int, purpose: int, significand: int
) -> Tensor:
    if purpose != FOR_BITS:
        assert offset is not None
        return derive(key, offset.expand(key.shape[:-1]), site_words(site, purpose))
    keys = key.reshape(-1, 2)
    offsets = [None] * len(keys) if offset is None else list(offset.expand(key.shape[:-1]).reshape(-1).unbind())
    each = [
        draw(one, start if far is None else far + start, count, site_words(site, purpose), significand)
        for one, far in zip(keys.unbind(), offsets, strict=True)
    ]
    return torch.stack(each).reshape(*key.shape[:-1], count)


@torch.library.register_fake("purestep::philox")
def _fake(
    key: Tensor, offset: Tensor | None, start: int, count: int, site: int, purpose: int, significand: int
) -> Tensor:
    if torch.compiler.is_compiling():
        _register_lowering()
    return torch.empty(*key.shape[:-1], count, dtype=result_dtype(significand), device=key.device)


@torch.library.register_vmap("purestep::philox")
def _vmap(info: Any, in_dims: Any, key: Tensor, offset: Tensor | None, *rest: Any) -> tuple[Tensor, int]:
    """Each member has a key of its own, or an offset."""
    key = key.expand(info.batch_size, *key.shape) if in_dims[0] is None else key.movedim(in_dims[0], 0)
    if offset is not None and in_dims[1] is not None:
        offset = offset.movedim(in_dims[1], 0)
        ones = [1] * (key.dim() - 1 - offset.dim())
        offset = offset.reshape(offset.shape[0], *ones, *offset.shape[1:])
    return torch.ops.purestep.philox(key, offset, *rest), 0


def _register_lowering() -> None:
    """Tell inductor how to compute one word, once."""
    try:
        import sympy
        from torch._inductor.ir import Pointwise
        from torch._inductor.lowering import lowerings, register_lowering
        from torch._inductor.virtualized import ops
    except ImportError:  # another inductor: it calls the operation as it is
        return
    if torch.ops.purestep.philox.default in lowerings:
        return

    def lower(key: Any, offset: Any, start: Any, count: Any, site: int, purpose: int, significand: int) -> Any:
        for read in (key, offset):
            if read is not None:
                read.realize()  # else the rounds that made the key would be in every loop
        batch = list(key.get_size())[:-1]
        load = key.make_loader()
        load_offset = None if offset is None else offset.make_loader()
        spread = 0 if offset is None else len(batch) - len(offset.get_size())

        def number(value: int) -> Any:
            return ops.constant(value, torch.int64)

        def inner(index: Any) -> Any:
            *member, place = index
            entry = ops.index_expr(place + start, torch.int64)
            far = None
            if load_offset is not None:
                sizes = offset.get_size()
                at = [i if size != 1 else sympy.Integer(0) for i, size in zip(member[spread:], sizes, strict=True)]
                far = load_offset(at)
            if purpose == FOR_BITS:
                entry = entry if far is None else ops.add(entry, far)
                block = ops.bitwise_right_shift(entry, number(2))
            else:
                block = far
            lane = ops.bitwise_and(entry, number(3))
            k0, k1 = (load([*member, sympy.Integer(i)]) for i in range(2))
            words = _rounds(ops, number, k0, k1, block, site_words(site, purpose))
            early = ops.where(ops.eq(lane, number(0)), words[0], words[1])
            late = ops.where(ops.eq(lane, number(2)), words[2], words[3])
            word = ops.where(ops.lt(lane, number(2)), early, late)
            if not significand:
                return word
            wide = result_dtype(significand)
            kept = ops.bitwise_right_shift(word, number(32 - significand)) if significand < 32 else word
            return ops.mul(ops.to_dtype(kept, wide), ops.constant(2.0**-significand, wide))

        result = Pointwise.create(
            device=key.get_device(), dtype=result_dtype(significand), inner_fn=inner, ranges=[*batch, count]
        )
        result.realize()  # else each reader would compute it anew
        return result

    register_lowering(torch.ops.purestep.philox.default, type_promotion_kind=None)(lower)


def _rounds(ops: Any, number: Any, k0: Any, k1: Any, block: Any, place: tuple[int, int]) -> tuple[Any, ...]:
    """:func:`purestep.random._philox.philox` in inductor's operations."""
    mask, half = number(MASK), number(32)
    c0, c1 = ops.bitwise_and(block, mask), ops.bitwise_right_shift(block, half)
    c2, c3 = number(place[0]), number(place[1])
    for _ in range(ROUNDS):
        halves = []
        for constant, word in zip(MULTIPLIERS, (c0, c2), strict=True):
            product = ops.mul(word, number(constant - (1 << 32)))
            halves.append((ops.add(ops.bitwise_right_shift(product, half), word), ops.bitwise_and(product, mask)))
        (high0, low0), (high1, low1) = halves
        c0, c2 = ops.bitwise_xor(ops.bitwise_xor(high1, c1), k0), ops.bitwise_xor(ops.bitwise_xor(high0, c3), k1)
        c1, c3 = low1, low0
        k0 = ops.bitwise_and(ops.add(k0, number(WEYL[0])), mask)
        k1 = ops.bitwise_and(ops.add(k1, number(WEYL[1])), mask)
    return c0, c1, c2, c3
