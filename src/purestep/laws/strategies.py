"""Hypothesis strategies for training: small models, batches, partitions and objectives, in float64 by default.

What is drawn is small and prints as the call that makes it again::

    @given(problems(), st.data())
    def test_split(problem, data):
        parts = data.draw(partitions(problem.length))
        check_split_invariant(problem.model, problem.objective, problem.batch, parts=[parts])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from purestep import _checks
from purestep.objectives import Loss, Mean, mean

CLASSES = 3
# What the batches of problems hold: (batch["inputs"][name]: its shape without the batch dimension).
_IMAGE, _TABLE, _TOKENS, _VOCABULARY = (1, 4, 4), (5,), (4,), 7


class Perceptron(nn.Module):
    """Two layers on ``inputs["table"]``: (batch, 5) to logits (batch, classes); a norm between where asked."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            # A bias before a norm has a gradient of zero, whose rounding Adam would blow up.
            nn.Linear(*_TABLE, 6, bias=not norm),
            nn.BatchNorm1d(6) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Linear(6, CLASSES),
        )

    def forward(self, inputs: TensorDictBase) -> Tensor:
        return self.layers(inputs["table"])


class Convolution(nn.Module):
    """A convolution and a head on ``inputs["image"]``: (batch, 1, 4, 4) to logits; a norm between where asked."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(_IMAGE[0], 2, 3, bias=not norm)
        self.norm = nn.BatchNorm2d(2) if norm else nn.Identity()
        self.head = nn.Linear(2 * 2 * 2, CLASSES)

    def forward(self, inputs: TensorDictBase) -> Tensor:
        return self.head(torch.tanh(self.norm(self.convolution(inputs["image"]))).flatten(1))


class TwoInputs(nn.Module):
    """An image and a table, joined before the head: to logits (batch, classes)."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.image = Convolution(norm=norm)
        self.table = Perceptron(norm=norm)

    def forward(self, inputs: TensorDictBase) -> Tensor:
        return self.image(inputs) + self.table(inputs)


class TiedTokens(nn.Module):
    """A next-token model whose output weights are its embedding: ``inputs["tokens"]`` (batch, length) to logits of
    the last token's successor (batch, classes)."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, 4)
        self.norm = nn.BatchNorm1d(4) if norm else nn.LayerNorm(4)
        self.output = nn.Linear(4, _VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, inputs: TensorDictBase) -> Tensor:
        hidden = self.norm(torch.tanh(self.embedding(inputs["tokens"]).mean(1)))
        return self.output(hidden)[:, :CLASSES]


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "perceptron": Perceptron,
    "convolution": Convolution,
    "two inputs": TwoInputs,
    "tied tokens": TiedTokens,
}


def _cross_entropy(logits: Tensor, batch: Any) -> Tensor:
    return F.cross_entropy(logits, batch["label"], reduction="none")


def single_term(model: Any, batch: Any) -> tuple[Mean, dict[str, Mean]]:
    """The mean cross-entropy, and the accuracy."""
    logits = model(batch["inputs"])
    return mean(_cross_entropy(logits, batch)), {"accuracy": mean(logits.argmax(-1) == batch["label"])}


def two_terms(model: Any, batch: Any) -> tuple[Loss, dict[str, Mean]]:
    """The cross-entropy of the examples that count, and the mean square of all logits: two denominators."""
    logits = model(batch["inputs"])
    kept = mean(_cross_entropy(logits, batch), where=batch["where"])
    return kept + 0.1 * mean(logits.square()), {"kept": kept}


def masked(model: Any, batch: Any) -> Mean:
    """The mean cross-entropy of the examples that ``batch["where"]`` keeps."""
    return mean(_cross_entropy(model(batch["inputs"]), batch), where=batch["where"])


def weighted(model: Any, batch: Any) -> tuple[Mean, dict[str, Mean]]:
    """The mean cross-entropy weighted by ``batch["weight"]``, and the accuracy weighted alike."""
    logits = model(batch["inputs"])
    right = (logits.argmax(-1) == batch["label"]).to(logits.dtype)
    loss = mean(_cross_entropy(logits, batch), weight=batch["weight"])
    return loss, {"accuracy": mean(right, weight=batch["weight"])}


OBJECTIVES: dict[str, Callable[..., Any]] = {
    objective.__name__: objective for objective in (single_term, two_terms, masked, weighted)
}


@dataclass(frozen=True)
class Problem:
    """A model, a batch it takes and an objective, made from four values: the ``repr`` makes the same ones again.

    Attributes:
        architecture: a name in ``ARCHITECTURES``.
        objective_name: a name in ``OBJECTIVES``.
        length: examples in the batch.
        seed: of the model's values and the batch's.
        norm: whether the model holds a BatchNorm; in training mode such a model couples the examples of a batch.
        dtype: of parameters and inputs.
        model, objective, batch: what came out.
    """

    architecture: str
    objective_name: str
    length: int
    seed: int = 0
    norm: bool = False
    dtype: torch.dtype = torch.float64
    model: nn.Module = field(init=False, repr=False, compare=False)
    batch: TensorDict = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", make_model(self.architecture, self.seed, norm=self.norm, dtype=self.dtype))
        object.__setattr__(self, "batch", make_batch(self.length, self.seed, dtype=self.dtype))

    @property
    def objective(self) -> Callable[..., Any]:
        return OBJECTIVES[self.objective_name]


def make_model(architecture: str, seed: int, *, norm: bool = False, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return the model of a name in ``ARCHITECTURES``, its values drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](norm=norm).to(dtype)


def make_batch(length: int, seed: int, *, dtype: torch.dtype = torch.float64) -> TensorDict:
    """Return a batch that every architecture and objective here takes.

    Its entries, each with ``length`` examples: ``inputs`` (``image``, ``table``, ``tokens``), ``label``, ``where``
    (bool, the first is always true) and ``weight`` (from 0 to 2).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(length, *shape, generator=generator, dtype=torch.float64).to(dtype)

    inputs = {
        "image": normal(*_IMAGE),
        "table": normal(*_TABLE),
        "tokens": torch.randint(0, _VOCABULARY, (length, *_TOKENS), generator=generator),
    }
    where = torch.rand(length, generator=generator) < 0.6
    where[:1] = True
    weight = 2 * torch.rand(length, generator=generator, dtype=torch.float64).to(dtype)
    label = torch.randint(0, CLASSES, (length,), generator=generator)
    return TensorDict(
        {
            "inputs": TensorDict(inputs, batch_size=[length]),
            "label": label,
            "where": where,
            "weight": weight,
        },
        batch_size=[length],
    )


