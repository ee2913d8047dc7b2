"""Pipelines: the batches of plain indexing, exact resume at every place, and one meaning of iterating again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep.data import Pipeline, from_tensors, pipeline, sequential, shuffled

N, SIZE = 23, 5
ORDER = shuffled(N, seed=4)
SETTINGS = [(0, 0), (0, 2), (2, 0), (2, 3)]  # (workers, prefetch)


class Rows:
    """A source that is not in memory, so that it is fetched in threads; it counts, and can fail or wait."""

    def __init__(self, count: int = N, fail_at: int | None = None, gate: threading.Event | None = None) -> None:
        self.count = count
        self.fail_at = fail_at
        self.gate = gate
        self.fetched = 0

    def __len__(self) -> int:
        return self.count

    def fetch(self, indices: Tensor) -> TensorDictBase:
        self.fetched += 1
        if self.gate is not None:
            self.gate.wait(10)
        if self.fail_at is not None and self.fail_at in indices:
            raise KeyError(f"row {self.fail_at}")
        return TensorDict({"row": indices.clone()}, batch_size=indices.shape)


def make(source: Any = None, order: Any = ORDER, **settings: Any) -> Pipeline:
    return pipeline(Rows() if source is None else source, order, **{"batch_size": SIZE, **settings})


def rows(batches: Iterable[TensorDictBase]) -> list[list[int]]:
    return [batch["row"].tolist() for batch in batches]


def expected(*epochs: int, size: int = SIZE, drop_last: bool = False) -> list[list[int]]:
    batches = [list(part.tolist()) for epoch in epochs for part in ORDER(epoch, torch.arange(N)).split(size)]
    return [batch for batch in batches if len(batch) == size or not drop_last]


# ---------------------------------------------------------------------------------------------------- contents


@pytest.mark.parametrize(("workers", "prefetch"), SETTINGS)
def test_batches_are_those_of_plain_indexing(workers: int, prefetch: int) -> None:
    endless = make(workers=workers, prefetch=prefetch)
    assert rows(islice(endless, 13)) == expected(0, 1, 2)[:13]
    assert rows(make(workers=workers, prefetch=prefetch, epochs=2)) == expected(0, 1)
    dropped = make(workers=workers, prefetch=prefetch, epochs=2, drop_last=True)
    assert rows(dropped) == expected(0, 1, drop_last=True)
    assert (len(dropped), dropped.batches_per_epoch, endless.batches_per_epoch) == (8, 4, 5)


def test_every_leaf_in_memory_is_indexed_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    data = TensorDict(
        {"x": torch.randn(N, 3, generator=generator), "deep": {"y": torch.arange(N), "z": torch.rand(N, 2, 2) > 0.5}},
        batch_size=[N],
    )
    for settings in ({}, {"workers": 2}):
        batches = list(make(from_tensors(data), epochs=1, **settings))
        assert [batch.batch_size for batch in batches] == [(5,)] * 4 + [(3,)]
        assert all(isinstance(batch, TensorDict) for batch in batches)
        for batch, positions in zip(batches, torch.arange(N).split(SIZE), strict=True):
            wanted = data[ORDER(0, positions)]
            assert set(batch.keys(True, True)) == {"x", ("deep", "y"), ("deep", "z")}
            assert (batch == wanted).all()
            assert [leaf.dtype for leaf in batch.values(True, True)] == [
                leaf.dtype for leaf in wanted.values(True, True)
            ]


def test_a_long_order_is_read_in_many_requests() -> None:
    """Requests to the order grow from one batch to thousands of positions; the batches must not show it."""
    n = 50_003
    order = shuffled(n, seed=1)
    whole = torch.cat([batch["row"] for batch in pipeline(Rows(n), order, batch_size=7, prefetch=0, epochs=1)])
    assert torch.equal(whole, order(0, torch.arange(n)))
    large = pipeline(Rows(n), order, batch_size=20_000, prefetch=0, epochs=1)
    assert [len(batch) for batch in large] == [20_000, 20_000, 10_003]


def test_a_transform_sees_whole_batches() -> None:
    def transform(batch: TensorDictBase) -> TensorDictBase:
        return batch.set("twice", 2 * batch["row"])

    for workers in (0, 2):
        for batch in make(transform=transform, workers=workers, epochs=1):
            assert torch.equal(batch["twice"], 2 * batch["row"])


def test_the_order_may_leave_out_a_part_of_the_source() -> None:
    assert rows(make(order=sequential(4), epochs=1)) == [[0, 1, 2, 3]]


def test_nothing_else_is_touched() -> None:
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_default_dtype()
    list(make(workers=2, epochs=1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before[1:]


def test_a_process_keeps_its_thread_count_and_ends_well() -> None:
    """torch's count is read at a thread's first use, and a worker that starts before sets it to one for later ones.

    An iterator still held at the end must not abort the process, and no optional library is imported on the way.
    """
    program = """
