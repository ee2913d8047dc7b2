"""Law 7: an order is a pure map from (epoch, position) to index, whoever asks and in whatever order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from purestep import _checks
from purestep.data.orders import IndexOrder
from purestep.data.pipeline import pipeline
from purestep.data.sources import from_tensors
from purestep.laws._compare import LawViolation, same_bits
from purestep.laws._report import LawDoesNotApplyError, LawReport, check_laws, is_drawn, on_drawn
from purestep.laws._world import guarded_world

ORDER_LAWS = ("pure", "permutation", "random access", "algebra", "shards", "elastic", "workers", "written")
_LAW = "law 7 (exact orders)"
_PURE = "law 1 (pure)"
# Longer orders are looked at in some of their positions.
_WHOLE = 2**16
_SAMPLE = 2**10
_BATCH, _WORKERS = 7, (0, 3)

Shard = Callable[[IndexOrder, int, int], IndexOrder]


def check_order(
    order: Any,
    *,
    epochs: Sequence[int] = (0, 1, 5),
    worlds: Sequence[int] = (1, 2, 3, 7),
    shard: Shard | None = None,
    max_examples: int = 20,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Assert law 7 of an order, and report which laws hold.

    - ``pure``: the same indices twice and whatever was asked between, under other seeds and default dtypes; positions
      and the global state are untouched;
    - ``permutation``: an epoch gives indices below ``order.bound``, and, of an order that says it is ``distinct``,
      each of them once (at positions of weight zero they do not count);
    - ``random access``: a position asked alone, by a copy that was asked nothing before, has the index that it has
      among all of them, whatever their shape and device; the last one first;
    - ``algebra``: ``skip``, ``take``, ``repeat`` and ``batched`` give the indices and weights that stand there in the
      order itself;
    - ``shards``: the ranks of a world of any size, each with a copy of its own, together see what an epoch holds, each
      position once, by ``order.shard(rank, world)`` or by ``shard``; shards are of one length, and what fills them up
      has weight zero;
    - ``elastic``: a world that stops anywhere in an epoch, and one of another size that goes on at the position where
      it stopped, together see the same;
    - ``workers``: several threads that ask at once get the same indices, and a :func:`purestep.data.pipeline` gives
      the same batches with any number of workers;
    - ``written``: a pickled copy is equal, and has the same hash and fingerprint.

    An order of more than 65,536 positions is looked at in 1,024 of them, spread over all.

    Args:
        order: a :class:`purestep.data.IndexOrder` of one position at least; or a Hypothesis strategy of them, such as
            ``st.builds(ps.data.shuffled, st.integers(1, 50), st.integers(0, 9))``, which finds the smallest one that
            breaks a law.
        epochs, worlds: what to look at.
        shard: ``(order, rank, world) -> order``, another way to make shards; they may be of several lengths.
        max_examples: of a strategy, for each law.
        laws, skip: names of the laws to look at, and of those to leave out.

    Returns:
        The report, where all laws hold.

    Raises:
        LawViolation: with the report: which law does not hold, in which epoch, at which position.
        TypeError: no order. ValueError: an empty one, no epochs or no worlds, or names of no law.
    """
    for name, given in (("epochs", epochs), ("worlds", worlds)):
        if not len(given):
            raise ValueError(f"{name} must be at least one, or nothing is looked at, got {given!r}")
    for epoch in epochs:
        _checks.integer("an epoch", epoch, minimum=0)
    for world in worlds:
        _checks.integer("a world", world, minimum=1)
    drawn = is_drawn(order)
    if not drawn and not isinstance(order, IndexOrder):
        raise TypeError(f"order must be an IndexOrder such as ps.data.shuffled(n, seed=0), got {order!r}")
    if not drawn and len(order) == 0:
        raise ValueError(f"order must hold at least one position, got {order!r}")

    def on_order(law: Callable[[IndexOrder], None]) -> Callable[[], None]:
        return on_drawn(law, {"order": order}, max_examples=max_examples) if drawn else lambda: law(order)

    bundle = {
        "pure": on_order(lambda order: _check_pure(order, epochs)),
        "permutation": on_order(lambda order: _check_permutation(order, epochs)),
        "random access": on_order(lambda order: _check_access(order, epochs)),
        "algebra": on_order(lambda order: _check_algebra(order, epochs)),
        "shards": on_order(lambda order: _check_shards(order, epochs, worlds, shard)),
        "elastic": on_order(lambda order: _check_elastic(order, epochs, worlds, shard)),
        "workers": on_order(lambda order: _check_workers(order, epochs)),
        "written": on_order(lambda order: _check_written(order, epochs)),
    }
    return check_laws("the orders" if drawn else f"the order {order!r}", bundle, laws=laws, skip=skip)


