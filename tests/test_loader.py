"""The loader against torch's DataLoader: its batches, its rules; and what it has beyond, a state that is exact."""

from __future__ import annotations

import json
import random
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, is_tensor_collection
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from purestep.data import Loader, collate, loader, padded, shuffled, weighted

N = 23
Pair = namedtuple("Pair", "left right")


class Examples(Dataset[Any]):
    """Examples of every kind, and what the global generators give in each."""

    def __init__(self, count: int = N, fail_at: int | None = None) -> None:
        self.count, self.fail_at = count, fail_at

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index == self.fail_at:
            raise OSError(f"cannot read {index}.png")
        drawn = (torch.rand(()).item(), random.random(), np.random.random())
        return {"x": torch.full((2,), index), "deep": {"y": np.float32(index)}}, index, drawn, f"name {index}"


class Together(Examples):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [(index, len(indices)) for index in indices]


class Numbers(IterableDataset[int]):
    """Numbers, dealt to the workers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        return iter(range(self.count)[slice(None)] if info is None else range(info.id, self.count, info.num_workers))


def plain(batch: Any) -> Any:
    """A batch of either loader as lists, dicts and numbers."""
    if isinstance(batch, torch.Tensor):
        return (str(batch.dtype), batch.tolist())
    if is_tensor_collection(batch) or isinstance(batch, dict):
        return {key: plain(value) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)) and not (batch and isinstance(batch[0], str)):
        return [plain(part) for part in batch]
    return list(batch) if isinstance(batch, (list, tuple)) else batch


def without_draws(batches: Any) -> list[Any]:
    return [plain([batch[0], batch[1], batch[3]]) for batch in batches]


def indices(batches: Any) -> list[list[int]]:
    return [batch[1].tolist() for batch in batches]


# ------------------------------------------------------------------------------------------- torch's batches


@settings(max_examples=25)
@given(
    count=st.integers(0, 20),
    size=st.integers(1, 7),
    drop_last=st.booleans(),
    kind=st.sampled_from(["plain", "sampler", "batch_sampler", "function"]),
)
def test_sequential_batches_are_torchs(count: int, size: int, drop_last: bool, kind: str) -> None:
    dataset = Examples(count)
    arguments: dict[str, Any] = {"batch_size": size, "drop_last": drop_last}
    if kind == "sampler":
        arguments["sampler"] = [i for i in range(count) if i % 3]
    elif kind == "batch_sampler":
        arguments = {"batch_sampler": BatchSampler(SequentialSampler(dataset), size, drop_last)}
    elif kind == "function":
        arguments["collate_fn"] = lambda examples: (examples[0][1], len(examples), 0, "no tensor")
    ours, theirs = loader(dataset, **arguments), DataLoader(dataset, **arguments)
    assert without_draws(ours) == without_draws(theirs)
    assert len(ours) == len(theirs)
    assert without_draws(ours) == without_draws(theirs)  # and once more


def test_workers_give_the_same_batches_and_the_same_draws() -> None:
    started: list[int] = []
    alone = loader(Examples(), 4, True)
    workers = loader(
        Examples(),
        4,
        True,
        num_workers=2,
        persistent_workers=True,
        worker_init_fn=lambda number: started.append(number),
    )
    for _ in range(2):
        first, second = [plain(batch) for batch in alone], [plain(batch) for batch in workers]
        assert first == second
    assert not started, "it was called in the workers, not here"
    workers.close()


def test_each_example_draws_for_itself_and_each_epoch_anew() -> None:
    def draws(batches: Loader) -> dict[int, tuple[float, ...]]:
        return {
            int(index): tuple(float(part[i]) for part in batch[2])
            for batch in batches
            for i, index in enumerate(batch[1])
        }

    batches = loader(Examples(), 4)
    first, second = draws(batches), draws(batches)
    assert first == draws(loader(Examples(), 7))
    numbers = [number for draw in (*first.values(), *second.values()) for number in draw]
    assert len(set(numbers)) == len(numbers)
    assert first != draws(loader(Examples(), 4, seed=1))


def test_the_loops_own_generators_are_untouched() -> None:
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    list(loader(Examples(), 4, True))
    list(loader(Examples(), 4, sampler=WeightedRandomSampler([1.0] * N, 9)))
    list(loader(Numbers(9), 2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [3, None])
def test_iterable_datasets(workers: int, size: int | None) -> None:
    ours, theirs = (make(Numbers(14), size, num_workers=workers) for make in (loader, DataLoader))
    seen = [plain(batch) for batch in ours]
    assert seen == [plain(batch) for batch in theirs]
    it = iter(ours)
    assert [plain(next(it)) for _ in range(3)] == seen[:3]
    state = json.loads(json.dumps(ours.state_dict()))
    resumed = loader(Numbers(14), size, num_workers=workers)
    resumed.load_state_dict(state)
    assert [plain(batch) for batch in resumed] == seen[3:]
    assert [plain(batch) for batch in resumed] == seen


def test_what_is_only_iterable_needs_no_base_class() -> None:
    class Stream:
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    batches = loader(Stream(), 2, drop_last=True)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3]]
    with pytest.raises(TypeError, match="without a length"):
        len(batches)
    with pytest.raises(
        ValueError, match=r"cuts its dataset alike \(batches of 3, in turn of 1\), got one of batches of 2"
    ):
        loader(Stream(), 3).load_state_dict(batches.state_dict())


def test_a_dataset_may_give_a_whole_batch() -> None:
    assert plain(next(iter(loader(Together(), 4)))) == plain(next(iter(DataLoader(Together(), 4))))


def test_tensors_in_memory_are_selected() -> None:
    x, y = torch.randn(N, 3), torch.arange(N)
    for arguments in ({}, {"sampler": [5, 1, 1]}, {"batch_sampler": [[1, 2], [3]]}, {"shuffle": True}):
        ours = loader(
            TensorDataset(x, y), **{"batch_size": 4, **arguments} if "batch_sampler" not in arguments else arguments
        )
        for batch in ours:
            assert torch.equal(batch[0], x[batch[1]])
    rows = TensorDict({"x": x, "y": y}, [N])
    first = next(iter(loader(rows, 4)))
    assert first.batch_size == (4,)
    assert torch.equal(first["x"], x[:4])
    assert plain(list(loader(TensorDataset(x, y), 4))) == plain(list(DataLoader(TensorDataset(x, y), 4)))


def test_single_examples() -> None:
    ours = list(loader(Examples(3), None))
    assert [example[1] for example in ours] == [0, 1, 2]
    assert ours[1][0]["x"].shape == (2,)
    assert len(loader(Examples(3), None)) == 3


# ---------------------------------------------------------------------------------------------------- resume

SAMPLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "shuffle": lambda: {"shuffle": True},
    "order": lambda: {"sampler": weighted([1.0] * 20, 17, seed=2)},
    "batches of an order": lambda: {"batch_sampler": shuffled(N, 1).batched(5)},
    "an order's sampler": lambda: {"sampler": shuffled(N, 1).as_sampler()},
    "random": lambda: {"sampler": RandomSampler(Examples())},
    "weighted": lambda: {"sampler": WeightedRandomSampler([1.0] * N, 17)},
    "subset": lambda: {"sampler": SubsetRandomSampler(range(3, 20))},
    "batches": lambda: {"batch_sampler": BatchSampler(RandomSampler(Examples()), 5, False)},
    "a list": lambda: {"sampler": [3, 1, 4, 1, 5, 9, 2, 6]},
}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_resume_is_exact_in_every_epoch(kind: str) -> None:
    def make() -> Loader:
        arguments = SAMPLERS[kind]()
        return loader(Examples(), **arguments if "batch_sampler" in arguments else {"batch_size": 5, **arguments})

    saving, states, seen = make(), [], []
    for _ in range(2):
        states.append((len(seen), len(seen), saving.state_dict()))
        end = len(seen) + len(saving)
        for batch in saving:
            seen.append(plain(batch))
            states.append((len(seen), end, json.loads(json.dumps(saving.state_dict()))))
    for place, end, state in states[1:]:
        resumed = make()
        resumed.load_state_dict(state)
        torch.manual_seed(place)  # nothing outside matters
        if place < end:
            assert [plain(batch) for batch in resumed] == seen[place:end]
        else:
            assert list(resumed) == [] or state["position"] == 0
    if kind not in ("a list",):
        assert seen[: len(seen) // 2] != seen[len(seen) // 2 :]


def test_a_sampler_that_draws_otherwise_the_second_time_is_refused() -> None:
    class Other:
        calls = 0

        def __iter__(self) -> Iterator[int]:
            Other.calls += 1
            return iter([Other.calls % N, 1, 2, 3])

    saving = loader(Examples(), 2, sampler=Other())
    next(iter(saving))
    resumed = loader(Examples(), 2, sampler=Other())
    resumed.load_state_dict(saving.state_dict())
    with pytest.raises(ValueError, match="sampler must draw the same indices again for a loader to resume"):
        next(iter(resumed))


def test_a_sampler_that_draws_less_the_second_time_is_refused() -> None:
    saving = loader(Examples(), 2, sampler=range(10))
    list(islice(saving, 4))
    resumed = loader(Examples(), 2, sampler=range(3))
    resumed.load_state_dict(saving.state_dict())
    with pytest.raises(ValueError, match="epoch 0 has 3 of them, where the state is at position 8"):
        next(iter(resumed))


def test_out_of_turn() -> None:
    batches = loader(Examples(), 4, True, num_workers=2, in_order=False)
    assert sorted(index for batch in batches for index in batch[1].tolist()) == list(range(N))


def test_an_error_says_which_example_and_the_loop_can_go_on() -> None:
    dataset = Examples(fail_at=9)
    batches = loader(dataset, 4)
    with pytest.raises(OSError, match=r"cannot read 9\.png") as caught:
        list(batches)
    assert caught.value.__notes__ == ["in dataset[9]", "in the batch that ends at position 12 of epoch 0"]
    state = batches.state_dict()
    assert state["position"] == 8
    dataset.fail_at = None
    batches.load_state_dict(state)
    assert indices(islice(batches, 1)) == [[8, 9, 10, 11]]


def nothing(examples: list[Any]) -> None:
    return None


def words(examples: list[Any]) -> list[str]:
    return [f"{example} words, one after the other" for example in examples]


@pytest.mark.parametrize("workers", [0, 1])
def test_none_is_a_batch_too(workers: int) -> None:
    assert list(loader([1, 2, 3], 2, num_workers=workers, collate_fn=nothing)) == [None, None]
    assert list(loader([1, None, 3], None, num_workers=workers)) == [1, None, 3]


def test_batches_and_blocks_may_be_larger_than_a_pipe() -> None:
    """Else the loop waits for the worker to read its next block, and that for the loop to read its batch."""
    sizes: list[int] = []
    batches = loader(range(90_000), 30_000, num_workers=1, collate_fn=words)
    run = threading.Thread(target=lambda: sizes.extend(len(batch) for batch in batches), daemon=True)
    run.start()
    run.join(60)
    assert sizes == [30_000] * 3


# ------------------------------------------------------------------------------------------------- arguments

OWN = torch.Generator()
RULES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "shuffle and sampler": (
        {"shuffle": True, "sampler": [1]},
        ValueError,
        "sampler says in which order examples come, and excludes shuffle: drop one of them",
    ),
    "batch_sampler and batch_size": (
        {"batch_sampler": [[1]], "batch_size": 2},
        ValueError,
        "batch_sampler says what each batch is made of, and excludes batch_size: drop batch_size",
    ),
    "batch_sampler and all": (
        {"batch_sampler": [[1]], "shuffle": True, "sampler": [1], "drop_last": True},
        ValueError,
        "excludes shuffle and sampler and drop_last: drop shuffle and sampler and drop_last",
    ),
    "no batch and drop_last": (
        {"batch_size": None, "drop_last": True},
        ValueError,
        "excludes drop_last: drop drop_last",
    ),
    "batch_size": ({"batch_size": 0}, ValueError, "batch_size must be an int of at least 1, got 0"),
    "num_workers": ({"num_workers": -1}, ValueError, "num_workers must be an int of at least 0, got -1"),
    "timeout": ({"timeout": -1}, ValueError, "timeout must be seconds of at least 0 (0: for ever), got -1"),
    "prefetch": ({"prefetch_factor": 2}, ValueError, "prefetch_factor is of workers, and num_workers is 0: drop it"),
    "prefetch of workers": (
        {"prefetch_factor": -2, "num_workers": 1},
        ValueError,
        "prefetch_factor must be an int of at least 1, got -2",
    ),
    "persistent": ({"persistent_workers": True}, ValueError, "persistent_workers is of workers, and num_workers is 0"),
    "context": ({"multiprocessing_context": "fork"}, ValueError, "multiprocessing_context is of workers, and num_"),
    "context of workers": (
        {"multiprocessing_context": "threads", "num_workers": 1},
        ValueError,
        "multiprocessing_context must be 'fork' or 'spawn' or 'forkserver', or None, got 'threads'",
    ),
    "shuffled iterable": (
        {"dataset": Numbers(3), "shuffle": True},
        ValueError,
        "shuffle needs a dataset with dataset[i] and len(dataset), and this one is only iterated: drop shuffle",
    ),
    "sampled iterable": (
        {"dataset": Numbers(3), "sampler": [1]},
        ValueError,
        "sampler needs a dataset with dataset[i]",
    ),
    "batched iterable": ({"dataset": Numbers(3), "batch_sampler": [[1]]}, ValueError, "batch_sampler needs a dataset"),
    "an empty dataset, shuffled": (
        {"dataset": Examples(0), "shuffle": True},
        ValueError,
        "dataset must hold at least one example to be shuffled, got an empty one",
    ),
}
OURS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "generator": ({"generator": OWN}, TypeError, "generator must be None, got <torch._C.Generator"),
    "a sampler's generator": (
        {"sampler": RandomSampler(range(N), generator=OWN)},
        ValueError,
        "sampler must not have a generator of its own, whose place no state knows: drop generator from RandomSampler",
    ),
    "a sampler that is spent": (
        {"sampler": iter([1])},
        TypeError,
        "sampler must be an order or an iterable that begins",
    ),
    "an order as batch_sampler": (
        {"batch_sampler": shuffled(N, 0)},
        TypeError,
        "batch_sampler must give lists of indices, got shuffled(23, seed=0): give it as sampler=",
    ),
    "an order beyond": ({"sampler": shuffled(30, 0)}, ValueError, "sampler must keep within the dataset's 23 examples"),
    "a padded order": (
        {"sampler": shuffled(N, 0).shard(0, 2)},
        ValueError,
        "sampler must have no positions that count",
    ),
    "a dataset that is none": ({"dataset": 3}, TypeError, "dataset must have dataset[i] and len(dataset), or be itera"),
    "collate_fn": ({"collate_fn": "pad"}, TypeError, "collate_fn must be a function or None, got 'pad'"),
    "seed": ({"seed": None}, TypeError, "seed must be an int of at least 0, got None"),
    "pin_memory": ({"pin_memory": "auto"}, TypeError, "pin_memory must be True or False, got 'auto'"),
    "out of turn": ({"sampler": [1], "in_order": False}, ValueError, "in_order=False needs an order"),
}


@pytest.mark.parametrize("rule", [*RULES, *OURS])
def test_the_rules(rule: str) -> None:
    arguments, error, message = {**RULES, **OURS}[rule]
    with pytest.raises(error) as caught:
        loader(**{"dataset": Examples(), **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize("rule", RULES)
def test_torch_refuses_the_same(rule: str) -> None:
    arguments, error, _ = RULES[rule]
    with pytest.raises(error):
        DataLoader(**{"dataset": Examples(), **arguments})


# --------------------------------------------------------------------------------------------------- collate


def test_collate() -> None:
    batch = collate([Pair({"a": 1, "b": {"c": "x"}}, [1.0, True]), Pair({"a": 2, "b": {"c": "y"}}, [2.0, False])])
    assert isinstance(batch, Pair)
    assert batch.left.batch_size == batch.left["b"].batch_size == (2,)
    assert batch.left["a"].tolist() == [1, 2]
    assert batch.left["b", "c"] == ["x", "y"]
    assert (batch.right[0].dtype, batch.right[1].tolist()) == (torch.float64, [True, False])


def test_padded() -> None:
    pad = padded(-1)
    batch = pad([{"x": [1, 2, 3], "t": torch.ones(1, 2), "n": 5}, {"x": [4], "t": torch.ones(2, 2), "n": 6}])
    assert batch["x"].tolist() == [[1, 2, 3], [4, -1, -1]]
    assert batch["x_mask"].tolist() == [[True, True, True], [True, False, False]]
    assert batch["t"].shape == (2, 2, 2)
    assert (batch["t"][~batch["t_mask"]] == -1).all()
    assert set(batch.keys()) == {"x", "x_mask", "t", "t_mask", "n"}
    (x, mask), label = pad([(torch.ones(2), 0), (torch.ones(0), 1)])
    assert (x.tolist(), mask.tolist(), label.tolist()) == ([[1, 1], [-1, -1]], [[True, True], [False, False]], [0, 1])
    x, mask = pad([[], [1, 2], []])
    assert (x.tolist(), mask.tolist()) == ([[-1, -1], [1, 2], [-1, -1]], [[False] * 2, [True] * 2, [False] * 2])
    sentences = [{"tokens": torch.arange(1 + i % 3)} for i in range(6)]
    assert [batch["tokens"].shape for batch in loader(sentences, 3, collate_fn=padded())] == [(3, 3), (3, 3)]


@pytest.mark.parametrize(
    ("make", "samples", "error", "message"),
    [
        (collate, [], ValueError, "samples must be at least one example, got none"),
        (
            collate,
            [{"x": torch.ones(2)}, {"x": torch.ones(3)}],
            ValueError,
            "examples must have one shape at ['x'], got (2,) in example 0 of the batch but (3,) in example 1: coll",
        ),
        (
            collate,
            [torch.ones(2), torch.ones(2, dtype=torch.int64)],
            ValueError,
            "examples must have one dtype, got torch.float32 in example 0 of the batch but torch.int64 in example 1",
        ),
        (
            padded(),
            [{"x": [1], "x_mask": 1}],
            ValueError,
            "examples must have no key 'x_mask', which padded() gives to the mask of 'x': rename it",
        ),
        (collate, [{"x": 1}, {"y": 1}], ValueError, "examples must have the same keys, got ['x'] in example 0 of the"),
        (
            collate,
            [(1, 2), (1,)],
            ValueError,
            "examples must have as many parts, got 2 in example 0 of the batch but 1",
        ),
        (
            collate,
            [(1, "a"), (1, 2)],
            TypeError,
            "examples must be of one kind at [1], got str in example 0 of the batch",
        ),
        (
            collate,
            [object()],
            TypeError,
            "examples must be made of tensors, arrays, numbers, text, mappings, tuples and",
        ),
        (collate, [{"x": (1, 2)}], TypeError, "examples must hold no tuple inside a mapping, got one in ['x']"),
        (
            padded(),
            [torch.ones(2, 3), torch.ones(2, 4)],
            ValueError,
            "sequences must agree in all but their length, got (2, 3) torch.float32 in example 0 of the batch but (2",
        ),
        (lambda samples: padded(float("nan")), [], ValueError, "value must be a finite number, got nan"),
    ],
)
def test_collate_says_what_differs(make: Any, samples: list[Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(samples)
    assert message in str(caught.value)
