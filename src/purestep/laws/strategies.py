"""Hypothesis strategies for training: what a step is made of, small, in float64 by default.

What is drawn prints as the call that makes it again, and shrinks to something small::

    @given(problems(), st.data())
    def test_split(problem, data):
        parts = data.draw(partitions(problem.length))
        check_split_invariant(problem.model, problem.objective, problem.batch, parts=[parts])
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import torch
from tensordict import TensorDict
from torch import nn

from purestep import _checks, transforms
from purestep.data.orders import (
    IndexOrder,
    grouped,
    mixed,
    sequential,
    shuffled,
    stratified,
    subset,
    weighted,
    with_replacement,
)
from purestep.functional import Trainable
from purestep.laws.problems import ARCHITECTURES, OBJECTIVES, Problem, make_batch, make_model, make_train_state
from purestep.optimizers import adam, adamw, lamb, nadam, rmsprop, sgd
from purestep.schedules import cosine
from purestep.state import TrainState, init_state
from purestep.updates import GradientTransformation, Optimizer, chain

_seeds = st.integers(0, 2**16)


def models(
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    norm: bool | None = False,
    dropout: bool | None = False,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[nn.Module]:
    """Draw small modules that take ``batch["inputs"]`` of :func:`batches`: a perceptron, a convolution, two inputs,
    and tied weights.

    Args:
        architectures: names in ``ARCHITECTURES``.
        norm: with a BatchNorm, without, or (``None``) either.
        dropout: with dropouts of half of the entries, without, or (``None``) either.
        dtype: of the parameters.
    """
    return st.builds(
        make_model,
        st.sampled_from(_known("architectures", architectures, ARCHITECTURES)),
        _seeds,
        norm=_either(norm),
        dropout=_either(dropout),
        dtype=st.just(dtype),
    )


def batches(
    *, min_length: int = 2, max_length: int = 7, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[TensorDict]:
    """Draw batches as :func:`make_batch` makes them, of ``min_length`` to ``max_length`` examples."""
    return st.builds(make_batch, _lengths(min_length, max_length), _seeds, dtype=st.just(dtype))


def objectives(*, names: Sequence[str] = tuple(OBJECTIVES)) -> st.SearchStrategy[Callable[..., Any]]:
    """Draw objectives ``(model, batch) -> loss`` on such batches: of one term, of two, masked, and weighted."""
    return st.sampled_from([OBJECTIVES[name] for name in _known("names", names, OBJECTIVES)])


def problems(
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    names: Sequence[str] = tuple(OBJECTIVES),
    min_length: int = 2,
    max_length: int = 7,
    norm: bool | None = False,
    dropout: bool | None = False,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Problem]:
    """Draw a model, a batch it takes, and an objective: see :class:`Problem`, and :func:`models` for the arguments."""
    return st.builds(
        Problem,
        st.sampled_from(_known("architectures", architectures, ARCHITECTURES)),
        st.sampled_from(_known("names", names, OBJECTIVES)),
        _lengths(min_length, max_length),
        _seeds,
        norm=_either(norm),
        dropout=_either(dropout),
        dtype=st.just(dtype),
    )


@st.composite
def partitions(draw: st.DrawFn, length: int, *, max_parts: int = 4, empty: bool = True) -> tuple[int, ...]:
    """Draw the lengths of consecutive parts that add up to ``length``: ragged, and with empty ones where ``empty``.

    Raises:
        ValueError, TypeError: ``length`` or ``max_parts`` below 1.
    """
    _checks.integer("length", length, minimum=1)
    _checks.integer("max_parts", max_parts, minimum=1)
    count = draw(st.integers(1, max_parts if empty else min(max_parts, length)))
    inner = st.integers(0, length) if empty else st.integers(1, length - 1)
    cuts = draw(st.lists(inner, min_size=count - 1, max_size=count - 1, unique=not empty)) if count > 1 else []
    bounds = [0, *sorted(cuts), length]
    return tuple(stop - start for start, stop in pairwise(bounds))


class _Word:
    """Prints as a word, in the place of a value that prints too long."""

    def __init__(self, word: str) -> None:
        self._word = word

    def __repr__(self) -> str:
        return self._word


def train_states(
    model: nn.Module, optimizer: Optimizer, *, max_updates: int = 3, trainable: Trainable = None
) -> st.SearchStrategy[TrainState]:
    """Draw states in the middle of training, as :func:`make_train_state` makes them: parameters, running statistics
    and the optimizer's state after up to ``max_updates`` updates, some attempts skipped, and any key.

    Raises:
        TypeError, ValueError: as :func:`purestep.init_state`; ``max_updates`` below 0.
    """
    _checks.integer("max_updates", max_updates, minimum=0)
    init_state(model, optimizer, seed=0, trainable=trainable)

    @functools.wraps(make_train_state)
    def make(*words: Any, **numbers: Any) -> TrainState:
        return make_train_state(model, optimizer, **numbers, trainable=trainable)

    return st.builds(
        make,
        st.just(_Word("model")),
        st.just(_Word("optimizer")),
        seed=_seeds,
        updates=st.integers(0, max_updates),
        skipped=st.integers(0, 2),
    )


_rates = st.sampled_from([0.1, 0.01]) | st.builds(cosine, st.just(0.1), st.just(40))
# A strategy for each by its name; our tests see to it that none is missing.
OPTIMIZERS: dict[str, st.SearchStrategy[Optimizer]] = {
    "sgd": st.builds(sgd, _rates, momentum=st.sampled_from([0.0, 0.9]), weight_decay=st.sampled_from([0.0, 0.1])),
    "adam": st.builds(adam, _rates, weight_decay=st.sampled_from([0.0, 0.1])),
    "adamw": st.builds(adamw, _rates, weight_decay=st.sampled_from([0.01, 0.1]), amsgrad=st.booleans()),
    "nadam": st.builds(nadam, _rates),
    "rmsprop": st.builds(rmsprop, _rates, centered=st.booleans(), eps=st.just(1e-3)),
    "lamb": st.builds(lamb, _rates),
}
_factors = st.sampled_from([0.3, 0.9])
TRANSFORMATIONS: dict[str, st.SearchStrategy[GradientTransformation]] = {
    "clip_by_global_norm": st.builds(transforms.clip_by_global_norm, st.sampled_from([0.5, 2.0])),
    "clip_by_norm": st.builds(transforms.clip_by_norm, st.sampled_from([0.3, 3.0])),
    "clip_by_value": st.builds(transforms.clip_by_value, st.sampled_from([0.3, 3.0])),
    "adaptive_clip": st.builds(transforms.adaptive_clip, st.sampled_from([0.02, 7.0])),
    "centralize": st.builds(transforms.centralize),
    "add_decayed_weights": st.builds(transforms.add_decayed_weights, st.sampled_from([0.01, 0.1])),
    "add_noise": st.builds(transforms.add_noise, st.sampled_from([0.01, 0.3])),
    "zero_nonfinite": st.builds(transforms.zero_nonfinite),
    "trace": st.builds(transforms.trace, _factors, nesterov=st.booleans()),
    "ema": st.builds(transforms.ema, _factors, debias=st.booleans()),
    "scale": st.builds(transforms.scale, st.sampled_from([-1.0, 0.5])),
    "scale_by_schedule": st.builds(transforms.scale_by_schedule, st.builds(cosine, st.just(0.7), st.just(40))),
    "scale_by_adam": st.builds(transforms.scale_by_adam, eps=st.sampled_from([1e-8, 1e-3])),
    "scale_by_rms": st.builds(transforms.scale_by_rms, decay=_factors),
    "scale_by_sign": st.builds(transforms.scale_by_sign),
    "scale_by_trust_ratio": st.builds(transforms.scale_by_trust_ratio, coefficient=_factors),
    "normalize": st.builds(transforms.normalize, per_leaf=st.booleans()),
}


def gradient_transformations(
    *, names: Sequence[str] = tuple(TRANSFORMATIONS), max_length: int = 2
) -> st.SearchStrategy[GradientTransformation]:
    """Draw gradient transformations, and chains of up to ``max_length`` of them.

    Raises:
        TypeError, ValueError: a name in ``names`` that no transformation has, ``max_length`` below 1.
    """
    one = st.one_of([TRANSFORMATIONS[name] for name in _known("names", names, TRANSFORMATIONS)])
    _checks.integer("max_length", max_length, minimum=1)
    chains = [st.builds(chain, *[one] * length) for length in range(2, max_length + 1)]
    return st.one_of(one, *chains)


def optimizers(
    *, names: Sequence[str] = tuple(OPTIMIZERS), transformed: bool | None = None
) -> st.SearchStrategy[Optimizer]:
    """Draw optimizers, their rates numbers or schedules.

    Args:
        names: names of optimizers that purestep exports.
        transformed: behind a gradient transformation, alone, or (``None``) either.

    Raises:
        ValueError: a name in ``names`` that no optimizer has.
    """
    one = st.one_of([OPTIMIZERS[name] for name in _known("names", names, OPTIMIZERS)])
    behind = st.builds(chain, gradient_transformations(max_length=1), one)
    return {True: behind, False: one, None: one | behind}[transformed]


def orders(*, max_length: int = 50) -> st.SearchStrategy[IndexOrder]:
    """Draw orders of 1 to ``max_length`` positions, of every kind, and what the algebra makes of them.

    Raises:
        TypeError, ValueError: ``max_length`` below 1.
    """
    _checks.integer("max_length", max_length, minimum=1)
    lengths, seeds = st.integers(1, max_length), st.integers(0, 99)
    few = st.integers(0, 5)
    vectors = st.lists(few, min_size=1, max_size=min(max_length, 20))
    weights = st.lists(st.integers(1, 5), min_size=1, max_size=min(max_length, 20))
    plain = st.builds(sequential, lengths) | st.builds(shuffled, lengths, seeds)
    kinds = st.one_of(
        plain,
        st.builds(subset, vectors, st.none() | seeds),
        st.builds(with_replacement, lengths, lengths, seeds),
        st.builds(weighted, weights, lengths, seeds),
        weights.flatmap(
            lambda drawn: st.builds(
                weighted, st.just(drawn), st.integers(1, len(drawn)), seeds, replacement=st.just(False)
            )
        ),
        st.builds(grouped, vectors, st.integers(1, 5), seeds, bucket=st.integers(1, 4)),
        st.builds(stratified, vectors, seeds),
        st.builds(
            mixed,
            st.fixed_dictionaries({"a": plain, "b": plain}),
            st.lists(st.integers(1, 5), min_size=2, max_size=2),
            length=lengths,
        ),
    )
    return kinds | kinds.flatmap(lambda order: _of_the_algebra(order, max_length))


def _of_the_algebra(order: IndexOrder, max_length: int) -> st.SearchStrategy[IndexOrder]:
    n = len(order)
    shards = st.integers(1, 4).flatmap(lambda world: st.builds(order.shard, st.integers(0, world - 1), st.just(world)))
    return st.one_of(
        st.builds(order.skip, st.integers(0, n - 1)),
        st.builds(order.take, st.integers(1, n)),
        st.builds(order.repeat, st.integers(1, max(1, max_length // n))),
        shards,
    )


def _known(argument: str, names: Sequence[str], known: Mapping[str, Any]) -> Sequence[str]:
    for name in names:
        if name not in known:
            near = _checks.near_misses(str(name), known)
            raise ValueError(f"{argument} must be names of {_checks.listed(known, 20)}, got {name!r}{near}")
    return names


def _lengths(smallest: int, largest: int) -> st.SearchStrategy[int]:
    _checks.integer("min_length", smallest, minimum=1)
    _checks.integer("max_length", largest, minimum=smallest)
    return st.integers(smallest, largest)


def _either(flag: bool | None) -> st.SearchStrategy[bool]:
    return st.booleans() if flag is None else st.just(flag)