import sys
import time
import torch
from tensordict import TensorDict
from purestep.data import pipeline, sequential

class Rows:  # no operation of torch may run in the main thread before the workers start
    def __len__(self): return 23
    def fetch(self, indices):
        time.sleep(0.01)
        return TensorDict({"x": torch.ones(len(indices), 9) @ torch.ones(9, 9)}, batch_size=indices.shape)

for _ in pipeline(Rows(), sequential(23), batch_size=5, workers=2, epochs=1): pass
print(torch.get_num_threads(), sorted({"pandas", "PIL"} & set(sys.modules)))
held = iter(pipeline(Rows(), sequential(23), batch_size=5, workers=2))
next(held)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "2 []"), run.stderr


FORKED = """
import os
import torch
from purestep.data import from_tensors, pipeline, sequential

torch.set_num_threads(2)  # makes the pool that a fork leaves without threads
batches = pipeline(from_tensors({"x": torch.arange(64)}), sequential(64), batch_size=4, workers=16, prefetch=16)
for _ in range(20):
    if (child := os.fork()) == 0:
        try:
            assert len([batch for _, batch in zip(range(16), batches)]) == 16
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_may_start_threads() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_come_through_pinned_memory_onto_the_device() -> None:
    for settings in ({}, {"workers": 2}, {"pin_memory": False}, {"prefetch": 0}):
        batches = list(make(device="cuda", epochs=1, **settings))
        assert all(batch["row"].is_cuda for batch in batches)
        assert rows(batches) == expected(0)
    there = from_tensors({"row": torch.arange(N, device="cuda")})
    assert rows(make(there, device="cuda", epochs=1)) == expected(0)


# ------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("epochs", [None, 1, 2])
@pytest.mark.parametrize(("workers", "prefetch"), SETTINGS)
def test_resume_is_exact_at_every_place(workers: int, prefetch: int, epochs: int | None) -> None:
    settings: dict[str, Any] = {"workers": workers, "prefetch": prefetch, "epochs": epochs}
    total = 12 if epochs is None else 5 * epochs
    saving = make(**settings)
    states = [saving.state_dict()]
    seen = []
    for batch in islice(saving, total):
        seen.append(batch["row"].tolist())
        states.append(json.loads(json.dumps(saving.state_dict())))
    assert seen == expected(0, 1, 2)[:total]
    for place, state in enumerate(states):
        resumed = make(prefetch=0, epochs=epochs) if place % 2 else make(**settings)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        if epochs is None:
            assert rows(islice(resumed, 2)) == expected(0, 1, 2)[place : place + 2]
        else:
            assert rows(resumed) == seen[place:]


def test_a_state_saved_in_the_loop_and_one_saved_after_it_go_on_as_their_programs_would() -> None:
    saving = make(epochs=1)
    for _ in saving:
        within = saving.state_dict()
    after = saving.state_dict()
    assert (within["epoch"], within["position"]) == (0, N)
    assert (after["epoch"], after["position"]) == (1, 0)
    resumed = make(epochs=1)
    resumed.load_state_dict(within)
    assert rows(resumed) == []  # the loop that was under way ends
    assert rows(resumed) == expected(1)
    resumed.load_state_dict(after)
    assert rows(resumed) == expected(1)
    assert rows(saving) == expected(1)


def test_resume_with_another_batch_size() -> None:
    saving = make(batch_size=10)
    next(iter(saving))
    resumed = make(batch_size=5, epochs=1)
    resumed.load_state_dict(saving.state_dict())
    assert rows(resumed) == expected(0)[2:]
    resumed = make(batch_size=10, epochs=1, drop_last=True)
    resumed.load_state_dict({**saving.state_dict(), "position": 15})
    assert rows(resumed) == []


def test_a_load_takes_effect_before_during_and_after_iterating() -> None:
    state = make().state_dict()
    target = {**state, "epoch": 1, "position": 10}
    asked_before = make()
    asked_before.state_dict()
    asked_before.load_state_dict(target)  # torchdata's Loader ignores a load after a state_dict()
    assert rows(islice(asked_before, 1)) == expected(1)[2:3]
    under_way = iter(asked_before)
    next(under_way)
    asked_before.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"iterated again or has loaded a state"):
        next(under_way)
    assert rows(islice(asked_before, 1)) == expected(0)[:1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"fingerprint": "0" * 16, "order": "shuffled(9, seed=0)"}, ValueError, "got one of shuffled(9, seed=0)"),
        ({"position": N + 1}, ValueError, "state['position'] must be at most 23, got 24"),
        ({"position": -1}, ValueError, "state['position'] must be an int of at least 0, got -1"),
        ({"epoch": 1.0}, TypeError, "state['epoch'] must be an int of at least 0, got 1.0 of type float"),
        ({"epoch": None}, TypeError, "state['epoch'] must be an int"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    target = make()
    with pytest.raises(error) as caught:
        target.load_state_dict({**target.state_dict(), **change})
    assert message in str(caught.value)
    assert rows(islice(target, 1)) == expected(0)[:1]


def test_a_state_of_another_order_or_of_something_else_is_refused() -> None:
    saving = make(order=shuffled(N, seed=5))
    with pytest.raises(
        ValueError, match=r"must be of this pipeline's order shuffled\(23, seed=4\).*shuffled\(23, seed=5"
    ):
        make().load_state_dict(saving.state_dict())
    with pytest.raises(ValueError, match=r"without \['position', 'order', 'fingerprint'\]"):
        make().load_state_dict({"epoch": 0})
    with pytest.raises(TypeError, match="state must be the dict that state_dict"):
        make().load_state_dict([0, 0])  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- iterating again


@pytest.mark.parametrize(("workers", "prefetch"), SETTINGS)
def test_an_endless_pipeline_goes_on(workers: int, prefetch: int) -> None:
    endless = make(workers=workers, prefetch=prefetch)
    seen = []
    for steps in (1, 3, 4):
        for step, batch in enumerate(endless, start=1):
            seen += rows([batch])
            if step == steps:
                break
    assert seen == expected(0, 1)[:8]


@pytest.mark.parametrize(("workers", "prefetch"), SETTINGS)
def test_a_finite_pipeline_gives_whole_passes(workers: int, prefetch: int) -> None:
    passes = make(workers=workers, prefetch=prefetch, epochs=2)
    assert rows(passes) == expected(0, 1)
    assert rows(islice(passes, 3)) == expected(2)[:3]
    iter(passes)
    assert rows(passes) == expected(4, 5)  # the pass that was left is not taken up again
    evaluation = make(order=sequential(N), workers=workers, prefetch=prefetch, epochs=1)
    next(iter(evaluation))
    assert rows(evaluation) == rows(evaluation)


def test_one_iterator_is_live_at_a_time() -> None:
    endless = make()
    old = iter(endless)
    next(old)
    new = iter(endless)
    assert rows([next(new)]) == expected(0)[1:2]
    with pytest.raises(RuntimeError, match="for two at a time, make two pipelines"):
        next(old)
    assert rows([next(new)]) == expected(0)[2:3]


def test_a_worker_still_busy_with_the_last_pass_takes_nothing_from_the_next() -> None:
    gate = threading.Event()
    source = Rows(gate=gate)
    passes = make(source, workers=2, prefetch=2, epochs=1)
    left = iter(passes)
    wait = threading.Timer(0.2, gate.set)
    wait.start()
    next(left)
    gate.clear()  # the workers now hold batches of the pass that is left, for longer than torchdata waits for them
    wait = threading.Timer(1.2, gate.set)
    wait.start()
    del left
    assert rows(passes) == expected(1)


def test_no_more_is_made_ready_than_was_asked_for() -> None:
    for workers, prefetch in SETTINGS:
        source = Rows()
        batches = iter(make(source, workers=workers, prefetch=prefetch))
        next(batches)
        threading.Event().wait(0.05)
        assert source.fetched <= 1 + 2 * workers + prefetch + 1  # and one in the hands of the prefetching thread


def test_length_truth_and_repr() -> None:
    with pytest.raises(TypeError, match="batches_per_epoch"):
        len(make())
    assert make()
    assert repr(make()).startswith("pipeline(Rows, shuffled(23, seed=4), batch_size=5")


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(("workers", "prefetch"), SETTINGS)
def test_an_error_comes_out_as_it_is_and_loses_no_batch(workers: int, prefetch: int) -> None:
    failing = expected(0)[2][1]
    source = Rows(fail_at=failing)
    batches = make(source, workers=workers, prefetch=prefetch)
    seen = []
    with pytest.raises(KeyError) as caught:
        seen.extend(rows([batch]) for batch in batches)
    assert caught.value.args == (f"row {failing}",)
    assert caught.value.__notes__ == ["in the batch that ends at position 15 of epoch 0"]
    assert batches.state_dict()["position"] == 10
    source.fail_at = None
    assert rows(islice(batches, 2)) == expected(0)[2:4]


def test_a_source_that_raises_stop_iteration_does_not_end_the_loop() -> None:
    def transform(batch: TensorDictBase) -> TensorDictBase:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        list(make(transform=transform, workers=2, epochs=1))


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda batch: batch["row"], TypeError, "transform must return a TensorDict, got Tensor"),
        (lambda batch: batch[:2], ValueError, "transform must return a TensorDict of batch_size [5], got [2]"),
        (lambda batch: None, TypeError, "transform must return a TensorDict, got NoneType"),
    ],
)
def test_a_transform_that_returns_something_else(
    result: Callable[[TensorDictBase], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        next(iter(make(transform=result)))
    assert message in str(caught.value)


def test_a_source_that_returns_something_else() -> None:
    class Bare(Rows):
        def fetch(self, indices: Tensor) -> Any:
            return {"row": indices}

    class Flat(Rows):
        def fetch(self, indices: Tensor) -> Any:
            return TensorDict({"row": indices}, batch_size=[])

    with pytest.raises(TypeError, match=r"Bare\.fetch must return a TensorDict, got dict"):
        next(iter(make(Bare())))
    with pytest.raises(ValueError, match=r"Flat\.fetch must return a TensorDict of batch_size \[5\], got \[\]"):
        next(iter(make(Flat())))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"source": TensorDict({"x": torch.zeros(3)}, [3])},
            TypeError,
            "got TensorDict; for tensors in memory, from_te",
        ),
        ({"order": [0, 1]}, TypeError, "order must be an IndexOrder such as shuffled(len(source), seed=0), got [0, 1]"),
        ({"order": sequential(0)}, ValueError, "order must hold at least one position, got sequential(0)"),
        (
            {"order": sequential(30)},
            ValueError,
            "within the source's 23 examples, got sequential(30), whose indices reach",
        ),
        ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be an int of at least 1, got 2.5 of type float"),
        ({"batch_size": 24, "drop_last": True}, ValueError, "batch_size must be at most 23, the length of the order"),
        ({"workers": -1}, ValueError, "workers must be an int of at least 0, got -1"),
        ({"prefetch": None}, TypeError, "prefetch must be an int of at least 0, got None of type NoneType"),
        ({"epochs": 0}, ValueError, "epochs must be an int of at least 1, got 0"),
        ({"transform": "flip"}, TypeError, "transform must be a function of a batch or None, got 'flip'"),
        ({"pin_memory": "always"}, ValueError, "pin_memory must be True, False or 'auto', got 'always'"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(**settings)
    assert message in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_pinned_memory_without_cuda() -> None:
    with pytest.raises(ValueError, match=r"pin_memory=True needs a CUDA device.*'auto' or False"):
        make(pin_memory=True)
    assert rows(make(pin_memory=False, device="cpu", epochs=1)) == expected(0)
