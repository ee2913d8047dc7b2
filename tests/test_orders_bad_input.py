"""Orders: what each bad argument is told."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from purestep.data import (
    OrderSampler,
    grouped,
    mixed,
    sequential,
    shuffled,
    stratified,
    subset,
    weighted,
    with_replacement,
)

TWO = {"a": sequential(3), "b": shuffled(3, seed=0)}


def sampler() -> OrderSampler:
    return sequential(5).as_sampler()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sequential(-1), ValueError, "n must be an int of at least 0, got -1"),
        (lambda: sequential(2.0), TypeError, "n must be an int of at least 0, got 2.0 of type float"),
        (lambda: shuffled(2**62 + 1, seed=0), ValueError, f"n must be at most 2^62, got {2**62 + 1}"),
        (lambda: shuffled(5, seed=-3), ValueError, "seed must be an int of at least 0, got -3"),
        (lambda: shuffled(5, seed=None), TypeError, "seed must be an int of at least 0, got None of type NoneType"),
        (lambda: shuffled(5, 0)(-1, 0), ValueError, "epoch must be an int of at least 0, got -1"),
        (lambda: shuffled(5, 0)(0.0, 0), TypeError, "epoch must be an int of at least 0, got 0.0 of type float"),
        (lambda: shuffled(5, 0)(0, 5), ValueError, "positions must be from 0 to 4, got 5 in shuffled(5, seed=0)"),
        (lambda: shuffled(5, 0)(0, -1), ValueError, "positions must be from 0 to 4, got -1"),
        (lambda: sequential(0)(0, 0), ValueError, "positions must be none, for the order is empty, got 0"),
        (
            lambda: sequential(5)(0, torch.tensor([0, 7])),
            ValueError,
            "positions must be from 0 to 4, got 7 in sequential(5)",
        ),
        (lambda: sequential(5)(0, torch.tensor([-2, 1])), ValueError, "positions must be from 0 to 4, got -2"),
        (lambda: sequential(5)(0, [0, 1]), TypeError, "positions must be an int or an int64 tensor, got [0, 1]"),
        (lambda: sequential(5)(0, True), TypeError, "positions must be an int or an int64 tensor, got True"),
        (lambda: sequential(5)(0, torch.tensor([0.0])), TypeError, "got a tensor of torch.float32"),
        (lambda: sequential(5).weight(0, 5), ValueError, "positions must be from 0 to 4, got 5 in sequential(5)"),
        (lambda: sequential(5).weight(-1, 0), ValueError, "epoch must be an int of at least 0, got -1"),
        # subset
        (lambda: subset([0, -4, 2]), ValueError, "indices must be at least 0, got -4 at place 1"),
        (lambda: subset([0.5]), TypeError, "indices must be integers, got torch.float64"),
        (lambda: subset([True]), TypeError, "indices must be integers, got torch.bool"),
        (lambda: subset([[1, 2]]), ValueError, "indices must have one dimension, got shape (1, 2)"),
        (lambda: subset("012"), TypeError, "indices must be integers, got '012' of type str"),
        (lambda: subset([1], seed=-1), ValueError, "seed must be an int of at least 0, got -1"),
        # with_replacement
        (lambda: with_replacement(0, 1, seed=0), ValueError, "n must be at least 1 to draw from, got 0 for 1 draws"),
        (lambda: with_replacement(-1, 1, seed=0), ValueError, "n must be an int of at least 0, got -1"),
        (lambda: with_replacement(3, -1, seed=0), ValueError, "num_samples must be an int of at least 0, got -1"),
        (lambda: with_replacement(3, 2**62 + 1, seed=0), ValueError, "num_samples must be at most 2^62"),
        # weighted
        (
            lambda: weighted([1, -2.5], 1, seed=0),
            ValueError,
            "weights must be finite and at least 0, got -2.5 at place 1",
        ),
        (
            lambda: weighted([math.nan], 1, seed=0),
            ValueError,
            "weights must be finite and at least 0, got nan at place 0",
        ),
        (lambda: weighted([1, math.inf], 1, seed=0), ValueError, "at least 0, got inf at place 1"),
        (lambda: weighted([0.0, 0.0], 1, seed=0), ValueError, "weights must hold at least one above 0, got 2 of which"),
        (lambda: weighted([], 1, seed=0), ValueError, "weights must hold at least one above 0, got 0 of which none is"),
        (lambda: weighted([1j], 1, seed=0), TypeError, "weights must be real numbers, got torch.complex64"),
        (lambda: weighted(["a"], 1, seed=0), TypeError, "weights must be real numbers, got ['a'] of type list"),
        (
            lambda: weighted(torch.ones(2, 2), 1, seed=0),
            ValueError,
            "weights must have one dimension, got shape (2, 2)",
        ),
        (lambda: weighted([1], -1, seed=0), ValueError, "num_samples must be an int of at least 0, got -1"),
        (lambda: weighted([1], 2.0, seed=0), TypeError, "num_samples must be an int of at least 0, got 2.0"),
        (lambda: weighted([1], 2, seed="a"), TypeError, "seed must be an int of at least 0, got 'a'"),
        (
            lambda: weighted([1, 0, 2], 3, seed=0, replacement=False),
            ValueError,
            "num_samples must be at most 2, the number of weights above 0, without replacement, got 3",
        ),
        (
            lambda: weighted([1e-300, 1.0], 2, seed=0, replacement=False),
            ValueError,
            "weights must be within a factor of 1e290 without replacement, got 1e-300 and 1.0",
        ),
        # grouped, stratified
        (lambda: grouped([1, math.nan], 2, seed=0), ValueError, "lengths must be finite, got nan at place 1"),
        (lambda: grouped(["a"], 2, seed=0), TypeError, "lengths must be real numbers, got ['a'] of type list"),
        (lambda: grouped([1], 0, seed=0), ValueError, "batch_size must be an int of at least 1, got 0"),
        (lambda: grouped([1], 1, seed=0, bucket=0), ValueError, "bucket must be an int of at least 1, got 0"),
        (lambda: stratified([0.5], seed=0), TypeError, "labels must be integers, got torch.float64"),
        (lambda: stratified([0], seed=-1), ValueError, "seed must be an int of at least 0, got -1"),
        # mixed
        (lambda: mixed({}, []), TypeError, "orders must be a dict of at least one order by name, got {}"),
        (lambda: mixed({"a": [1]}, [1]), TypeError, "orders['a'] must be an IndexOrder, got [1]"),
        (lambda: mixed({"a": sequential(0)}, [1]), ValueError, "orders['a'] must hold at least one position"),
        (lambda: mixed(TWO, [1]), ValueError, "weights must be 2, one for each order, got 1"),
        (lambda: mixed(TWO, {"a": 1, "c": 1}), ValueError, "weights must be of 'a', 'b', got some of 'a', 'c'"),
        (lambda: mixed(TWO, [1, 0]), ValueError, "weights['b'] must be an int, a Fraction or a float above 0, got 0"),
        (lambda: mixed(TWO, [1, math.nan]), ValueError, "weights['b'] must be an int, a Fraction or a float above 0"),
        (lambda: mixed(TWO, [1, "1"]), TypeError, "a Fraction or a float above 0, got '1' of type str"),
        (lambda: mixed(TWO, [1, math.pi]), ValueError, "that is a fraction with a denominator up to 1000000, got 3.14"),
        (lambda: mixed(TWO, [1, 2**31]), ValueError, "in the proportions of integers whose sum is below 2^31"),
        (lambda: mixed(TWO, [1, 1], length=-1), ValueError, "length must be an int of at least 0, got -1"),
        (lambda: mixed(TWO, [1, 1], sizes={"b": 2}), ValueError, "sizes['b'] must be an int of at least 3, got 2"),
        (lambda: mixed(TWO, [1, 1], sizes={"c": 2}), ValueError, "sizes must be of 'a', 'b', got one of 'c'"),
        (lambda: mixed(TWO, [1, 1])(2**62, 0), ValueError, f"epoch must be at most {2**62 // 6 - 1} in mixed("),
        # algebra
        (lambda: sequential(5).shard(2, 2), ValueError, "rank must be below world, which is 2, got 2"),
        (lambda: sequential(5).shard(-1, 2), ValueError, "rank must be an int of at least 0, got -1"),
        (lambda: sequential(5).shard(0, 0), ValueError, "world must be an int of at least 1, got 0"),
        (lambda: sequential(5).shard(0, 1.0), TypeError, "world must be an int of at least 1, got 1.0"),
        (
            lambda: sequential(5).shard(0, 2, uneven="pad"),
            ValueError,
            "uneven must be one of 'weightless', 'repeat', 'drop', 'ragged', got 'pad'",
        ),
        (lambda: sequential(5).batched(0), ValueError, "size must be an int of at least 1, got 0"),
        (
            lambda: sequential(5).batched(2)(0, 3),
            ValueError,
            "positions must be from 0 to 2, got 3 in sequential(5).batched(2)",
        ),
        (lambda: sequential(5).skip(6), ValueError, "count must be at most 5, the length of sequential(5), got 6"),
        (lambda: sequential(5).take(-1), ValueError, "count must be an int of at least 0, got -1"),
        (lambda: sequential(5).repeat(0), ValueError, "epochs must be an int of at least 1, got 0"),
        (lambda: sequential(2**61).repeat(3), ValueError, "epochs must make an order of at most 2^62 positions, got 3"),
        # as_sampler
        (
            lambda: sequential(5).shard(0, 2).as_sampler(),
            ValueError,
            "a sampler gives indices without their weights, and",
        ),
        (lambda: sampler().load_state_dict([0, 1]), TypeError, "state must be the dict that state_dict() returned"),
        (lambda: sampler().load_state_dict({"epoch": 0}), ValueError, "got one without ['position']"),
        (lambda: sampler().load_state_dict({"epoch": -1, "position": 0}), ValueError, "state['epoch'] must be an int"),
        (lambda: sampler().load_state_dict({"epoch": 0, "position": 6}), ValueError, "at most 5, got 6"),
        (
            lambda: sampler().state_dict(seen=1),
            ValueError,
            "seen must be at most 0, which this pass has handed out, got 1",
        ),
        (lambda: sampler().set_epoch(-1), ValueError, "epoch must be an int of at least 0, got -1"),
    ],
)
def test_bad_arguments(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
