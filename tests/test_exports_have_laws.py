"""Every public name is under a law, or says why there is none: a new one without an entry here fails.

What a name is decides where that can be told: schedules are drawn from ``BASIC``, optimizers and gradient
transformations from the strategies, random functions and metrics are called with arguments by their parameters' names.
All others have an entry in ``LAWS`` or in ``NONE`` of ``_laws_of_exports.py``.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import ModuleType

import pytest
import torch
from tensordict import TensorDict

import purestep as ps
from _checks_of_exports import PROBLEM, of_a_source, of_compile, pure
from _laws_of_exports import LAWS, METRIC_ARGUMENTS, NONE, RANDOM_ARGUMENTS, TYPE
from purestep import laws, transforms
from purestep.laws._drawn_schedules import BASIC
from purestep.laws._report import on_drawn
from purestep.laws.strategies import OPTIMIZERS, TRANSFORMATIONS

ROOMS: dict[str, ModuleType] = {
    "purestep": ps,
    "purestep.schedules": ps.schedules,
    "purestep.data": ps.data,
    "purestep.metrics": ps.metrics,
    "purestep.random": ps.random,
    "purestep.transforms": transforms,
    "purestep.optimizers": ps.optimizers,
    "purestep.checkpoint": ps.checkpoint,
}


def required(function):
    return [name for name, p in inspect.signature(function).parameters.items() if p.default is p.empty]


def of_a_schedule(name):
    on_drawn(laws.check_schedule, {"schedule": BASIC[name]}, max_examples=3, shrink=False)()


def of_a_random_function(function):
    """Laws 1, 2 and 3: the same bits for the same key and others for another; rows drawn apart, by ``start``, are those
    drawn together; under vmap over keys it gives those of each."""
    given = {name: RANDOM_ARGUMENTS[name] for name in required(function) if name != "key"}
    keys = torch.stack([ps.random.key(3), ps.random.key(2**33)])

    def call(key):
        return function(key, **given)

    laws.check_pure(lambda given, _: call(given["key"]), {"key": keys[0]}, {})
    together = torch.vmap(call)(keys)
    assert all(torch.equal(one, call(key)) for one, key in zip(together, keys, strict=True))
    assert not torch.equal(together[0], together[1])
    if "shape" in given and "start" in inspect.signature(function).parameters:
        rows, columns = given["shape"]
        rest = function(keys[0], **{**given, "shape": (rows - 2, columns)}, start=2 * columns)
        assert torch.equal(rest, together[0][2:])


def of_a_metric(function):
    """Law 2: however a batch is cut, the metric is the whole batch's."""
    names = required(function)
    squared = function is ps.metrics.r_squared
    arguments = {**METRIC_ARGUMENTS, **({"predicted": lambda batch: batch["weight"] * 0.9} if squared else {})}

    def objective(model, batch):
        metric = function(**{name: arguments[name](batch) for name in names})
        return ps.mean(model(batch["inputs"]).square()), {"metric": metric}

    parts = [(1, 4), (2, 0, 3)]
    model = laws.make_model("perceptron", 0)
    laws.check_split_invariant(model, objective, PROBLEM.batch, parts=parts)


def derived(room, name, value):
    """Return the law of an export whose kind says it, or why it has none; ``None`` where its kind says nothing."""
    if room == "purestep.schedules" and name in BASIC:
        return partial(of_a_schedule, name)
    if name in OPTIMIZERS:
        return partial(laws.check_optimizer, value)
    if name in TRANSFORMATIONS:
        return on_drawn(laws.check_transformation, {"transformation": TRANSFORMATIONS[name]}, max_examples=3)
    if room == "purestep.random" and inspect.isfunction(value) and required(value)[:1] == ["key"]:
        return partial(of_a_random_function, value) if {*required(value)} <= {"key", *RANDOM_ARGUMENTS} else None
    if room == "purestep.metrics" and inspect.isfunction(value):
        return partial(of_a_metric, value) if {*required(value)} <= {*METRIC_ARGUMENTS} else None
    if room == "purestep.metrics" and inspect.isclass(value):
        return TYPE
    if inspect.isclass(value) and issubclass(value, Exception):
        return "an error"
    if inspect.ismodule(value) and value in ROOMS.values():
        return "a room, whose own names are looked at"
    return None


