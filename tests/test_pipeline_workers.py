"""Pipelines in many hands: threads, processes and ranks give the same examples, with the same random numbers."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensordict import NonTensorStack, TensorDict, TensorDictBase
from torch import Tensor
from torch.utils.data import get_worker_info

import purestep as ps
from purestep.data import DecodeError, Pipeline, WorkerDiedError, from_tensors, multi, pipeline, sequential, shuffled
from purestep.data._plans import Block, OrderPlan, Place, item_keys
from purestep.data._stream import Stream

N, SIZE = 23, 5
ORDER = shuffled(N, seed=4)


class Rows:
    """A source of row numbers, with what can go wrong in it."""

    def __init__(
        self, *, broken: tuple[int, ...] = (), slow: tuple[int, ...] = (), kills: tuple[int, ...] = ()
    ) -> None:
        self.broken, self.slow, self.kills = broken, slow, kills

    def __len__(self) -> int:
        return N

    def fetch(self, indices: Tensor) -> TensorDictBase:
        for row in indices.tolist():
            if row in self.broken:
                raise DecodeError(f"image file 'r{row}.png' (row {row} of t.csv) cannot be decoded")
            if row in self.slow:
                time.sleep(0.2)
            if row in self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
        return TensorDict({"row": indices.clone(), "pid": torch.full_like(indices, os.getpid())}, [len(indices)])


class Noise:
    """A source that draws."""

    draws = True

    def __len__(self) -> int:
        return N

    def fetch(self, indices: Tensor, *, keys: Tensor) -> TensorDictBase:
        noise = torch.stack([ps.random.uniform(key, ()) for key in keys])
        return TensorDict({"row": indices.clone(), "noise": noise}, [len(indices)])


def noisy(batch: TensorDictBase, keys: Tensor) -> TensorDictBase:
    return batch.set("more", keys[:, 0] % 1000)


def wordy(batch: TensorDictBase) -> TensorDictBase:
    return batch.set("text", NonTensorStack(*["word" * 500_000] * len(batch)))


def make(source: Any = None, order: Any = ORDER, **arguments: Any) -> Pipeline:
    return pipeline(Rows() if source is None else source, order, **{"batch_size": SIZE, **arguments})


def rows(batches: Any) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def through_json(batches: Pipeline) -> dict[str, Any]:
    return json.loads(json.dumps(batches.state_dict()))


# --------------------------------------------------------------------------------------------------- processes


def test_processes_give_the_batches_of_the_loop_and_resume() -> None:
    *right, after = rows(islice(make(), 13))
    processes = make(workers=2, method="process")
    seen, states, pids = [], [processes.state_dict()], set()
    for batch in islice(processes, 12):
        seen += rows([batch])
        pids |= set(batch["pid"].tolist())
        states.append(through_json(processes))
    assert seen == right
    assert len(pids) == 2
    assert os.getpid() not in pids
    for place in (1, 5, 9):
        processes.load_state_dict(states[place])  # with batches of the pass that was left still on their way
        assert rows(islice(processes, 3)) == right[place : place + 3]
        inline = make(prefetch=0)
        inline.load_state_dict(states[place])
        assert rows(islice(inline, 3)) == right[place : place + 3]
    processes.close()
    wait_until_gone(pids)
    assert rows(islice(processes, 1)) == [after]  # in new ones
    processes.close()


def test_a_worker_that_dies_is_an_error_that_says_how() -> None:
    killing = ORDER(0, 11)
    batches = make(Rows(kills=(killing,)), workers=2, method="process")
    seen = []
    with pytest.raises(WorkerDiedError) as caught:
        seen.extend(rows([batch])[0] for batch in batches)
    right = rows(islice(make(), 4))
    assert len(seen) <= 2, "a batch that was ready, and not yet fetched, goes down with its worker"
    assert seen == right[: len(seen)]
    assert "was ended by SIGKILL, which the system does to a process that uses too much memory" in str(caught.value)
    assert f"before it handed over the batch of positions {SIZE * len(seen)} to " in str(caught.value)
    assert batches.state_dict()["position"] == SIZE * len(seen)
    batches.source.kills = ()
    assert seen + rows(islice(batches, 4 - len(seen))) == right  # in new processes, which get the source as it is
    batches.close()


def test_an_error_in_a_worker_comes_out_as_it_is_with_its_trail() -> None:
    batches = make(Rows(broken=(ORDER(0, 7),)), workers=1, method="process")
    with pytest.raises(DecodeError, match="cannot be decoded") as caught:
        list(islice(batches, 5))
    assert any("in fetch" in note for note in caught.value.__notes__)
    batches.close()


@pytest.mark.parametrize("in_order", [True, False])
def test_a_timeout(in_order: bool) -> None:
    batches = make(Rows(slow=(ORDER(0, 0),)), workers=1, method="process", timeout=0.05, in_order=in_order)
    with pytest.raises(
        RuntimeError, match=r"timeout=0\.05 seconds went by while worker 0 .* batch of positions 0 to 4"
    ):
        next(iter(batches))
    batches.close()


def test_a_worker_that_dies_amid_a_batch_is_an_error_that_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    """More text than a pipe holds, so that half a message is there when the worker ends."""
    batches = make(order=sequential(SIZE), workers=1, method="process", transform=wordy)
    pool = batches._started()
    receive = pool.receive

    def kill_first(worker: int, *rest: Any) -> Any:
        assert pool.connections[worker].poll(20)
        os.kill(pool.processes[worker].pid, signal.SIGKILL)
        return receive(worker, *rest)

    monkeypatch.setattr(pool, "receive", kill_first)
    with pytest.raises(WorkerDiedError, match=r"was ended by SIGKILL.* before it handed over the batch of positions 0"):
        next(iter(batches))
    batches.close()


def wait_until_gone(pids: set[int]) -> None:
    until = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until, pids
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------- out of turn


def check_out_of_turn(method: str = "thread") -> None:
    """Every example comes once, and a resume loses none."""
    slow = Rows(slow=(ORDER(0, 0),))
    arguments: dict[str, Any] = {"workers": 2, "method": method, "in_order": False, "epochs": 2}
    saving = make(slow, **arguments)
    seen, places = [], []
    for batch in saving:
        seen += rows([batch])
        places.append((len(seen), through_json(saving)))
    assert seen != rows(make(epochs=2)), "nothing came out of turn"
    assert any("handed_out" in state for _, state in places)
    assert "handed_out" not in places[-1][1], "the place has not moved over what was handed out"
    assert sorted(map(sorted, seen)) == sorted(map(sorted, rows(make(epochs=2))))
    saving.close()
    for done, state in places:
        resumed = make(epochs=2, in_order=done % 2 == 0)
        resumed.load_state_dict(state)
        rest = rows(resumed)
        assert sorted(map(sorted, seen[:done] + rest)) == sorted(map(sorted, seen)), state


@pytest.mark.parametrize("method", ["thread", "process"])
def test_out_of_turn_every_example_comes_once_and_resume_loses_none(method: str) -> None:
    check_out_of_turn(method)


def at_the_last_batch(stream: Stream, made: Any) -> None:
    stream._begun = True
    stream._place = Place(made.block.epoch, made.block.end)


def no_gap_is_closed(stream: Stream) -> None:
    pass


def from_the_place_on(plan: OrderPlan, place: Place, handed_out: Any, stop: int | None) -> Iterator[Any]:
    return SPANS(plan, place, (), stop)


SPANS = OrderPlan._spans


@pytest.mark.parametrize(
    ("kind", "name", "mutant"),
    [
        (Stream, "_advance", at_the_last_batch),
        (Stream, "_close_the_gap", no_gap_is_closed),
        (OrderPlan, "_spans", from_the_place_on),
    ],
)
def test_the_law_out_of_turn_catches(kind: type, name: str, mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, name, mutant)
    with pytest.raises(AssertionError):
        check_out_of_turn()


# -------------------------------------------------------------------------------------------------------- ranks


def check_ranks(n: int, size: int, worlds: tuple[int, int], sizes: int, done: int, drop_last: bool) -> None:
    """However many ranks there were and are, each position comes once, in the order's order."""
    drop_last = drop_last and size * worlds[0] <= n and sizes * worlds[1] <= n
    source, order = from_tensors({"row": torch.arange(n)}), shuffled(n, seed=1)

    def ranks(world: int, size: int) -> list[Pipeline]:
        return [
            pipeline(source, order, batch_size=size, epochs=1, rank=rank, world=world, drop_last=drop_last)
            for rank in range(world)
        ]

    def run(pipelines: list[Pipeline], count: int | None = None) -> list[int]:
        """Side by side, the ranks' examples are the order's; all have as many batches and one state."""
        seen = []
        for batches in islice(zip(*pipelines, strict=True), count):
            for place in range(max(len(batch) for batch in batches)):
                seen += [int(batch["row"][place]) for batch in batches if place < len(batch)]
        assert len({str(pipeline.state_dict()) for pipeline in pipelines}) == 1
        return seen

    first, second = ranks(worlds[0], size), ranks(worlds[1], sizes)
    seen = run(first, done)
    whole = order(0, torch.arange(n)).tolist()
    assert seen == whole[: len(seen)]
    state = first[0].state_dict()
    if state["epoch"] == 0:
        for pipeline_ in second:
            pipeline_.load_state_dict(state)
        seen += run(second)
        assert seen == whole[: len(seen)]
    lost = n - len(seen)
    assert lost < max(size * worlds[0], sizes * worlds[1]) if drop_last else lost == 0


