"""Cutting a batch into micro-batches."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from purestep import _batches
from purestep._batches import Cut


def numbered(length):
    index = torch.arange(length)
    return {"x": index * 10, "more": [index, TensorDict({"z": index[:, None]}, batch_size=[length])]}


def first_entries(part):
    return part.batch["more"][0].tolist()


@given(length=st.integers(0, 40), number=st.integers(1, 12), by_size=st.booleans())
def test_the_parts_are_the_batch_in_order(length, number, by_size):
    cut = Cut(size=number) if by_size else Cut(parts=number)
    parts = _batches.parts_of(numbered(length), cut)
    assert [index for part in parts for index in first_entries(part)] == list(range(length))
    assert [part.first for part in parts] == [sum(p.length for p in parts[:i]) for i in range(len(parts))]
    assert [part.length for part in parts] == [part.batch["more"][1].batch_size[0] for part in parts]
    counts = [part.length for part in parts]
    if by_size:
        assert all(count == number for count in counts[:-1])
        assert 0 < counts[-1] <= number or length == 0
    else:
        assert len(parts) == max(1, min(number, length))
        assert max(counts) - min(counts) <= 1


@given(length=st.integers(0, 40), number=st.integers(1, 12), by_size=st.booleans())
def test_runs_are_the_same_parts_stacked_the_longer_first(length, number, by_size):
    cut = Cut(size=number) if by_size else Cut(parts=number)
    runs = _batches.runs_of(numbered(length), cut)
    stacked = [run.part(i) for run in runs for i in range(run.number)]
    parts = _batches.parts_of(numbered(length), cut)
    assert [index for part in stacked for index in first_entries(part)] == list(range(length))
    assert [part.length for part in stacked] == sorted((part.length for part in parts), reverse=True)
    assert len(runs) <= 2


def test_a_list_is_cut_already():
    parts = _batches.parts_of([numbered(3), numbered(0), numbered(2)], Cut())
    assert [(part.first, part.length) for part in parts] == [(0, 3), (3, 0), (3, 2)]


def test_a_leading_dimension_is_cut_already():
    batch = {"x": torch.arange(6).reshape(2, 3), "y": (torch.zeros(2, 3, 5),)}
    parts = _batches.parts_of(batch, Cut())
    assert [(part.first, part.length, part.batch["x"].tolist()) for part in parts] == [
        (0, 3, [0, 1, 2]),
        (3, 3, [3, 4, 5]),
    ]
    assert parts[1].batch["y"][0].shape == (3, 5)
    tensordict = TensorDict({"x": batch["x"]}, batch_size=[2, 3])
    assert _batches.parts_of(tensordict, Cut())[1].batch.batch_size == torch.Size([3])


def test_named_tuples_stay_what_they_are():
    pair = namedtuple("pair", ["x", "y"])(torch.arange(4), torch.arange(4))
    assert [type(part.batch).__name__ for part in _batches.parts_of(pair, Cut(parts=2))] == ["pair", "pair"]


WRONG = {
    "no micro-batches": ([], "a list of at least one micro-batch"),
    "an empty stack": ({"x": torch.zeros(0, 3)}, "at least one micro-batch"),
    "no second dimension": ({"x": torch.zeros(3)}, r"batch\['x'\] has shape \(3,\)"),
    "a second dimension that differs": ({"x": torch.zeros(2, 3), "y": torch.zeros(2, 4)}, "dimension 1"),
    "a part whose leaves differ": ([{"x": torch.zeros(2), "y": torch.zeros(3)}], r"the leaves of batch\[0\]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_cut_is_named(case):
    batch, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        _batches.parts_of(batch, Cut())
