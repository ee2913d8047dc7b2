"""Law 2 of what counts in an objective: weights that are free of parameters, padding that is not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from purestep import _batches, _tree
from purestep.laws._compare import LawViolation, apart, norm
from purestep.laws._probe import Probe

WEIGHTS = "law 2 (weights are free of parameters)"
PADDING = "law 2 (what does not count is not read)"


def weight_gradients(probe: Probe) -> Iterator[LawViolation]:
    """Find weights that carry a gradient: with gradients, an objective refuses what it took without."""
    try:
        probe.gradients(probe.examples(range(probe.length)))
    except ValueError as error:
        if "gradient" not in str(error):
            raise
        yield LawViolation(f"{WEIGHTS}: {error}", by="a gradient")


def moving_weights(probe: Probe) -> Iterator[LawViolation]:
    """Find weights that change with the parameters."""
    generator = torch.Generator().manual_seed(0)

    def moved(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf.device, leaf.dtype)
        return leaf + 0.1 * (leaf.abs().mean() + 0.1) * noise

    rows = range(probe.length)
    params = _tree.map_leaves(moved, probe.state.params)
    after = probe.terms(rows, state=probe.state.replace(params=params))
    for position, (was, now) in enumerate(zip(probe.terms(rows), after, strict=True)):
        if not probe.near(abs(was.weight - now.weight), abs(was.weight)):
            yield LawViolation(
                f"{WEIGHTS}: the weight of term {position} is {was.weight:.6g}, and {now.weight:.6g} where the "
                "parameters are changed by a tenth: a weight only counts examples, so take it from the batch, and "
                "multiply the values by what the model says",
                by=f"{abs(was.weight - now.weight) / abs(was.weight):.2g} of the weight",
                on=f"term {position}",
            )


def overwritten(batch: Any, where: Tensor) -> Any:
    """Return a copy of the batch with other numbers in its floating entries where nothing counts."""
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        raise TypeError(f"where must be a bool tensor, got {getattr(where, 'dtype', type(where).__name__)}")

    def covers(leaf: Tensor) -> bool:
        itself = leaf.shape == where.shape and torch.equal(leaf != 0, where)
        return leaf.is_floating_point() and leaf.shape[: where.dim()] == where.shape and not itself

    covered = [path for path, leaf in _batches.tensors_of(batch) if covers(leaf)]
    if not where.dim() or not covered or bool(where.all()):
        raise ValueError(
            f"where must be false somewhere, and its dimensions the first ones of a floating entry of batch, got shape "
            f"{tuple(where.shape)} with {int((~where).sum())} entries that are false"
        )

    def overwrite(leaf: Tensor) -> Tensor:
        if not covers(leaf):
            return leaf.clone()
        return torch.where(where.reshape(where.shape + (1,) * (leaf.dim() - where.dim())), leaf, 7.0 - leaf)

    return pytree.tree_map_only(Tensor, overwrite, batch)


def read_padding(probe: Probe, other: Any) -> Iterator[LawViolation]:
    """Find terms that are not the same on a batch that differs only in what does not count."""
    whole = probe.examples(range(probe.length))
    gradients = zip(probe.gradients(other), probe.gradients(whole), strict=True)
    terms = zip(probe.terms_of(other), probe.terms_of(whole), gradients, strict=True)
    for term, (now, was, (gradient, right)) in enumerate(terms):
        errors = {
            "total": (abs(now.total - was.total), abs(was.total)),
            "weight": (abs(now.weight - was.weight), abs(was.weight)),
            "gradient": (apart(gradient, right), norm(right)),
        }
        for name, (error, scale) in errors.items():
            if not probe.near(error, scale):
                says = (
                    f"{PADDING}: with other numbers where `where` is false, the {name} of term {term} changes by "
                    f"{error:.6g} ({scale:.6g} before): leave it out with ps.mean(values, where=...), and mask it in "
                    "the model where entries meet (attention, a mean over tokens)"
                )
                yield LawViolation(says, by=f"{error / (scale or 1.0):.2g} of the {name}", on=f"term {term}")
                break