_seeds = st.integers(0, 2**16)


def models(
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    norm: bool | None = False,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[nn.Module]:
    """Draw small modules that take ``batch["inputs"]`` of :func:`batches`: a perceptron, a convolution, two inputs,
    and tied weights.

    Args:
        architectures: names in ``ARCHITECTURES``.
        norm: with a BatchNorm, without, or (``None``) either.
        dtype: of the parameters.
    """
    return st.builds(make_model, st.sampled_from(list(architectures)), _seeds, norm=_either(norm), dtype=st.just(dtype))


def batches(
    *, min_length: int = 2, max_length: int = 7, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[TensorDict]:
    """Draw batches as :func:`make_batch` makes them, of ``min_length`` to ``max_length`` examples."""
    return st.builds(make_batch, _lengths(min_length, max_length), _seeds, dtype=st.just(dtype))


def objectives(*, names: Sequence[str] = tuple(OBJECTIVES)) -> st.SearchStrategy[Callable[..., Any]]:
    """Draw objectives ``(model, batch) -> loss`` on such batches: of one term, of two, masked, and weighted."""
    return st.sampled_from([OBJECTIVES[name] for name in names])


def problems(
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    names: Sequence[str] = tuple(OBJECTIVES),
    min_length: int = 2,
    max_length: int = 7,
    norm: bool | None = False,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[Problem]:
    """Draw a model, a batch it takes, and an objective: see :class:`Problem`, and :func:`models` for the arguments."""
    return st.builds(
        Problem,
        st.sampled_from(list(architectures)),
        st.sampled_from(list(names)),
        _lengths(min_length, max_length),
        _seeds,
        norm=_either(norm),
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


def _lengths(smallest: int, largest: int) -> st.SearchStrategy[int]:
    _checks.integer("min_length", smallest, minimum=1)
    _checks.integer("max_length", largest, minimum=smallest)
    return st.integers(smallest, largest)


def _either(flag: bool | None) -> st.SearchStrategy[bool]:
    return st.booleans() if flag is None else st.just(flag)
