"""Laws of an objective: a sum over examples, whose parts add up to the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from purestep._forward import Objective
from purestep.functional import Trainable
from purestep.laws._compare import LawViolation, apart, named_leaves, norm
from purestep.laws._counting import PADDING, WEIGHTS, moving_weights, overwritten, read_padding, weight_gradients
from purestep.laws._coupling import COUPLED, coupled
from purestep.laws._probe import Probe, Split, Term, plus, spread
from purestep.laws._report import Finding, LawDoesNotApplyError, LawReport, broken, chosen_laws, name_of
from purestep.laws._world import Untouched, guarded_world, module_leaves
from purestep.random import fold_in
from purestep.state import TrainState

_PURE = "law 1 (pure)"
_SUM = "law 2 (a sum over examples)"
OBJECTIVE_LAWS = ("pure", "sum", "not coupled", "weights", "padding")
_LABELS = dict(zip(OBJECTIVE_LAWS, (_PURE, _SUM, COUPLED, WEIGHTS, PADDING), strict=True))


def check_objective(
    model: nn.Module,
    objective: Objective,
    batch: Any,
    *,
    state: TrainState | None = None,
    trainable: Trainable = None,
    where: Tensor | None = None,
    tolerance: float = 1e-12,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Assert that an objective is what accumulation takes it for, and say what it is instead.

    With ``T(B)`` and ``W(B)`` the total and the weight of a term over examples ``B``, for each term of the loss:

    - ``pure``: the batch, the module, the state and the global state are untouched, and a second call gives the same.
    - ``sum``: ``T(B) = Σ T(part)`` and ``W(B) = Σ W(part)`` over any partition of ``B``, or neither depends on the part
      at all (:func:`purestep.once`); the same of T's gradient. An empty part adds nothing, where the objective takes
      one. The smallest part of the batch that shows a difference is named.
    - ``not coupled``: with A and B two halves of the batch and A', B' other examples in their places,
      ``T(AB) - T(A'B) = T(AB') - T(A'B')``, and the same of W: what one example adds does not depend on the others.
      Batch statistics, contrastive losses, load balances and weights that add up to one fail; a mean of means does not.
    - ``weights``, free of parameters: W has no gradient and does not change with the parameters.
    - ``padding``, not read: with other numbers where ``where`` is false, T, W and the gradient stay. Only with
      ``where=``. (Not with NaN: a layer's weights get ``0 · NaN`` from an input that is, whatever the loss.)

    Random masks are drawn for an example's place in the whole batch, so dropout keeps these laws. It takes some thirty
    forwards and a few backward passes, more where something is found. What the metrics are is not looked at:
    :func:`check_split_invariant` compares those.

    Args:
        model, objective, trainable: as in :func:`purestep.train_step`. ``model.double()`` and a float64 batch
            show most.
        batch: at least two examples, better six or more, that differ from each other, with padding where it may occur.
        state: where to evaluate; by default the model's own values.
        where: bool; its dimensions are the first ones of the batch's entries, ``(examples,)`` or
            ``(examples, tokens)``. True for what counts. Floating entries with those first dimensions, the mask
            itself excepted, are overwritten where it is false; integers are left, since not every one is valid.
        tolerance: relative to the larger of the totals compared, for float64; other dtypes are allowed as many of
            their own roundings.
        laws, skip: names of the laws to look at, and of those to leave out.

    Returns:
        The report, where all laws hold.

    Raises:
        LawViolation: with the report, of all that was found: the law, the term, on which examples, by how much, and
            what to do about it.
        LawDoesNotApplyError: ``laws`` has ``"padding"``, and ``where`` is not given.
        ValueError: fewer than two examples; a term that is not finite or of weight zero on the whole batch, which shows
            nothing; ``where`` that covers no floating entry or leaves nothing out.
        TypeError: ``where`` that is no bool tensor. What the objective raises on the whole batch is raised as it is.
    """
    probe = Probe(model, objective, batch, state, trainable, tolerance)
    other = None if where is None else overwritten(batch, where)
    names = chosen_laws(OBJECTIVE_LAWS, laws, skip)
    if other is None and laws is not None and "padding" in names:
        raise LawDoesNotApplyError(f"laws must apply to the objective, and 'padding' does not: {_NO_WHERE}")
    found = list(_impure(probe)) if "pure" in names else []
    changes = any(_AGAIN in str(violation) for violation in found)
    # What an objective does to the global state is told by now, and put back.
    with contextlib.suppress(LawViolation), guarded_world(_PURE, "the objective"):
        found += _unequal(probe, other) if not changes and names != ("pure",) else []
    report = LawReport(name_of("objective", objective), tuple(_findings(names, found, changes, other is not None)))
    report.raise_if_broken()
    return report


def _findings(names: tuple[str, ...], found: list[LawViolation], changes: bool, padded: bool) -> Iterator[Finding]:
    """Yield what became of each law: what was found of it, or that it holds."""
    for name in names:
        violations = [each for each in found if str(each).startswith(_LABELS[name])]
        yield from (broken(name, each) for each in violations)
        if changes and name != "pure":
            yield Finding(name, "not looked at", "nothing can be compared with what changes by itself")
        elif name == "padding" and not padded:
            yield Finding(name, "not looked at", _NO_WHERE)
        elif not violations:
            yield Finding(name, "held")


def _unequal(probe: Probe, other: Any) -> list[LawViolation]:
    """Find what breaks law 2; ``other`` is a batch that is the same in all that counts, or ``None``."""
    probe.check_informative()
    couplings = coupled(probe)
    sums = [_bare()] if probe.is_bare else list(_cut(probe, couplings))
    refused = list(weight_gradients(probe))
    if not (sums or refused):
        sums = list(_cut_gradients(probe))
    found = [*sums, *couplings.values(), *(refused or moving_weights(probe))]
    return found if other is None or refused else [*found, *read_padding(probe, other)]