def _positions(order: IndexOrder) -> Tensor:
    """All positions of an epoch, or some that are spread over all of a long one."""
    n = len(order)
    if n <= _WHOLE:
        return torch.arange(n)
    step = n // _SAMPLE
    return torch.tensor([i * step + i % step for i in range(_SAMPLE)] + [n - 1])


def _check_same(law: str, epoch: int, positions: Tensor, got: Tensor, right: Tensor, names: tuple[str, str]) -> None:
    if (got.shape, got.dtype) != (right.shape, right.dtype):
        raise LawViolation(
            f"{law}: epoch {epoch} gives {got.dtype} of shape {tuple(got.shape)} {names[0]}, and {right.dtype} of "
            f"shape {tuple(right.shape)} {names[1]}",
            by="another form",
            on=f"epoch {epoch}",
        )
    wrong = (got != right).reshape(-1).nonzero().reshape(-1)
    if wrong.numel():
        first = int(wrong[0])
        position = int(positions.reshape(-1)[first])
        raise LawViolation(
            f"{law}: position {position} of epoch {epoch} is {int(got.reshape(-1)[first])} {names[0]}, and "
            f"{int(right.reshape(-1)[first])} {names[1]}",
            by=f"{wrong.numel()} of {right.numel()} positions",
            on=f"epoch {epoch}, position {position}",
        )


def _check_pure(order: IndexOrder, epochs: Sequence[int]) -> None:
    default = torch.get_default_dtype()
    for epoch in epochs:
        positions = _positions(order)
        with guarded_world(_PURE, "the order"):
            first = order(epoch, positions).clone()
        for other in epochs:
            order(other, positions)
        try:
            torch.set_default_dtype(torch.float64 if default != torch.float64 else torch.float32)
            with guarded_world(_PURE, "the order", seed=20_251):
                again = order(epoch, positions)
        finally:
            torch.set_default_dtype(default)
        _check_same(_PURE, epoch, positions, again, first, ("at a second call", "at the first"))
        again.zero_()
        given = _positions(order)
        _check_same(_PURE, epoch, given, positions, given, ("of what it was given", "before the call"))
        _check_same(
            _PURE, epoch, positions, order(epoch, positions), first, ("once its result was written over", "before")
        )


def _check_permutation(order: IndexOrder, epochs: Sequence[int]) -> None:
    for epoch in epochs:
        positions = _positions(order)
        indices = order(epoch, positions)
        outside = ((indices < 0) | (indices >= order.bound)).nonzero().reshape(-1)
        if outside.numel():
            at = int(outside[0])
            raise LawViolation(
                f"{_LAW}: position {int(positions[at])} of epoch {epoch} is {int(indices[at])}, where the indices are "
                f"from 0 to {order.bound - 1}",
                by=f"{outside.numel()} indices outside",
                on=f"epoch {epoch}, position {int(positions[at])}",
            )
        if order.distinct:
            _check_once(f"epoch {epoch}", indices[order.weight(epoch, positions) > 0])


