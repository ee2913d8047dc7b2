"""check_resumable: law 4, in this process and in a new one, with the data's place, and its mutants."""

from __future__ import annotations

import pytest
import torch

import _resuming
import purestep as ps
from _runs import Run
from purestep import laws
from purestep.laws import LawViolation


@pytest.fixture
def parts():
    return _resuming.make()


class Loader:
    """A loader of numbers whose place may be forgotten."""

    def __init__(self, forgets=(), ends_at=100):
        self.place, self.forgets, self.ends_at = 0, forgets, ends_at

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        if "place" not in self.forgets or state["place"] == 0:
            self.place = state["place"]

    def __iter__(self):
        while self.place < self.ends_at:
            self.place += 1
            yield {"x": torch.full((4, 3), float(self.place))}


def test_a_step_and_a_pipeline_are_resumable(parts):
    report = laws.check_resumable(*parts, rebuild=_resuming.make)
    assert report.held == ("saved", "resumed", "data", "rebuilt")
    step, state, _ = parts
    laws.check_resumable(step, state, Loader(), at=1, more=3)
    report = laws.check_resumable(step, state, [{"x": torch.ones(4, 3)}] * 4)
    assert report.held == ("saved", "resumed")


def everything():
    """A step with dropout, a schedule under a plateau that cuts it, a loss scale, and momentum."""
    run = Run()

    def step(state, batch):
        state, metrics = run.plain_step(state, batch)
        return run.machine.observe(state, {"loss": 1.0}), metrics

    return step, run.state(), run.batches


def test_a_plateau_a_loss_scale_and_a_key_are_resumed_with_the_rest():
    report = laws.check_resumable(*everything(), at=3, more=5, rebuild=everything)
    assert report.held == ("saved", "resumed", "data", "rebuilt")


def test_the_place_is_in_the_checkpoint_as_fit_has_it(parts, monkeypatch):
    saved = []
    save = ps.checkpoint.save

    def noted(path, state, **options):
        saved.append(options)
        return save(path, state, **options)

    monkeypatch.setattr(ps.checkpoint, "save", noted)
    laws.check_resumable(*parts, laws=["data"])
    assert [list(options) for options in saved] == [["data"]]
    assert saved[0]["data"]["position"] == 10


def test_in_a_new_process(parts):
    report = laws.check_resumable(*parts, rebuild=_resuming.make, new_process=True, laws=["new process"])
    assert report.held == ("new process",)


def test_a_new_process_that_counts_for_itself_is_caught():
    make = _resuming.make_with_a_rate_of_its_own
    with pytest.raises(LawViolation) as caught:
        laws.check_resumable(*make(), rebuild=make, new_process=True, skip=["resumed", "data"])
    assert caught.value.report.broken == ("rebuilt", "new process")
    assert caught.value.on == "step 2"
    assert "in the new process" in str(caught.value)


def test_a_new_process_that_fails_says_why(parts, monkeypatch):
    monkeypatch.setattr("purestep.laws.resuming._CHILD", "raise RuntimeError('this cannot be built again')")
    with pytest.raises(LawViolation, match=r"the new process fails: (?s:.)*this cannot be built again"):
        laws.check_resumable(*parts, rebuild=_resuming.make, new_process=True, laws=["new process"])


def forgets_its_place(step, state):
    return step, state, Loader(forgets=("place",))


def keeps_a_momentum(step, state):
    kept = []

    def mutant(state, batch):
        kept.append(batch["x"].mean())
        after, metrics = step(state, batch)
        return after.replace(params=after.params.apply(lambda leaf: leaf - 0.01 * sum(kept))), metrics

    return mutant, state, [{"x": torch.full((4, 3), float(i))} for i in range(1, 5)]


def draws_from_torch(step, state):
    def mutant(state, batch):
        return step(state, {"x": batch["x"] + torch.randn(4, 3)})

    return mutant, state, Loader()


def loses_a_dtype(step, state):
    """A state whose entry a file gives back otherwise: a view that is written through elsewhere."""
    shared = torch.zeros(2)

    def mutant(state, batch):
        after, metrics = step(state, batch)
        aux = after.aux.clone()
        aux["shared"] = shared.add_(1)
        return after.replace(aux=aux), metrics

    aux = state.aux.clone()
    aux["shared"] = shared.clone()
    return mutant, state.replace(aux=aux), Loader()


MUTANTS = {
    forgets_its_place: ("resumed", "data"),
    keeps_a_momentum: ("resumed",),
    draws_from_torch: ("resumed",),
    loses_a_dtype: ("resumed",),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_it_catches(mutant, parts):
    with pytest.raises(LawViolation, match="law 4") as caught:
        laws.check_resumable(*mutant(*parts[:2]))
    assert caught.value.report.broken == MUTANTS[mutant]
    assert caught.value.on in ("step 2", "batch 2", "as given")


def test_what_a_file_does_not_give_back_is_caught(parts, monkeypatch):
    step, state, _ = parts
    load = ps.checkpoint.load

    def loses_a_bit(path, *, like):
        state = load(path, like=like)
        return state.replace(step=state.step + 1)

    monkeypatch.setattr(ps.checkpoint, "load", loses_a_bit)
    with pytest.raises(LawViolation) as caught:
        laws.check_resumable(step, state, Loader(), laws=["saved"])
    assert "state.step differs: 3 once it was loaded, 2 when it was saved" in str(caught.value)


ARGUMENTS = {
    "too few batches": (
        lambda p: laws.check_resumable(*p[:2], [1] * 3),
        ValueError,
        "batches must be at least 4.*got 3",
    ),
    "a short loader": (
        lambda p: laws.check_resumable(*p[:2], Loader(ends_at=3)),
        ValueError,
        "batches must be at least 4, for at . more steps, got 3",
    ),
    "no batches": (lambda p: laws.check_resumable(*p[:2], 3), TypeError, "batches must be a list of batches, or a loa"),
    "no steps before": (lambda p: laws.check_resumable(*p, at=0), ValueError, "at must be an int of at least 1, got 0"),
    "no steps after": (lambda p: laws.check_resumable(*p, more=0), ValueError, "more must be an int of at least 1"),
    "a lambda": (
        lambda p: laws.check_resumable(*p, rebuild=lambda: p, new_process=True),
        ValueError,
        "rebuild must be a function at the top of a module",
    ),
    "nothing to rebuild by": (
        lambda p: laws.check_resumable(*p, new_process=True),
        ValueError,
        "rebuild must be a function at the top of a module that can be imported.*got None",
    ),
    "a law without its argument": (
        lambda p: laws.check_resumable(*p, laws=["rebuilt"]),
        laws.LawDoesNotApplyError,
        "'rebuilt' does not: rebuild= is not given",
    ),
    "no such law": (lambda p: laws.check_resumable(*p, skip=["resume"]), ValueError, r"did you mean 'resumed'"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_the_message(case, parts):
    call, kind, message = ARGUMENTS[case]
    with pytest.raises(kind, match=message):
        call(parts)
