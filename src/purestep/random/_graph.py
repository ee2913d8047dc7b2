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
    "(Tensor key, Tensor? offset, SymInt start, SymInt count, int site, int purpose, int significand, "
    "int? threshold) -> Tensor",
)


# A draw: `count` words from `start` on, plus `offset` where it is given. A key (another purpose): the first two words
# of the block whose number is `offset`. Leading dimensions of `key` are a batch, to which `offset` broadcasts.
@torch.library.impl("purestep::philox", "CompositeExplicitAutograd")
def _philox(
    key: Tensor,
    offset: Tensor | None,
    start: int,
    count: int,
    site: int,
    purpose: int,
    significand: int,
    threshold: int | None,
) -> Tensor:
    if purpose != FOR_BITS:
        assert offset is not None
        return derive(key, offset.expand(key.shape[:-1]), site_words(site, purpose))
    keys = key.reshape(-1, 2)
    offsets = [None] * len(keys) if offset is None else list(offset.expand(key.shape[:-1]).reshape(-1).unbind())
    each = [
        draw(one, start if far is None else far + start, count, site_words(site, purpose), significand, threshold)
        for one, far in zip(keys.unbind(), offsets, strict=True)
    ]
    return torch.stack(each).reshape(*key.shape[:-1], count)


@torch.library.register_fake("purestep::philox")
def _fake(
    key: Tensor,
    offset: Tensor | None,
    start: int,
    count: int,
    site: int,
    purpose: int,
    significand: int,
    threshold: int | None,
) -> Tensor:
    if torch.compiler.is_compiling() or torch._guards.TracingContext.try_get() is not None:
        _register_lowering()
    return torch.empty(*key.shape[:-1], count, dtype=result_dtype(significand, threshold), device=key.device)


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
    """Tell inductor how to compute the words, once: a loop over blocks that stores the four words of each.

    The loop stays by itself: inductor takes all that a loop stores under one name for one value, so that what reads the
    words would get the last of the four wherever it were fused with them.
    """
    try:
        from torch._inductor import ir
        from torch._inductor.lowering import lowerings, register_lowering
        from torch._inductor.virtualized import V
        from torch._inductor.virtualized import ops as typed_ops
    except ImportError:  # another inductor: it calls the operation as it is
        return
    if torch.ops.purestep.philox.default in lowerings:
        return
    ops: Any = typed_ops

    class Blocks(ir.Pointwise):
        """``inner_fn`` gives the words of a block, which lie side by side."""

        def store_output(self, output_name: Any, indexer: Any, vars: Any) -> None:
            *member, block = vars
            words: Any = self.make_loader()(vars)
            for lane, word in enumerate(words):
                ops.store(output_name or "unnamed", indexer([*member, 4 * block + lane]), word)

    def lower(key: Any, offset: Any, *rest: Any) -> Any:
        for read in (key, offset):
            if read is not None:
                read.realize()
        draw = _Draw(ops, key, offset, *rest)
        blocks = Blocks(device=draw.device, dtype=draw.stored, inner_fn=draw.words, ranges=[*draw.batch, draw.blocks])
        layout = ir.FixedLayout(draw.device, draw.stored, [*draw.batch, 4 * draw.blocks])
        buffer = ir.ComputedBuffer(name=None, layout=layout, data=blocks)
        buffer.name = V.graph.register_buffer(buffer)
        V.graph.register_operation(buffer)
        V.graph.no_fuse_buffer_names.add(buffer.name)
        entry = draw.entry(ir.TensorBox(ir.StorageBox(buffer)).make_loader())
        ranges = [*draw.batch, draw.count]
        return ir.Pointwise.create(device=draw.device, dtype=draw.dtype, inner_fn=entry, ranges=ranges)

    register_lowering(torch.ops.purestep.philox.default, type_promotion_kind=None)(lower)


