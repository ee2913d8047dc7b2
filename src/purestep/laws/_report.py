"""Bundles of laws: each is run by name, on ever smaller inputs where it does not hold, and one report says it all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from purestep import _batches, _checks
from purestep.laws._compare import LawViolation
from purestep.laws._probe import spread
from purestep.updates import GradientTransformation, Optimizer

Law = Callable[..., None]
Result = Literal["held", "BROKEN", "not looked at"]
_BROKEN: Result = "BROKEN"
_HELD: Result = "held"
_PASSED_OVER: Result = "not looked at"
_HEADER = ("law", "result", "by how much", "on the smallest input found")
_AS_GIVEN = "as given"
_LENGTHS, _PLACES = 6, 3  # of the parts of a batch that are tried in turn, the shortest first


class LawDoesNotApplyError(ValueError):
    """A law was asked for by name, and the subject gives it nothing to look at: the message says what is missing."""


@dataclass(frozen=True)
class Finding:
    """What became of one law.

    Attributes:
        law: its name in the bundle.
        result: ``"held"``, ``"BROKEN"`` or ``"not looked at"``.
        says: what was found, or why there was nothing to look at.
        by, on: as in :class:`LawViolation`.
    """

    law: str
    result: Result
    says: str = ""
    by: str = ""
    on: str = ""


@dataclass(frozen=True)
class LawReport:
    """What a bundle of laws found: ``str(report)`` is a table, and what there is to say of each law that is broken.

    Attributes:
        subject: what was looked at, such as ``"the step train_step"``.
        findings: a :class:`Finding` for each law, in the order of the bundle.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[str, ...]:
        """The names of the laws that do not hold."""
        return self._with(_BROKEN)

    @property
    def held(self) -> tuple[str, ...]:
        """The names of the laws that were looked at and hold."""
        return self._with(_HELD)

    def _with(self, result: Result) -> tuple[str, ...]:
        return tuple(dict.fromkeys(finding.law for finding in self.findings if finding.result == result))

    def __str__(self) -> str:
        count = len({*self.broken, *self.held})
        noun = "law" if count == 1 else "laws"
        verdict = f"breaks {len(self.broken)} of {count} {noun}" if self.broken else f"keeps {count} of {count} {noun}"
        looked = [finding for finding in self.findings if finding.result != _PASSED_OVER]
        rows = [_HEADER, *((finding.law, finding.result, finding.by, finding.on) for finding in looked)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        details = [f"- {finding.law}: {finding.says}" for finding in looked if finding.result == _BROKEN]
        rest = [f"{finding.law} ({finding.says})" for finding in self.findings if finding.result == _PASSED_OVER]
        passed_over = [f"not looked at: {'; '.join(rest)}"] if rest else []
        return "\n".join([f"{self.subject} {verdict}", "", *table, *passed_over, *[""] * bool(details), *details])

    def raise_if_broken(self) -> None:
        """Raise :class:`LawViolation` with all of this where a law is broken."""
        first = next((finding for finding in self.findings if finding.result == _BROKEN), None)
        if first is not None:
            raise LawViolation(str(self), by=first.by, on=first.on, report=self)


def chosen_laws(known: Iterable[str], laws: Sequence[str] | None, skip: Sequence[str]) -> tuple[str, ...]:
    """Return the names that ``laws=`` and ``skip=`` leave, in the order of the bundle.

    Raises:
        TypeError: one of the two is a string.
        ValueError: a name that no law of the bundle has, or none left.
    """
    known = tuple(known)
    for argument, names in (("laws", laws), ("skip", skip)):
        if isinstance(names, str):
            raise TypeError(f"{argument} must be a sequence of names of laws, got the string {names!r}: [{names!r}]")
        for name in names or ():
            if name not in known:
                near = _checks.near_misses(str(name), known)
                raise ValueError(f"{argument} must name laws of {_checks.listed(known, 20)}, got {name!r}{near}")
    left = tuple(name for name in known if (laws is None or name in laws) and name not in skip)
    if not left:
        raise ValueError(f"laws and skip must leave a law to look at, got laws={laws!r} and skip={skip!r}")
    return left


def check_laws(
    subject: str, bundle: Mapping[str, Callable[[], Any]], *, laws: Sequence[str] | None, skip: Sequence[str]
) -> LawReport:
    """Run the laws of a bundle and return the report, or raise it where one is broken.

    An exception that is no :class:`LawViolation` breaks a law as well: the same subject ran without one before.

    Raises:
        LawViolation: with the whole report, once all laws were looked at.
        LawDoesNotApplyError: a law in ``laws`` that does not apply.
    """
    findings = tuple(_look(name, bundle[name]) for name in chosen_laws(bundle, laws, skip))
    for finding in findings:
        if laws is not None and finding.result == _PASSED_OVER:
            raise LawDoesNotApplyError(f"laws must apply to {subject}, and {finding.law!r} does not: {finding.says}")
    report = LawReport(subject, findings)
    report.raise_if_broken()
    return report


def _look(name: str, law: Callable[[], Any]) -> Finding:
    try:
        law()
    except LawDoesNotApplyError as reason:
        return Finding(name, _PASSED_OVER, str(reason))
    except LawViolation as violation:
        return broken(name, violation)
    except Exception as error:
        says = f"it fails with {type(error).__name__}: {error}"
        return Finding(name, _BROKEN, says, "an error", _falsifying(error) or _AS_GIVEN)
    return Finding(name, _HELD)


def broken(name: str, violation: LawViolation) -> Finding:
    """Return the finding of a law that a violation was raised of."""
    return Finding(name, _BROKEN, str(violation), violation.by or "not a matter of degree", violation.on or _AS_GIVEN)


def on_smallest(law: Law, whole: Any, smaller: Iterable[tuple[str, Any]]) -> Callable[[], None]:
    """Return the law on ``whole``; where it does not hold, on the first of the ``smaller`` inputs that shows it too.

    Args:
        law: a function of one input.
        smaller: what an input is called, and the input; the smallest first. One that raises anything else than a
            :class:`LawViolation` is passed over.
    """

    def check() -> None:
        try:
            law(whole)
            return
        except LawViolation as violation:
            found = violation
        for name, each in smaller:
            try:
                law(each)
            except LawViolation as violation:
                raise LawViolation(str(violation), by=violation.by, on=_and(name, violation.on)) from None
            except Exception:
                continue
        raise found

    return check


def _and(name: str, more: str) -> str:
    return f"{name}, {more}" if more else name


def smaller_batches(batch: Any) -> Iterator[tuple[str, Any]]:
    """Yield consecutive examples of a batch, the shortest first; nothing of one that cannot be cut."""
    try:
        length = _batches.batch_length(batch)
    except (TypeError, ValueError):
        return
    for count in range(1, min(length, _LENGTHS + 1)):
        for start in spread(range(length - count + 1), _PLACES):
            last = start + count - 1
            name = f"example {start}" if count == 1 else f"examples {start} to {last}"
            yield f"{name} of the batch", _batches.slice_batch(batch, start, start + count)


def on_drawn(law: Law, drawn: Mapping[str, Any], *, max_examples: int, shrink: bool = True) -> Callable[[], None]:
    """Return the law on inputs by name, some of which are strategies: Hypothesis draws these, and finds small ones."""
    strategies = {name: value for name, value in drawn.items() if isinstance(value, SearchStrategy)}
    fixed = {name: value for name, value in drawn.items() if name not in strategies}

    looked: list[bool] = []
    passed_over: list[LawDoesNotApplyError] = []

    @settings(
        max_examples=max_examples,
        database=None,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *[Phase.shrink] * shrink],
    )
    @given(**strategies)
    def drawn_inputs(**inputs: Any) -> None:
        try:
            law(**fixed, **inputs)
        except LawDoesNotApplyError as reason:
            passed_over.append(reason)
        else:
            looked.append(True)

    def check() -> None:
        try:
            drawn_inputs()
        except LawViolation as violation:
            on = _and(_falsifying(violation), violation.on)
            raise LawViolation(str(violation), by=violation.by, on=on) from None
        if passed_over and not looked:  # one that something was seen on is enough
            raise passed_over[0]

    return check


def _falsifying(error: BaseException) -> str:
    """Return the arguments that Hypothesis found, as it prints them: ``batch=make_batch(2, 0)``."""
    for note in getattr(error, "__notes__", []):
        if "drawn_inputs(" in note:
            inside = note.split("drawn_inputs(", 1)[1].rpartition(")")[0]
            return " ".join(inside.split()).removesuffix(",")
    return ""


def is_drawn(*values: Any) -> bool:
    """Whether one of these is a strategy."""
    return any(isinstance(value, SearchStrategy) for value in values)


def name_of(kind: str, subject: Any) -> str:
    """Return what a report calls a subject: ``"the step train_step"``."""
    name = getattr(subject, "__name__", None)
    if name is None and isinstance(subject, (GradientTransformation, Optimizer)):
        # Its repr, with all that it was given, would fill the screen.
        config = subject.config
        name = config.name if config else getattr(subject.update, "__qualname__", "").partition(".")[0]
    return f"the {kind} {name or repr(subject)}"