@settings(max_examples=30)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 6),
    worlds=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sizes=st.integers(1, 6),
    done=st.integers(0, 8),
    drop_last=st.booleans(),
)
@example(n=11, size=2, worlds=(3, 2), sizes=1, done=1, drop_last=False)
def test_ranks_deal_out_the_order_and_another_world_goes_on(
    n: int, size: int, worlds: tuple[int, int], sizes: int, done: int, drop_last: bool
) -> None:
    check_ranks(n, size, worlds, sizes, done, drop_last)


class InRuns(OrderPlan):
    """Each rank takes a run of positions, in place of every ``world``-th."""

    def _cut(self, epoch: int, start: int, until: int) -> Iterator[Block]:
        for begin in range(start, until, self.batch_size * self.world):
            end = min(begin + self.batch_size * self.world, until)
            mine = torch.arange(begin, end)[self.rank * self.batch_size :][: self.batch_size]
            there = mine if len(mine) else torch.tensor([begin])
            yield Block(epoch, begin, end, *self._at(epoch, there))._replace(empty=not len(mine))


class Again(OrderPlan):
    """A rank without a share gets an example again."""

    def _cut(self, epoch: int, start: int, until: int) -> Iterator[Block]:
        return (block._replace(empty=False) for block in super()._cut(epoch, start, until))


