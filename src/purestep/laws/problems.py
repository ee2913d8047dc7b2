"""Small problems: a model, a batch that it takes, an objective, and a state in the middle of training.

Each is made from a few values, in float64 by default, and by nothing else: no global generator is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from purestep import _tree
from purestep.functional import Trainable, trainable_names
from purestep.objectives import Loss, Mean, mean
from purestep.state import TrainState, init_state
from purestep.updates import Optimizer, UpdateContext

CLASSES = 3
# What the batches of problems hold: (batch["inputs"][name]: its shape without the batch dimension).
_IMAGE, _TABLE, _TOKENS, _VOCABULARY = (1, 4, 4), (5,), (4,), 7


class Perceptron(nn.Module):
    """Two layers on ``inputs["table"]``: (batch, 5) to logits (batch, classes); with a norm and a dropout, if
    asked."""

    def __init__(self, *, norm: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            # A bias before a norm has a gradient of zero, whose rounding Adam would blow up.
            nn.Linear(*_TABLE, 6, bias=not norm),
            nn.BatchNorm1d(6) if norm else nn.Identity(),
            nn.Tanh(),
            _dropout(dropout),
            nn.Linear(6, CLASSES),
        )

    def forward(self, inputs: TensorDictBase) -> Tensor:
        return self.layers(inputs["table"])


class Convolution(nn.Module):
    """A convolution and a head on ``inputs["image"]``: (batch, 1, 4, 4) to logits; with a norm and a
    dropout, if asked."""

    def __init__(self, *, norm: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(_IMAGE[0], 2, 3, bias=not norm)
        self.norm = nn.BatchNorm2d(2) if norm else nn.Identity()
        self.dropout = _dropout(dropout)
        self.head = nn.Linear(2 * 2 * 2, CLASSES)

    def forward(self, inputs: TensorDictBase) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.norm(self.convolution(inputs["image"])))).flatten(1))


class TwoInputs(nn.Module):
    """An image and a table, joined before the head: to logits (batch, classes)."""

    def __init__(self, *, norm: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.image = Convolution(norm=norm, dropout=dropout)
        self.table = Perceptron(norm=norm, dropout=dropout)

    def forward(self, inputs: TensorDictBase) -> Tensor:
        return self.image(inputs) + self.table(inputs)


class TiedTokens(nn.Module):
    """A next-token model whose output weights are its embedding: ``inputs["tokens"]`` (batch, length) to logits of
    the last token's successor (batch, classes)."""

    def __init__(self, *, norm: bool = False, dropout: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, 4)
        self.norm = nn.BatchNorm1d(4) if norm else nn.LayerNorm(4)
        self.dropout = _dropout(dropout)
        self.output = nn.Linear(4, _VOCABULARY, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, inputs: TensorDictBase) -> Tensor:
        hidden = self.norm(torch.tanh(self.embedding(inputs["tokens"]).mean(1)))
        return self.output(self.dropout(hidden))[:, :CLASSES]


def _dropout(on: bool) -> nn.Module:
    return nn.Dropout(0.5) if on else nn.Identity()


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
        dropout: whether it holds dropouts, of half of the entries.
        dtype: of parameters and inputs.
        model, objective, batch: what came out.
    """

    architecture: str
    objective_name: str
    length: int
    seed: int = 0
    norm: bool = False
    dropout: bool = False
    dtype: torch.dtype = torch.float64
    model: nn.Module = field(init=False, repr=False, compare=False)
    batch: TensorDict = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout, "dtype": self.dtype}
        object.__setattr__(self, "model", make_model(self.architecture, self.seed, **options))
        object.__setattr__(self, "batch", make_batch(self.length, self.seed, dtype=self.dtype))

    @property
    def objective(self) -> Callable[..., Any]:
        return OBJECTIVES[self.objective_name]


def make_model(
    architecture: str,
    seed: int,
    *,
    norm: bool = False,
    dropout: bool = False,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """Return the model of a name in ``ARCHITECTURES``, its values drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of accelerators too
        return ARCHITECTURES[architecture](norm=norm, dropout=dropout).to(dtype)


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


def make_train_state(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    seed: int,
    updates: int = 0,
    skipped: int = 0,
    trainable: Trainable = None,
) -> TrainState:
    """Return a state in the middle of training: after some updates with gradients that are noise.

    Args:
        model, optimizer, trainable: as in :func:`purestep.init_state`.
        seed: of the key, of the gradients and of the running statistics.
        updates: how many were applied; ``state.step``. Running statistics of norms have moved where it is not 0.
        skipped: how many attempts were passed over besides; ``state.calls`` is the sum.
    """
    state = init_state(model, optimizer, seed=seed, trainable=trainable)
    generator = torch.Generator().manual_seed(seed)

    def noise(leaf: Tensor) -> Tensor:
        return 0.1 * torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device, leaf.dtype)

    params, opt_state = _tree.select(state.params, trainable_names(model, trainable)), state.opt_state
    loss = torch.ones((), dtype=torch.float64)
    for step in range(updates):
        count = torch.tensor(step)
        grads = _tree.map_leaves(noise, params)
        params, opt_state = optimizer.update(grads, opt_state, params, UpdateContext(count, state.key, loss, count))
    buffers = {name: _moved(name, leaf, updates, noise) for name, leaf in _tree.as_dict(state.buffers).items()}
    aux = state.aux.clone()
    aux["skipped"] += skipped
    return state.replace(
        params=_tree.overlay(state.params, params),
        buffers=TensorDict(buffers, batch_size=[]),
        opt_state=opt_state,
        step=state.step + updates,
        calls=state.calls + updates + skipped,
        aux=aux,
    )


def _moved(name: str, buffer: Tensor, updates: int, noise: Callable[[Tensor], Tensor]) -> Tensor:
    """Running statistics of torch's norms as they may be after some updates, and any other buffer as it is."""
    kind = name.rpartition(".")[2]
    if not updates or kind not in ("running_mean", "running_var", "num_batches_tracked"):
        return buffer
    return buffer + updates if kind == "num_batches_tracked" else buffer + noise(buffer).abs()
