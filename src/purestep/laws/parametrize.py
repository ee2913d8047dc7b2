"""Each law as a test of its own, for pytest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from purestep import _checks
from purestep.data.orders import IndexOrder
from purestep.laws._report import LawDoesNotApplyError, chosen_laws, name_of
from purestep.laws.bundle import STEP_LAWS, check_step
from purestep.laws.objectives import OBJECTIVE_LAWS, check_objective
from purestep.laws.optimizers import OPTIMIZER_LAWS, check_optimizer, check_transformation
from purestep.laws.orders import ORDER_LAWS, check_order
from purestep.laws.resuming import RESUMABLE_LAWS, check_resumable
from purestep.laws.schedules import SCHEDULE_LAWS, check_schedule
from purestep.schedules import Schedule
from purestep.updates import GradientTransformation, Optimizer

Bundle = Callable[..., Any]
BUNDLES: dict[Bundle, tuple[str, ...]] = {
    check_step: STEP_LAWS,
    check_objective: OBJECTIVE_LAWS,
    check_optimizer: OPTIMIZER_LAWS,
    check_transformation: OPTIMIZER_LAWS,
    check_schedule: SCHEDULE_LAWS,
    check_order: ORDER_LAWS,
    check_resumable: RESUMABLE_LAWS,
}
_BY_TYPE: dict[type, Bundle] = {
    Optimizer: check_optimizer,
    GradientTransformation: check_transformation,
    Schedule: check_schedule,
    IndexOrder: check_order,
}


def parametrize_with_laws(subjects: Any, *, laws: Sequence[str] | None = None, skip: Sequence[str] = ()) -> Any:
    """Return a decorator that makes a test of each law of each subject; the test gets it as ``law``, and calls it::

        @parametrize_with_laws({"mine": partial(check_step, step, state, batch, model=model), "rate": my_schedule})
        def test_laws(law):
            law()

    The tests are called ``test_laws[mine-pure]``, ``test_laws[mine-ensemble]``, and so on. Nothing runs before its
    test does. A law that finds nothing to look at skips its test, and says why.

    Args:
        subjects: by the name that tests get: a bundle with its arguments, ``functools.partial(check_step, ...)``; or a
            schedule, an order, an optimizer or a gradient transformation, whose type says which bundle. One alone needs
            no name.
        laws, skip: names of the laws to make tests of, and of those to leave out, in whichever bundle they are.

    Raises:
        ImportError: pytest is not installed.
        TypeError: a subject that is neither. ValueError: none, or names of no law.
    """
    try:
        import pytest
    except ImportError as error:
        raise ImportError("parametrize_with_laws needs pytest: pip install pytest") from error
    named = dict(subjects) if isinstance(subjects, Mapping) else {_name(subjects): subjects}
    if not named:
        raise ValueError(f"subjects must be at least one, got {subjects!r}")
    checks = {name: _check_of(name, subject) for name, subject in named.items()}
    known = dict.fromkeys(law for check in checks.values() for law in BUNDLES[check.func])
    chosen = chosen_laws(known, laws, skip)
    cases = [pytest.param(case, id=f"{case.subject}-{case.law}") for case in _cases(checks, chosen)]
    return pytest.mark.parametrize("law", cases)


class LawCase:
    """One law of one subject; calling it looks whether it holds.

    Attributes:
        subject, law: their names.
    """

    def __init__(self, subject: str, law: str, check: functools.partial[Any]) -> None:
        self.subject, self.law, self._check = subject, law, check

    def __call__(self) -> None:
        """Raise :class:`LawViolation` where the law is broken; skip the test where there is nothing to look at."""
        import pytest

        try:
            self._check(laws=[self.law])
        except LawDoesNotApplyError as reason:
            pytest.skip(str(reason))

    def __repr__(self) -> str:
        return f"<the law {self.law!r} of {self.subject}>"


def _cases(checks: Mapping[str, functools.partial[Any]], chosen: tuple[str, ...]) -> Iterator[LawCase]:
    for name, check in checks.items():
        yield from (LawCase(name, law, check) for law in BUNDLES[check.func] if law in chosen)


def _check_of(name: str, subject: Any) -> functools.partial[Any]:
    """Return the bundle of a subject with its arguments."""
    if isinstance(subject, functools.partial) and subject.func in BUNDLES:
        if given := {"laws", "skip"} & set(subject.keywords):
            raise ValueError(f"laws and skip must be given to parametrize_with_laws, got {sorted(given)} in {name!r}")
        return subject
    for kind, check in _BY_TYPE.items():
        if isinstance(subject, kind):
            return functools.partial(check, subject)
    bundles = _checks.listed((check.__name__ for check in BUNDLES), 20)
    raise TypeError(
        "subjects must be an optimizer, a gradient transformation, a schedule, an order, or functools.partial of one "
        f"of {bundles} with its arguments, got {subject!r} as {name!r}"
    )


def _name(subject: Any) -> str:
    """Return what tests of one subject alone are called after."""
    if isinstance(subject, functools.partial):
        return subject.func.__name__.removeprefix("check_")
    return name_of("", subject).removeprefix("the ").strip()