class OwnPlace(OrderPlan):
    """The place counts the examples of this rank."""

    def _cut(self, epoch: int, start: int, until: int) -> Iterator[Block]:
        blocks = super()._cut(epoch, start, until)
        return (block._replace(end=block.start + len(block.indices)) for block in blocks)


@pytest.mark.parametrize("mutant", [InRuns, Again, OwnPlace])
def test_the_law_of_ranks_catches(mutant: type[OrderPlan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["purestep.data.pipeline"], "OrderPlan", mutant)
    with pytest.raises(AssertionError):
        check_ranks(n=11, size=2, worlds=(3, 2), sizes=1, done=1, drop_last=False)


def test_a_rank_without_a_share_gets_an_empty_batch() -> None:
    last = list(make(order=sequential(6), batch_size=2, rank=1, world=5, epochs=1, transform=noisy))[-1]
    assert last.batch_size == (1,)
    lonely = list(make(order=sequential(11), batch_size=1, rank=4, world=5, epochs=1, transform=noisy))
    assert [len(batch) for batch in lonely] == [1, 1, 0]
    assert set(lonely[-1].keys()) == {"row", "pid", "more"}


def test_positions_that_only_fill_a_shard_up_have_weight_zero() -> None:
    shards = [sequential(N).shard(rank, 4) for rank in range(4)]
    seen = [(row, weight) for shard in shards for batch in make(order=shard, epochs=1)
            for row, weight in zip(batch["row"].tolist(), batch["weight"].tolist(), strict=True)]  # fmt: skip
    assert sorted(row for row, weight in seen if weight == 1) == list(range(N))
    assert [weight for _, weight in seen if weight != 1] == [0.0]
    assert "weight" not in next(iter(make())).keys()  # noqa: SIM118 (a TensorDict's `in` is not for keys)
    elsewhere = from_tensors({"x": torch.empty(N, device="meta")})
    assert next(iter(make(elsewhere, shards[0])))["weight"].device.type == "meta"
    own = from_tensors({"weight": torch.ones(N)})
    with pytest.raises(ValueError, match="source must not have a 'weight' of its own"):
        next(iter(make(own, shards[0])))


# --------------------------------------------------------------------------------------------- random numbers


def drawn(**arguments: Any) -> dict[tuple[int, int], tuple[float, int]]:
    """What each (epoch, row) drew."""
    found = {}
    world = arguments.pop("world", 1)
    for rank in range(world):
        batches = make(Noise(), transform=noisy, epochs=2, rank=rank, world=world, **arguments)
        for batch in batches:
            for row, noise, more in zip(*(batch[name].tolist() for name in ("row", "noise", "more")), strict=True):
                found[batches.state_dict()["epoch"], row] = (noise, more)
        batches.close()
    return found


def check_draws() -> None:
    """What an example draws does not depend on workers, batches or ranks."""
    right = drawn()
    assert len(set(right.values())) == 2 * N  # and not on the other examples, nor on the last epoch
    for arguments in ({"workers": 2}, {"workers": 2, "method": "process"}, {"batch_size": 7}, {"world": 3}):
        assert drawn(**arguments) == right
    assert not set(drawn(seed=1).values()) & set(right.values())


def test_what_an_example_draws_does_not_depend_on_workers_batches_or_ranks() -> None:
    check_draws()


def by_worker(seed: int, epoch: int, positions: Tensor) -> Tensor:
    info = get_worker_info()
    return item_keys(seed if info is None else seed + 10 + info.id, epoch, positions)


def by_place_in_batch(seed: int, epoch: int, positions: Tensor) -> Tensor:
    return item_keys(seed, epoch, positions - positions[0])


def by_batch(seed: int, epoch: int, positions: Tensor) -> Tensor:
    """Each example its own, but of where its batch begins."""
    return item_keys(seed + int(positions[0]), epoch, positions)


def by_turn(turns: Iterator[int], seed: int, epoch: int, positions: Tensor) -> Tensor:
    """One stream for all."""
    return item_keys(seed, 0, torch.tensor([next(turns) for _ in positions]))


@pytest.mark.parametrize("mutant", [by_worker, by_place_in_batch, by_batch, partial(by_turn, count())])
def test_the_law_of_draws_catches(mutant: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purestep.data._making.item_keys", mutant)
    with pytest.raises(AssertionError):
        check_draws()


def test_a_state_of_another_seed_is_refused_where_something_draws() -> None:
    saving = make(Noise(), seed=3)
    next(iter(saving))
    with pytest.raises(ValueError, match=r"state must be of seed=4, .* got one of seed=3"):
        make(Noise(), seed=4).load_state_dict(saving.state_dict())
    plain = make(seed=3)
    make(seed=4).load_state_dict(plain.state_dict())  # nothing here is drawn


def test_parts_of_a_multi_source_draw_for_themselves() -> None:
    batch = next(iter(make(multi(left=Noise(), right=Noise()))))
    assert not torch.equal(batch["left", "noise"], batch["right", "noise"])
    assert torch.equal(multi(Noise()).fetch(torch.arange(3), keys=torch.ones(3, 2, dtype=torch.int64))["row"],
                       torch.arange(3))  # fmt: skip


# ------------------------------------------------------------------------------------------- broken examples


@pytest.mark.parametrize("arguments", [{}, {"workers": 2}, {"workers": 1, "method": "process"}])
def test_broken_examples_are_skipped_and_counted(arguments: dict[str, Any]) -> None:
    broken = (ORDER(0, 3), ORDER(0, 4), *ORDER(0, torch.arange(10, 15)).tolist())
    batches = make(Rows(broken=broken), on_error="skip", epochs=1, **arguments)
    seen, counts = [], []
    for batch in batches:
        seen += rows([batch])
        counts.append(through_json(batches))
    whole = rows(make(epochs=1))
    assert seen == [whole[0][:3], whole[1], whole[3], whole[4]]  # of the third batch nothing was left
    assert batches.skipped == 7
    assert [state.get("skipped") for state in counts] == [2, 2, 7, 7]
    resumed = make(Rows(broken=broken), on_error="skip", epochs=1)
    resumed.load_state_dict(counts[1])
    assert rows(resumed) == seen[2:]
    assert resumed.skipped == 7
    batches.close()


def test_an_epoch_of_broken_examples_is_an_error() -> None:
    batches = make(Rows(broken=tuple(range(N))), on_error="skip")
    with pytest.raises(ValueError, match=r"a whole epoch was skipped, its last example because image file 'r\d+.png'"):
        next(iter(batches))


def test_an_error_that_is_no_broken_example_is_raised_all_the_same() -> None:
    class Bug(Rows):
        def fetch(self, indices: Tensor) -> TensorDictBase:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        next(iter(make(Bug(), on_error="skip")))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "processes"}, ValueError, "method must be 'thread' or 'process', got 'processes'"),
        ({"on_error": "ignore"}, ValueError, "on_error must be 'raise' or 'skip', got 'ignore'"),
        ({"rank": 2, "world": 2}, ValueError, "rank must be below world, 2, got 2"),
        ({"world": 0}, ValueError, "world must be an int of at least 1, got 0"),
        ({"seed": -1}, ValueError, "seed must be an int of at least 0, got -1"),
        ({"timeout": 3}, ValueError, "timeout must be 0 without worker processes to wait for (workers > 0 and method"),
        ({"timeout": -1}, ValueError, "timeout must be seconds of at least 0 (0: for ever), got -1"),
        ({"timeout": "1"}, TypeError, "timeout must be a number of seconds, got '1' of type str"),
        (
            {"batch_size": 12, "world": 2, "drop_last": True},
            ValueError,
            "batch_size must be at most 11, the length of the order over 2 ranks, with drop_last=True",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(**arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"handed_out": [[0, 5]]}, ValueError, "state['handed_out'] must be a list of [epoch, start, end], got [0, 5]"),
        ({"handed_out": [[0, 5, -1]]}, ValueError, "state['handed_out'] must be an int of at least 0, got -1"),
        ({"skipped": "two"}, TypeError, "state['skipped'] must be an int of at least 0, got 'two'"),
    ],
)
def test_bad_states(change: dict[str, Any], error: type[Exception], message: str) -> None:
    batches = make()
    with pytest.raises(error) as caught:
        batches.load_state_dict({**batches.state_dict(), **change})
    assert message in str(caught.value)
