"""Laws of an objective: a sum over examples, whose parts add up to the whole."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from purestep import _batches, _tree
from purestep._forward import Objective
from purestep.functional import Trainable
from purestep.laws._compare import LawViolation, named_leaves, norm
from purestep.laws._coupling import coupled
from purestep.laws._probe import Probe, Split, Term, plus, spread
from purestep.laws._world import Untouched, guarded_world, module_leaves
from purestep.random import fold_in
from purestep.state import TrainState

_PURE = "law 1 (pure)"
_SUM = "law 2 (a sum over examples)"
_WEIGHTS = "law 2 (weights are free of parameters)"
_PADDING = "law 2 (what does not count is not read)"
TRIES = 8


def check_objective(
    objective: Objective,
    model: nn.Module,
    batch: Any,
    *,
    state: TrainState | None = None,
    trainable: Trainable = None,
    where: Tensor | None = None,
    tolerance: float = 1e-12,
) -> None:
    """Assert that an objective is what accumulation takes it for, and say what it is instead.

    With ``T(B)`` and ``W(B)`` the total and the weight of a term over examples ``B``, for each term of the loss:

    - **a sum over examples**: ``T(B) = Σ T(part)`` and ``W(B) = Σ W(part)`` over any partition of ``B``, or neither
      depends on the part at all (:func:`purestep.once`); the same of T's gradient. An empty part adds nothing, where
      the objective takes one. The smallest part of the batch that shows a difference is named.
    - **examples are not coupled**: with A and B two halves of the batch and A', B' other examples in their places,
      ``T(AB) - T(A'B) = T(AB') - T(A'B')``, and the same of W: what one example adds does not depend on the others.
      Batch statistics, contrastive losses, load balances and weights that add up to one fail; a mean of means does not.
    - **weights are free of parameters**: W has no gradient and does not change with the parameters.
    - **what does not count is not read**: with other numbers where ``where`` is false, T, W and the gradient stay.
      Only with ``where=``. (Not with NaN: a layer's weights get ``0 · NaN`` from an input that is, whatever the loss.)
    - **pure**: the batch, the module, the state and the global state are untouched, and a second call gives the same.

    Random masks are drawn for an example's place in the whole batch, so dropout keeps these laws. It takes some thirty
    forwards and a few backward passes, more where something is found. What the metrics are is not looked at:
    :func:`check_split_invariant` compares those.

    Args:
        objective, model, trainable: as in :func:`purestep.train_step`. ``model.double()`` and a float64 batch
            show most.
        batch: at least two examples, better six or more, that differ from each other, with padding where it may occur.
        state: where to evaluate; by default the model's own values.
        where: bool; its dimensions are the first ones of the batch's entries, ``(examples,)`` or
            ``(examples, tokens)``. True for what counts. Floating entries with those first dimensions, the mask
            itself excepted, are overwritten where it is false; integers are left, since not every one is valid.
        tolerance: relative to the larger of the totals compared, for float64; other dtypes are allowed as many of
            their own roundings.

    Raises:
        LawViolation: all that was found, a line each: the law, the term, on which examples, by how much, and what to do
            about it.
        ValueError: fewer than two examples; a term that is not finite or of weight zero on the whole batch, which shows
            nothing; ``where`` that covers no floating entry or leaves nothing out.
        TypeError: ``where`` that is no bool tensor. What the objective raises on the whole batch is raised as it is.
    """
    probe = Probe(objective, model, batch, state, trainable, tolerance)
    other = None if where is None else _overwritten(batch, where)
    findings = list(_impure(probe))
    # What an objective does to the global state is told by now, and put back.
    with contextlib.suppress(LawViolation), guarded_world(_PURE, "the objective"):
        findings += _unequal(probe, other) if not any(_AGAIN in finding for finding in findings) else [_NOT_LOOKED_AT]
    if findings:
        name = getattr(objective, "__name__", repr(objective))
        raise LawViolation(f"the objective {name} breaks what accumulation needs:\n- " + "\n- ".join(findings))


def _unequal(probe: Probe, other: Any) -> list[str]:
    """Find what breaks law 2; ``other`` is a batch that is the same in all that counts, or ``None``."""
    probe.check_informative()
    couplings = coupled(probe)
    sums = [_BARE] if probe.is_bare else list(_cut(probe, couplings))
    refused = list(_weight_gradients(probe))
    if not (sums or refused):
        sums = list(_cut_gradients(probe))
    found = [*sums, *couplings.values(), *(refused or _weighted(probe))]
    return found if other is None or refused else [*found, *_read_padding(probe, other)]


_BARE = (
    f"{_SUM}: the loss is a bare tensor, whose denominator nobody knows, so that parts of it cannot be pooled: return "
    'ps.mean(values) of the unreduced values, for instance of F.cross_entropy(..., reduction="none")'
)
_AGAIN = "at a second call on the same arguments"
_NOT_LOOKED_AT = "(the other laws were not looked at: nothing can be compared with what changes by itself)"


def _impure(probe: Probe) -> Iterator[str]:
    """Find what a call changes, and whether a second one gives the same bits."""
    batch = probe.examples(range(probe.length))
    things: list[Callable[[], dict[str, Any]]] = [
        lambda: named_leaves(batch, "batch"),
        lambda: named_leaves(probe.state, "state"),
        lambda: module_leaves(probe.model),
    ]
    watched = [Untouched(_PURE, read) for read in things]
    results: list[list[Term]] = []

    def call(seed: int | None, given: Any) -> None:
        with guarded_world(_PURE, "the objective", seed=seed):
            results.append(probe.terms_of(given))

    calls = [
        lambda: call(None, batch),
        *(lambda part=part: part.check("the objective") for part in watched),
        lambda: call(20_251, probe.examples(range(probe.length))),
    ]
    told: dict[str, None] = {}
    for each in calls:
        try:
            each()
        except LawViolation as violation:
            told[str(violation)] = None
    yield from told
    for position, (first, second) in enumerate(zip(*results, strict=True)):
        if repr(first) != repr(second):  # NaN is equal to NaN here
            yield (
                f"{_PURE}: term {position} has total {second.total!r} and weight {second.weight!r} {_AGAIN}, and "
                f"{first.total!r} and {first.weight!r} at the first: what it draws belongs to context.key, and what it "
                "remembers into the batch"
            )


def _cut(probe: Probe, couplings: Collection[int]) -> Iterator[str]:
    """Find terms that do not add up over parts, and what cannot be cut at all."""
    n = probe.length
    third = n // 3
    cuts = dict.fromkeys([(n // 2, n - n // 2), (1, n - 1), (n - 1, 1), (third, n - third - third // 2, third // 2)])
    broken: dict[int, Split] = {}
    failure = ""
    for lengths in cuts:
        if 0 in lengths:
            continue
        try:
            split = probe.split(0, lengths)
        except Exception as error:
            failure = failure or (
                f"{_SUM}: it fails with {type(error).__name__} ({error}) on the examples cut into {plus(lengths)}, and "
                "a micro-batch can be as short"
            )
            continue
        counts = {len(terms) for terms in (split.whole, *split.parts)}
        if len(counts) > 1:
            yield f"{_SUM}: the loss has {' or '.join(map(str, sorted(counts)))} terms, depending on the examples"
            return
        for term in range(len(split.whole)):
            if not split.adds_up(term, probe):
                broken.setdefault(term, split)
    if failure:
        yield failure
    for term, split in broken.items():
        yield _not_a_sum(term, _smallest(probe, term, split), term in couplings, probe)
    if not broken and not failure:
        yield from _empty(probe)


def _smallest(probe: Probe, term: int, found: Split) -> Split:
    """Return the first cut of two, three or four neighbours that a term does not add up over, or what was found."""
    for lengths in ((1, 1), (1, 2), (2, 2)):
        for start in spread(range(probe.length - sum(lengths) + 1)):
            try:
                split = probe.split(start, lengths)
            except Exception:  # such as a BatchNorm's, which refuses one example
                continue
            if not split.adds_up(term, probe):
                return split
    return found


def _not_a_sum(term: int, split: Split, mixes: bool, probe: Probe) -> str:
    whole, parts = split.of(term)
    total, weight = (sum(values) for values in zip(*parts, strict=True))
    scale = max(abs(whole.total), *(abs(part.total) for part in parts))
    error = abs(total - whole.total)
    off = "" if probe.near(error, scale) else f" (off by {error / (scale or 1.0):.2g} of the largest)"
    advice = "return ps.mean(values, where=..., weight=...) of the unreduced values"
    if mixes:
        advice = "see the coupling below"
    elif all(part.weight == whole.weight for part in parts):
        advice = (
            "its weight is the same whatever the part, as if its values were reduced before: return ps.mean(values) of "
            "the unreduced values (an amount that is the same in every part is ps.once(amount))"
        )
    elif _random(probe):
        advice += (
            "; and what it draws, unless by a dropout, belongs to a place in the micro-batch: put the noise, or a "
            "number of each example to draw it by, into the batch"
        )
    return (
        f"{_SUM}: term {term} {split}: its total adds up to {total:.6g} and is {whole.total:.6g} of them all{off}, its "
        f"weight adds up to {weight:.6g} and is {whole.weight:.6g}: {advice}"
    )


def _random(probe: Probe) -> bool:
    """Whether another random key gives other values."""
    rows, state = range(probe.length), probe.state
    return probe.terms(rows) != probe.terms(rows, state=state.replace(key=fold_in(state.key, 1)))


def _empty(probe: Probe) -> Iterator[str]:
    """Find terms to which no examples add something; an objective that refuses none is let be."""
    try:
        split = probe.split(0, (probe.length, 0))
    except Exception:
        return
    for term in range(len(split.whole)):
        nothing = split.parts[1][term]
        if not split.adds_up(term, probe):
            yield (
                f"{_SUM}: term {term} of an empty part has total {nothing.total} and weight {nothing.weight}, where it "
                "has nothing to add: ps.mean(values) of no values is 0 over 0"
            )


def _weight_gradients(probe: Probe) -> Iterator[str]:
    """Find weights that carry a gradient: with gradients, an objective refuses what it took without."""
    try:
        probe.gradients(probe.examples(range(probe.length)))
    except ValueError as error:
        if "gradient" not in str(error):
            raise
        yield f"{_WEIGHTS}: {error}"


def _cut_gradients(probe: Probe) -> Iterator[str]:
    """Find terms whose gradients do not add up, though their totals do."""
    n = probe.length
    whole = probe.gradients(probe.examples(range(n)))
    parts = [probe.gradients(probe.examples(range(a, b)), first=a) for a, b in ((0, n // 2), (n // 2, n))]
    terms = probe.terms(range(n))
    for term, right in enumerate(whole):
        one, other = (part[term] for part in parts)
        scale = max(norm(right), norm(one), norm(other), abs(terms[term].total))
        apart = _apart({name: one[name] + other[name] for name in right}, right)
        if not (probe.near(apart, scale) or probe.near(max(_apart(one, right), _apart(other, right)), scale)):
            yield (
                f"{_SUM}: the total of term {term} adds up over {plus((n // 2, n - n // 2))} examples, and its "
                f"gradient does not: off by {apart / scale:.2g} of its norm, so something that is detached, or has a "
                "gradient of its own, couples the examples"
            )


def _weighted(probe: Probe) -> Iterator[str]:
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
            yield (
                f"{_WEIGHTS}: the weight of term {position} is {was.weight:.6g}, and {now.weight:.6g} where the "
                "parameters are changed by a tenth: a weight only counts examples, so take it from the batch, and "
                "multiply the values by what the model says"
            )


def _overwritten(batch: Any, where: Tensor) -> Any:
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


def _read_padding(probe: Probe, other: Any) -> Iterator[str]:
    """Find terms that are not the same on a batch that differs only in what does not count."""
    whole = probe.examples(range(probe.length))
    gradients = zip(probe.gradients(other), probe.gradients(whole), strict=True)
    terms = zip(probe.terms_of(other), probe.terms_of(whole), gradients, strict=True)
    for term, (now, was, (gradient, right)) in enumerate(terms):
        errors = {
            "total": (abs(now.total - was.total), abs(was.total)),
            "weight": (abs(now.weight - was.weight), abs(was.weight)),
            "gradient": (_apart(gradient, right), norm(right)),
        }
        for name, (error, scale) in errors.items():
            if not probe.near(error, scale):
                yield (
                    f"{_PADDING}: with other numbers where `where` is false, the {name} of term {term} changes by "
                    f"{error:.6g} ({scale:.6g} before): leave it out with ps.mean(values, where=...), and mask it in "
                    "the model where entries meet (attention, a mean over tokens)"
                )
                break


def _apart(got: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The norm of a difference; NaN counts."""
    return math.sqrt(sum(float((got[name] - leaf).double().square().sum()) for name, leaf in right.items()))