def _check_once(where: str, indices: Tensor) -> None:
    found, counts = indices.unique(return_counts=True)
    if len(found) < len(indices):
        twice = found[counts > 1]
        raise LawViolation(
            f"{_LAW}: {where} gives the example {int(twice[0])} {int(counts[counts > 1][0])} times",
            by=f"{len(indices) - len(found)} of {len(indices)} positions give an example again",
            on=f"{where}, example {int(twice[0])}",
        )


def _check_access(order: IndexOrder, epochs: Sequence[int]) -> None:
    for epoch in epochs:
        positions = _positions(order)
        right = order(epoch, positions)
        some = sorted({0, len(positions) // 3, len(positions) // 2, len(positions) - 1}, reverse=True)
        for at in some:
            alone = torch.tensor([_copy(order)(epoch, int(positions[at]))])
            _check_same(_LAW, epoch, positions[[at]], alone, right[[at]], ("asked alone", "among all positions"))
        backwards = positions.flip(0)
        _check_same(_LAW, epoch, backwards, order(epoch, backwards), right.flip(0), ("asked backwards", "forwards"))
        for device in _other_devices():
            there = order(epoch, positions.to(device)).cpu()
            _check_same(_LAW, epoch, positions, there, right, (f"on {device}", "on the CPU"))
        table = positions[: len(positions) // 2 * 2].reshape(2, -1)
        wanted = right[: table.numel()].reshape(2, -1)
        _check_same(_LAW, epoch, table, order(epoch, table), wanted, ("in a table of positions", "in a row of them"))


def _other_devices() -> list[str]:
    return ["cuda"] if torch.cuda.is_available() else []


def _copy(order: IndexOrder) -> IndexOrder:
    """Return the order as another process would get it."""
    return pickle.loads(pickle.dumps(order))


def _check_algebra(order: IndexOrder, epochs: Sequence[int]) -> None:
    n = len(order)
    positions = _positions(order)
    half, size = n // 2, min(n, _BATCH)
    for epoch in epochs:
        right, weights = order(epoch, positions), order.weight(epoch, positions)
        for word, part, here in (
            ("skip", order.skip(half), positions >= half),
            ("take", order.take(half), positions < half),
        ):
            places = positions[here] - (half if word == "skip" else 0)
            names = (f"by {word}({half})", "by the order")
            _check_same(_LAW, epoch, positions[here], part(epoch, places), right[here], names)
            _check_same(_LAW, epoch, positions[here], part.weight(epoch, places), weights[here], names)
        repeated, later = order.repeat(2), positions + epoch % 2 * n
        names = ("by repeat(2)", "by the order")
        _check_same(_LAW, epoch, positions, repeated(epoch // 2, later), right, names)
        _check_same(_LAW, epoch, positions, repeated.weight(epoch // 2, later), weights, names)
        batches, count = order.batched(size), -(-n // size)
        if len(batches) != count:
            raise LawViolation(
                f"{_LAW}: batched({size}) makes {len(batches)} batches of {n} positions, which are {count}",
                by=f"{count - len(batches)} batches",
            )
        for number in (0, count - 1):
            there = torch.arange(number * size, min((number + 1) * size, n))
            names = (f"by batched({size})", "by the order")
            _check_same(_LAW, epoch, there, batches(epoch, number), order(epoch, there), names)


def _check_shards(order: IndexOrder, epochs: Sequence[int], worlds: Sequence[int], shard: Shard | None) -> None:
    if len(order) > _WHOLE:
        raise LawDoesNotApplyError(f"an epoch is longer than {_WHOLE}")
    for epoch in epochs:
        right = _seen(order, epoch)
        for world in worlds:
            shards = [_shard(order, rank, world, shard) for rank in range(world)]
            lengths = sorted({len(part) for part in shards})
            if shard is None and len(lengths) > 1:
                raise LawViolation(
                    f"{_LAW}: {world} shards are of several lengths, from {lengths[0]} to {lengths[-1]}, where ranks "
                    "that wait for each other need one",
                    by="shards of several lengths",
                    on=f"epoch {epoch}, {world} shards",
                )
            got = torch.cat([_seen(part, epoch) for part in shards])
            _check_together(f"{world} shards of epoch {epoch}", f"epoch {epoch}, {world} shards", got, right)


def _check_elastic(order: IndexOrder, epochs: Sequence[int], worlds: Sequence[int], shard: Shard | None) -> None:
    if len(order) > _WHOLE:
        raise LawDoesNotApplyError(f"an epoch is longer than {_WHOLE}")
    if shard is not None:
        raise LawDoesNotApplyError("shard= makes shards of whole orders")
    for epoch in epochs:
        right = _seen(order, epoch)
        for before, after in zip(worlds, [*worlds[1:], worlds[0]], strict=True):
            steps = len(order) // before // 2
            first = [order.shard(rank, before).take(steps) for rank in range(before)]
            rest = order.skip(steps * before)
            then = [rest.shard(rank, after) for rank in range(after)]
            got = torch.cat([_seen(part, epoch) for part in first + then])
            on = f"epoch {epoch}, {before} shards, then {after} from position {steps * before}"
            _check_together(on, on, got, right)


def _seen(order: IndexOrder, epoch: int) -> Tensor:
    """Return what an epoch holds: its indices at positions of other weight than zero, sorted."""
    positions = torch.arange(len(order))
    return order(epoch, positions)[order.weight(epoch, positions) != 0].sort().values


def _shard(order: IndexOrder, rank: int, world: int, shard: Shard | None) -> IndexOrder:
    mine = _copy(order)
    return mine.shard(rank, world) if shard is None else shard(mine, rank, world)


def _check_together(what: str, on: str, got: Tensor, right: Tensor) -> None:
    got = got.sort().values
    if not same_bits(got, right):
        missing = sorted(set(right.tolist()) - set(got.tolist()))
        how = "some of them twice" if len(got) > len(right) else "some of them too seldom"
        how = f"and the example {missing[0]} is in none of them" if missing else how
        raise LawViolation(
            f"{_LAW}: {what} give {len(got)} examples of {len(right)}, {how}",
            by=f"{len(missing)} examples are missing, {len(got) - len(right) + len(missing)} are there again",
            on=on,
        )


def _check_workers(order: IndexOrder, epochs: Sequence[int]) -> None:
    positions = _positions(order)
    blocks = positions.split(max(1, len(positions) // 16))
    names = ("asked by four threads", "by one")
    for epoch in epochs:
        right = order(epoch, positions)
        with ThreadPoolExecutor(4) as threads:
            got = torch.cat(list(threads.map(order, [epoch] * len(blocks), blocks)))
        _check_same(_LAW, epoch, positions, got, right, names)
    if order.bound > _WHOLE or len(order) > _WHOLE:
        return
    source = from_tensors({"index": torch.arange(order.bound)})
    runs = []
    for workers in _WORKERS:
        batches = pipeline(source, order, batch_size=_BATCH, workers=workers, epochs=1)
        runs.append(torch.cat([batch["index"] for batch in batches]))
    right = order(0, positions)
    for workers, run in zip(_WORKERS, runs, strict=True):
        _check_same(_LAW, 0, positions, run, right, (f"in a pipeline of {workers} workers", "asked directly"))


def _check_written(order: IndexOrder, epochs: Sequence[int]) -> None:
    copy = _copy(order)
    for name, mine, other in (
        ("is equal to it", order, copy),
        ("has its hash", hash(order), hash(copy)),
        ("has its fingerprint", order.fingerprint(), copy.fingerprint()),
    ):
        if mine != other:
            raise LawViolation(f"{_LAW}: no pickled copy {name}: {mine!r} and {other!r}", on="a pickled copy")
    positions = _positions(order)
    for epoch in epochs:
        names = ("by a pickled copy", "by the order")
        _check_same(_LAW, epoch, positions, copy(epoch, positions), order(epoch, positions), names)