class _Draw:
    """One draw of a graph in inductor's operations."""

    def __init__(
        self,
        ops: Any,
        key: Any,
        offset: Any,
        start: Any,
        count: Any,
        site: int,
        purpose: int,
        significand: int,
        threshold: int | None,
    ) -> None:
        self._ops, self._offset, self._start, self.count = ops, offset, start, count
        self._place, self._of_bits = site_words(site, purpose), purpose == FOR_BITS
        self._significand, self._threshold = significand, threshold
        self.device, self.batch = key.get_device(), list(key.get_size())[:-1]
        self.dtype = result_dtype(significand, threshold)
        self.stored = torch.int32 if threshold is None else torch.bool
        self._load_key = key.make_loader()
        self._load_offset: Any = None if offset is None else offset.make_loader()
        # Whether it is known here where in its block the first word lies.
        self._known = offset is None or not self._of_bits
        self._first: Any = start // 4 if self._known else 0
        self._skip: Any = start % 4 if self._known else 0
        self.blocks = (self._skip + count + 3) // 4 if self._known else (count + 3) // 4 + 1

    def _far(self, member: Any) -> Any:
        """The offset of a member of the batch, and for words the start."""
        ops, sizes = self._ops, self._offset.get_size()
        spread = member[len(self.batch) - len(sizes) :]
        value = self._load_offset([at if size != 1 else at * 0 for at, size in zip(spread, sizes, strict=True)])
        return ops.add(value, ops.index_expr(self._start, torch.int64)) if self._of_bits else value

    def words(self, index: Any) -> list[Any]:
        """What is stored of each word of a block."""
        ops, (*member, at) = self._ops, index
        block = ops.index_expr(at + self._first, torch.int64)
        if self._offset is not None:
            far = self._far(member)
            if self._of_bits:
                far = ops.bitwise_right_shift(far, ops.constant(2, torch.int64))
            block = ops.add(block, far)
        unsigned = self.device.type == "cpu"
        k0, k1 = (self._load_key([*member, at * 0 + i]) for i in range(2))
        made = _rounds(ops, unsigned, k0, k1, block, self._place)
        if self._threshold is None:
            return [ops.to_dtype(word, torch.int32) for word in made]
        least = ops.constant(self._threshold, torch.uint32 if unsigned else torch.int64)
        return [ops.ge(word, least) for word in made]

    def entry(self, load_word: Any) -> Any:
        """The function that reads an entry of the result from what is stored."""
        ops = self._ops

        def inner(index: Any) -> Any:
            *member, at = index
            if self._known:
                word = load_word([*member, at + self._skip])
            else:  # four loads side by side, of which one is right: an index that is read would not be vectorised
                passed = ops.bitwise_and(self._far(member), ops.constant(3, torch.int64))
                word = load_word([*member, at + 3])
                for lane in (2, 1, 0):
                    here = ops.eq(passed, ops.constant(lane, torch.int64))
                    word = ops.where(here, load_word([*member, at + lane]), word)
            return word if self._threshold is not None else _value(ops, word, self._significand)

        return inner


def _value(ops: Any, word: Any, significand: int) -> Any:
    """What an int32 with the bits of a word stands for."""
    wide = result_dtype(significand)
    if significand in (0, 32):
        whole = ops.bitwise_and(ops.to_dtype(word, torch.int64), ops.constant(MASK, torch.int64))
        return whole if not significand else ops.mul(ops.to_dtype(whole, wide), ops.constant(2.0**-32, wide))
    kept = ops.bitwise_and(
        ops.bitwise_right_shift(word, ops.constant(32 - significand, torch.int32)),
        ops.constant((1 << significand) - 1, torch.int32),
    )
    return ops.mul(ops.to_dtype(kept, wide), ops.constant(2.0**-significand, wide))


def _rounds(ops: Any, unsigned: bool, k0: Any, k1: Any, block: Any, place: tuple[int, int]) -> tuple[Any, ...]:
    """:func:`purestep.random._philox.philox` in inductor's operations: int64, or in C++ unsigned.

    The product of two 32-bit words is one instruction on four of them at a time, where a C++ compiler knows that they
    are that; inductor's own vectors multiply int64 one by one, and it leaves loops with unsigned integers alone.
    """
    word, half = torch.uint32 if unsigned else torch.int64, 32

    def number(value: int, dtype: torch.dtype) -> Any:
        return ops.constant(value, dtype)

    def cut(value: Any) -> Any:
        return ops.to_dtype(value, word) if unsigned else ops.bitwise_and(value, number(MASK, word))

    def multiply(constant: int, factor: Any) -> tuple[Any, Any]:
        if unsigned:
            product = ops.mul(ops.to_dtype(factor, torch.uint64), number(constant, torch.uint64))
            return cut(ops.bitwise_right_shift(product, number(half, torch.uint64))), cut(product)
        product = ops.mul(factor, number(constant - (1 << half), word))
        return ops.add(ops.bitwise_right_shift(product, number(half, word)), factor), cut(product)

    c0, c1 = cut(block), cut(ops.bitwise_right_shift(block, number(half, torch.int64)))
    c2, c3 = (number(value, word) for value in place)
    k0, k1 = cut(k0), cut(k1)
    for _ in range(ROUNDS):
        (high0, low0), (high1, low1) = multiply(MULTIPLIERS[0], c0), multiply(MULTIPLIERS[1], c2)
        c0, c2 = ops.bitwise_xor(ops.bitwise_xor(high1, c1), k0), ops.bitwise_xor(ops.bitwise_xor(high0, c3), k1)
        c1, c3 = low1, low0
        k0, k1 = (cut(ops.add(k, number(w, word))) for k, w in zip((k0, k1), WEYL, strict=True))
    return c0, c1, c2, c3