WHAT_TO_DO = {
    "purestep.schedules": "give its constructor a strategy in BASIC of purestep/laws/_drawn_schedules.py",
    "purestep.transforms": "give it a strategy in TRANSFORMATIONS of purestep/laws/strategies.py",
    "purestep.random": "give its parameters values in RANDOM_ARGUMENTS of tests/_laws_of_exports.py",
    "purestep.metrics": "give its parameters values in METRIC_ARGUMENTS of tests/_laws_of_exports.py",
    "purestep": "an optimizer needs a strategy in OPTIMIZERS of purestep/laws/strategies.py, a transformation one in "
    "TRANSFORMATIONS",
}


def law_of(room, name, value):
    """Return the law of an export as a function, or the reason why it has none."""
    key = f"{room}.{name}"
    law = LAWS.get(key) or NONE.get(key) or derived(room, name, value)
    if law is None:
        first = f"{WHAT_TO_DO[room]}; or " if room in WHAT_TO_DO else ""
        pytest.fail(
            f"{key} is exported without a law: {first}add {key!r} to LAWS in tests/_laws_of_exports.py, with a "
            "function that runs the laws it keeps (a bundle of purestep.laws, or check_pure), or to NONE, with the "
            "reason why no law can be asked of it"
        )
    return law


def exports():
    for room, module in ROOMS.items():
        public = [name for name, value in vars(module).items() if not (name.startswith("_") or inspect.ismodule(value))]
        for name in getattr(module, "__all__", public):
            yield room, name


EXPORTS = list(exports())


@pytest.mark.parametrize(("room", "name"), EXPORTS, ids=[f"{room}.{name}" for room, name in EXPORTS])
def test_it_keeps_its_laws(room, name, request):
    law = law_of(room, name, getattr(ROOMS[room], name))
    if law is of_compile:
        law(request)
    elif not isinstance(law, str):
        law()


def test_every_entry_is_of_an_export():
    known = {f"{room}.{name}" for room, name in EXPORTS}
    assert {*LAWS, *NONE} - known == set()
    assert not {*LAWS} & {*NONE}


def test_what_is_exported_from_a_room_is_there():
    assert len(EXPORTS) > 80
    assert {room for room, _ in EXPORTS} == {*ROOMS}


NEW = {
    "a function": ("purestep", "hessian", lambda state: state, "add 'purestep.hessian' to LAWS"),
    "a class": ("purestep", "Lookahead", type("Lookahead", (), {}), "or to NONE, with the reason"),
    "a module": ("purestep", "torch", torch, "purestep.torch is exported without a law"),
    "a schedule": ("purestep.schedules", "fancy", lambda: None, "a strategy in BASIC"),
    "a transformation": ("purestep.transforms", "negate", lambda: None, "a strategy in TRANSFORMATIONS"),
    "a metric": ("purestep.metrics", "auc", lambda curve: None, "values in METRIC_ARGUMENTS"),
    "a random function": ("purestep.random", "beta", lambda key, alpha: None, "values in RANDOM_ARGUMENTS"),
}


@pytest.mark.parametrize("kind", NEW)
def test_a_new_export_without_laws_fails(kind):
    room, name, value, says = NEW[kind]
    with pytest.raises(pytest.fail.Exception, match=says):
        law_of(room, name, value)


def test_the_laws_of_kinds_see_what_is_wrong():
    def draws(key, shape):
        return torch.rand(shape)

    def keyless(key, shape):
        return torch.zeros(shape)

    def mean_of_means(values):
        return ps.Mean(values.mean(), torch.ones((), dtype=values.dtype))

    with pytest.raises(laws.LawViolation, match="the random state of torch"):
        of_a_random_function(draws)

    def restarts(key, shape, *, start=0):
        return ps.random.uniform(key, shape)

    for wrong in (keyless, restarts):
        with pytest.raises(AssertionError):
            of_a_random_function(wrong)
    with pytest.raises(laws.LawViolation, match="law 2"):
        of_a_metric(mean_of_means)
    with pytest.raises(laws.LawViolation, match="law 1"):
        pure(lambda tensor: tensor.add_(1), torch.zeros(2))

    class Forgets:
        def fetch(self, index):
            return TensorDict({"x": torch.arange(len(index))}, batch_size=[len(index)])

    with pytest.raises(AssertionError):
        of_a_source(Forgets())