def _bare() -> LawViolation:
    return LawViolation(
        f"{_SUM}: the loss is a bare tensor, whose denominator nobody knows, so that parts of it cannot be pooled: "
        'return ps.mean(values) of the unreduced values, for instance of F.cross_entropy(..., reduction="none")'
    )


_AGAIN = "at a second call on the same arguments"
_NO_WHERE = "where= is not given"


def _impure(probe: Probe) -> Iterator[LawViolation]:
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
    told: dict[str, LawViolation] = {}
    for each in calls:
        try:
            each()
        except LawViolation as violation:
            told.setdefault(str(violation), violation)
    yield from told.values()
    for position, (first, second) in enumerate(zip(*results, strict=True)):
        if repr(first) != repr(second):  # NaN is equal to NaN here
            yield LawViolation(
                f"{_PURE}: term {position} has total {second.total!r} and weight {second.weight!r} {_AGAIN}, and "
                f"{first.total!r} and {first.weight!r} at the first: what it draws belongs to context.key, and what it "
                "remembers into the batch",
                by=f"{abs(second.total - first.total):.2g} in its total",
                on=f"term {position}",
            )


def _cut(probe: Probe, couplings: Collection[int]) -> Iterator[LawViolation]:
    """Find terms that do not add up over parts, and what cannot be cut at all."""
    n = probe.length
    third = n // 3
    cuts = dict.fromkeys([(n // 2, n - n // 2), (1, n - 1), (n - 1, 1), (third, n - third - third // 2, third // 2)])
    broken: dict[int, Split] = {}
    failure: LawViolation | None = None
    for lengths in cuts:
        if 0 in lengths:
            continue
        try:
            split = probe.split(0, lengths)
        except Exception as error:
            failure = failure or LawViolation(
                f"{_SUM}: it fails with {type(error).__name__} ({error}) on the examples cut into {plus(lengths)}, and "
                "a micro-batch can be as short",
                by="an error",
                on=f"{plus(lengths)} examples",
            )
            continue
        counts = {len(terms) for terms in (split.whole, *split.parts)}
        if len(counts) > 1:
            some = " or ".join(map(str, sorted(counts)))
            says = f"{_SUM}: the loss has {some} terms, depending on the examples"
            yield LawViolation(says, by=f"{max(counts) - min(counts)} terms", on=f"{plus(lengths)} examples")
            return
        for term in range(len(split.whole)):
            if not split.adds_up(term, probe):
                broken.setdefault(term, split)
    if failure is not None:
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


def _not_a_sum(term: int, split: Split, mixes: bool, probe: Probe) -> LawViolation:
    whole, parts = split.of(term)
    total, weight = (sum(values) for values in zip(*parts, strict=True))
    scale = max(abs(whole.total), *(abs(part.total) for part in parts))
    error = abs(total - whole.total)
    share = error / (scale or 1.0)
    off = "" if probe.near(error, scale) else f" (off by {share:.2g} of the largest)"
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
    return LawViolation(
        f"{_SUM}: term {term} {split}: its total adds up to {total:.6g} and is {whole.total:.6g} of them all{off}, its "
        f"weight adds up to {weight:.6g} and is {whole.weight:.6g}: {advice}",
        by=f"{share:.2g} of the largest total" if off else f"{weight - whole.weight:.2g} of weight",
        on=str(split).removeprefix("on "),
    )


def _random(probe: Probe) -> bool:
    """Whether another random key gives other values."""
    rows, state = range(probe.length), probe.state
    return probe.terms(rows) != probe.terms(rows, state=state.replace(key=fold_in(state.key, 1)))


def _empty(probe: Probe) -> Iterator[LawViolation]:
    """Find terms to which no examples add something; an objective that refuses none is let be."""
    try:
        split = probe.split(0, (probe.length, 0))
    except Exception:
        return
    for term in range(len(split.whole)):
        nothing = split.parts[1][term]
        if not split.adds_up(term, probe):
            yield LawViolation(
                f"{_SUM}: term {term} of an empty part has total {nothing.total} and weight {nothing.weight}, where it "
                "has nothing to add: ps.mean(values) of no values is 0 over 0",
                by=f"a total of {nothing.total:.2g} and a weight of {nothing.weight:.2g}",
                on="an empty part",
            )


def _cut_gradients(probe: Probe) -> Iterator[LawViolation]:
    """Find terms whose gradients do not add up, though their totals do."""
    n = probe.length
    whole = probe.gradients(probe.examples(range(n)))
    parts = [probe.gradients(probe.examples(range(a, b)), first=a) for a, b in ((0, n // 2), (n // 2, n))]
    terms = probe.terms(range(n))
    for term, right in enumerate(whole):
        one, other = (part[term] for part in parts)
        scale = max(norm(right), norm(one), norm(other), abs(terms[term].total))
        error = apart({name: one[name] + other[name] for name in right}, right)
        if not (probe.near(error, scale) or probe.near(max(apart(one, right), apart(other, right)), scale)):
            cut = plus((n // 2, n - n // 2))
            yield LawViolation(
                f"{_SUM}: the total of term {term} adds up over {cut} examples, and its gradient does not: off by "
                f"{error / scale:.2g} of its norm, so something that is detached, or has a gradient of its own, "
                "couples the examples",
                by=f"{error / scale:.2g} of the norm of its gradient",
                on=f"{cut} examples",
            )
