"""Reports of bundles, the search for small inputs, and a test for each law by parametrize_with_laws."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from _pytest.outcomes import Skipped

import purestep as ps
from purestep import laws
from purestep.laws import Finding, LawReport, LawViolation
from purestep.laws._report import check_laws, chosen_laws, on_drawn, on_smallest, smaller_batches
from purestep.laws.parametrize import BUNDLES


def breaks(says, **found):
    def law():
        raise LawViolation(says, **found)

    return law


def fails():
    raise RuntimeError("no such thing")


def passes_over():
    raise laws.LawDoesNotApplyError("nothing to see")


BUNDLE = {
    "first": breaks("law 1: it is off", by="0.5", on="example 3"),
    "second": list,
    "third": fails,
    "last": passes_over,
}
TEXT = """\
the step mine breaks 2 of 3 laws

law     result  by how much  on the smallest input found
first   BROKEN  0.5          example 3
second  held
third   BROKEN  an error     as given
not looked at: last (nothing to see)

- first: law 1: it is off
- third: it fails with RuntimeError: no such thing"""


def test_every_law_is_looked_at_and_one_report_says_it_all():
    with pytest.raises(LawViolation) as caught:
        check_laws("the step mine", BUNDLE, laws=None, skip=())
    assert str(caught.value) == TEXT
    report = caught.value.report
    assert (report.broken, report.held) == (("first", "third"), ("second",))
    assert (caught.value.by, caught.value.on) == ("0.5", "example 3")
    assert isinstance(caught.value, AssertionError)


def test_laws_that_hold_are_returned():
    report = check_laws("the step mine", BUNDLE, laws=["second"], skip=())
    assert report == LawReport("the step mine", (Finding("second", "held"),))
    assert str(report).startswith("the step mine keeps 1 of 1 law\n")
    report = check_laws("the step mine", BUNDLE, laws=None, skip=["first", "third"])
    assert report.held == ("second",)


def test_a_law_asked_for_by_name_must_have_something_to_look_at():
    with pytest.raises(laws.LawDoesNotApplyError, match="laws must apply to mine, and 'last' does not: nothing to see"):
        check_laws("mine", BUNDLE, laws=["second", "last"], skip=())


def test_laws_are_chosen_in_the_order_of_the_bundle():
    assert chosen_laws("abcd", ["d", "a", "b"], ["b"]) == ("a", "d")


def test_the_first_smaller_input_that_shows_it_is_told():
    def law(number):
        if number == 1:
            raise RuntimeError("another matter")
        if number > 3:
            raise LawViolation(f"{number} is too large", by=str(number - 3))

    smaller = [(f"number {n}", n) for n in range(1, 9)]
    with pytest.raises(LawViolation, match="4 is too large") as caught:
        on_smallest(law, 8, smaller)()
    assert (caught.value.on, caught.value.by) == ("number 4", "1")
    with pytest.raises(LawViolation, match="8 is too large"):
        on_smallest(law, 8, smaller[:3])()
    on_smallest(law, 3, smaller)()


def test_parts_of_a_batch_come_the_shortest_first():
    batch = {"x": torch.arange(5)}
    parts = [(name, part["x"].tolist()) for name, part in smaller_batches(batch)]
    assert parts[0] == ("example 0 of the batch", [0])
    assert ("examples 2 to 3 of the batch", [2, 3]) in parts
    assert [len(part) for _, part in parts] == sorted(len(part) for _, part in parts)
    assert max(len(part) for _, part in parts) == 4
    assert list(smaller_batches({"x": torch.tensor(0)})) == []


def test_what_is_drawn_is_shrunk():
    def law(scale, numbers):
        if sum(numbers) * scale > 10:
            raise LawViolation("too much")

    law_of_drawn = on_drawn(law, {"scale": 2, "numbers": st.lists(st.integers(0, 9))}, max_examples=100)
    with pytest.raises(LawViolation) as caught:
        law_of_drawn()
    assert caught.value.on == "numbers=[6]"


def test_drawn_inputs_that_show_nothing_are_passed_over_if_all_do():
    def law(number):
        if number < 5:
            raise laws.LawDoesNotApplyError("too small")

    on_drawn(law, {"number": st.integers(0, 9)}, max_examples=30)()
    with pytest.raises(laws.LawDoesNotApplyError, match="too small"):
        on_drawn(law, {"number": st.integers(0, 4)}, max_examples=5)()


SQUARE = {"x": torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.5, 2.0]]).double()}
LINE = torch.nn.Linear(2, 1).double()


def right(model, batch):
    return ps.mean(model(batch["x"]).square())


def wrong(model, batch):
    return ps.Mean(model(batch["x"]).square().mean(), torch.ones((), dtype=torch.float64))


def cases_of(subjects, **options):
    mark = laws.parametrize_with_laws(subjects, **options).mark
    assert mark.args[0] == "law"
    return {parameters.id: parameters.values[0] for parameters in mark.args[1]}


def test_each_law_becomes_a_test():
    cases = cases_of({"right": partial(laws.check_objective, LINE, right, SQUARE), "mine": ps.sgd(0.1)})
    assert list(cases) == [
        "right-pure",
        "right-sum",
        "right-not coupled",
        "right-weights",
        "right-padding",
        "mine-pure",
        "mine-form",
        "mine-rates",
        "mine-ensemble",
        "mine-finite",
        "mine-derivatives",
    ]
    cases["right-sum"]()
    cases["mine-form"]()
    for passed_over, why in (("right-padding", "where= is not given"), ("mine-rates", "no function of the rate")):
        with pytest.raises(Skipped, match=why):
            cases[passed_over]()
    assert repr(cases["mine-form"]) == "<the law 'form' of mine>"


def test_only_the_law_that_is_broken_fails():
    cases = cases_of(partial(laws.check_objective, LINE, wrong, SQUARE))
    cases["objective-pure"]()
    with pytest.raises(LawViolation, match="breaks 1 of 1 law"):
        cases["objective-sum"]()


def test_a_subject_whose_type_says_its_laws_needs_no_bundle():
    rate = ps.schedules.constant(0.1)
    assert list(cases_of(ps.data.sequential(3), laws=["permutation"])) == ["sequential(3)-permutation"]
    assert list(cases_of(ps.clip_by_global_norm(1.0), laws=["pure"])) == ["clip_by_global_norm-pure"]
    for case in cases_of({"rate": rate, "order": ps.data.sequential(3)}, skip=["workers"]).values():
        case()


def test_the_table_of_bundles_is_complete():
    bundles = {"check_step", "check_objective", "check_optimizer", "check_transformation", "check_schedule"}
    assert {check.__name__ for check in BUNDLES} == bundles | {"check_order", "check_resumable"}
    assert all(getattr(laws, check.__name__) is check for check in BUNDLES)


ARGUMENTS = {
    "no subject": (lambda: laws.parametrize_with_laws({}), ValueError, "subjects must be at least one"),
    "a plain function": (
        lambda: laws.parametrize_with_laws({"mine": right}),
        TypeError,
        "subjects must be an optimizer, .* or functools.partial of one of 'check_step'.* as 'mine'",
    ),
    "a single check": (
        lambda: laws.parametrize_with_laws(partial(laws.check_pure, right)),
        TypeError,
        "functools.partial of one of",
    ),
    "no such law": (
        lambda: laws.parametrize_with_laws(ps.sgd(0.1), skip=["forms"]),
        ValueError,
        r"skip must name laws of .* got 'forms' \(did you mean 'form'",
    ),
    "laws in the subject": (
        lambda: laws.parametrize_with_laws({"a": partial(laws.check_optimizer, ps.sgd, laws=["pure"])}),
        ValueError,
        r"laws and skip must be given to parametrize_with_laws, got \['laws'\] in 'a'",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_message(case):
    call, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        call()


def test_pytest_is_needed_for_parametrize_alone():
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from purestep import laws, sgd\n"
        "print(laws.check_optimizer(sgd, laws=['pure']).held)\n"
        "laws.parametrize_with_laws(sgd(0.1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip() == "('pure',)"
    assert "ImportError: parametrize_with_laws needs pytest: pip install pytest" in done.stderr
