"""The configuration of updates: every constructor records its call, which is a repr and JSON."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import purestep as ps
from purestep import optimizers, schedules, transforms, updates
from purestep.updates import GradientTransformation, Optimizer, Projection

KINDS = (GradientTransformation, Optimizer, Projection)
RATE = schedules.warmup_cosine(peak=3e-3, warmup_steps=100, total_steps=2_000)
PARAMS = ps.init_state(nn.Linear(3, 2), ps.sgd(0.1), seed=0).params


def makes_updates(function):
    """Whether a function's annotation says that it returns an update; ``Any`` may be one where it takes some."""
    hints = typing.get_type_hints(function)
    returned = hints.pop("return", None)
    if returned is typing.Any:
        return any(kind in typing.get_args(hint) for hint in hints.values() for kind in KINDS) or "factory" in hints
    members = getattr(returned, "__constraints__", None) or [returned]
    return all(isinstance(member, type) and issubclass(member, KINDS) for member in members)


def constructors():
    found = {}
    for home in (optimizers, transforms, ps):
        for name, value in vars(home).items():
            if inspect.isfunction(value) and not name.startswith("_") and makes_updates(value):
                found[f"{value.__module__}.{name}"] = value
    return found


CONSTRUCTORS = constructors()


def a_value(hint):
    """Something that a parameter of this annotation takes."""
    for kind, value in ((Optimizer, ps.sgd(0.1)), (GradientTransformation, ps.clip_by_global_norm(1.0))):
        if hint is kind or kind in getattr(hint, "__constraints__", ()) or kind in typing.get_args(hint):
            return value
    if hint == updates.Hyperparameter:
        return 0.5
    if hint == transforms._choosing.Mask:
        return "weight"
    if typing.get_origin(hint) is Callable:
        return RATE
    if typing.get_origin(hint) is Mapping:
        return {"a": ps.sgd(0.1)}
    if typing.get_origin(hint) in (typing.Union, type(int | str)):
        return {"*": "a"}
    raise AssertionError(f"no value for a parameter annotated {hint}: add one")


def called(constructor):
    """Return what a constructor makes of the arguments that it must have."""
    hints, given, named = typing.get_type_hints(constructor), [], {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named = {"rate": 0.5, "weight_decay": RATE}
        elif name == "factory":
            given.append(ps.adamw)
        elif parameter.kind is parameter.VAR_POSITIONAL or parameter.default is parameter.empty:
            given.append(a_value(hints[name]))
    return constructor(*given, **named)


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_constructor_records_its_call(name):
    constructor = CONSTRUCTORS[name]
    made = called(constructor)
    assert isinstance(made, KINDS)
    assert made.config is not None
    assert made.config.name == constructor.__name__
    assert set(made.config.arguments) == set(inspect.signature(constructor).parameters)
    plain = made.config.as_json()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert repr(made).startswith(f"{constructor.__name__}(")
    assert " at 0x" not in repr(made) + json.dumps(plain)


def test_the_constructors_are_found():
    names = {name.rpartition(".")[2] for name in CONSTRUCTORS}
    assert len(CONSTRUCTORS) > 45
    assert names >= {"chain", "adamw", "lbfgs", "muon", "partition", "inject_hyperparams", "project", "stateless"}
    assert not names & {"from_torch", "matrices_only", "global_norm", "by_kind", "compile", "init_state"}


def test_a_constructor_keeps_its_signature_and_docstring():
    assert list(inspect.signature(ps.adamw).parameters)[:3] == ["rate", "betas", "eps"]
    assert ps.adamw.__doc__.startswith("Adam with decoupled")
    assert ps.adamw.__module__ == "purestep.optimizers.adam"


def test_a_repr_reads_as_the_call():
    optimizer = ps.chain(
        ps.clip_by_global_norm(max_norm=1.0),
        ps.adamw(RATE, betas=(0.9, 0.999), weight_decay=0.1, decay_mask=ps.matrices_only),
        transforms.project_norm_ball(3.0, where=["a*", "b*"]),
    )
    assert repr(optimizer) == (
        f"chain(clip_by_global_norm(1.0), adamw({RATE!r}, betas=(0.9, 0.999), weight_decay=0.1, "
        "decay_mask=matrices_only), project_norm_ball(3.0, where=['a*', 'b*']))"
    )


def halved(parameter):
    return parameter / 2


@pytest.mark.parametrize(
    ("make", "right"),
    [
        (lambda: ps.optimizers.lbfgs(history=3), "lbfgs(history=3)"),
        (lambda: ps.optimizers.lbfgs(), "lbfgs()"),
        (lambda: ps.sgd(torch.tensor(0.5)), "sgd(torch.tensor(0.5, dtype=torch.float32))"),
        (lambda: ps.sgd(nn.Parameter(torch.tensor(0.5))), "sgd(torch.tensor(0.5, dtype=torch.float32))"),
        (lambda: ps.sgd(torch.tensor(0.5, device="meta")), "sgd(<tensor () torch.float32>)"),
        (lambda: transforms.project(halved), "project(halved)"),
        (lambda: transforms.project(torch.relu), "project(relu)"),
        (lambda: transforms.project(functools.partial(torch.clamp, min=0.0)), "project(partial(clamp, min=0.0))"),
        (
            lambda: optimizers.inject_hyperparams(functools.partial(ps.adamw, eps=1e-6), rate=0.1, betas=(0.9, RATE)),
            f"inject_hyperparams(partial(adamw, eps=1e-06), rate=0.1, betas=(0.9, {RATE!r}))",
        ),
        (
            lambda: transforms.partition({"a": ps.sgd(0.1), "b": optimizers.swa(ps.sgd(0.2))}, {"a.*": "a", "*": "b"}),
            "partition({'a': sgd(0.1), 'b': swa(sgd(0.2))}, {'a.*': 'a', '*': 'b'})",
        ),
        (lambda: transforms.partition({"weights": ps.sgd(1)}, transforms.by_kind(nn.Linear(1, 1))), "by_kind(Linear)"),
        (lambda: optimizers.muon(0.02, ns_dtype=torch.float64), "muon(0.02, ns_dtype=torch.float64)"),
    ],
)
def test_what_a_repr_says(make, right):
    assert right in repr(make())


def test_json_holds_numbers_exactly_and_says_what_is_what():
    rate, decay = 0.1 + 0.2, torch.tensor(1 / 3, dtype=torch.float64)
    config = ps.adamw(RATE, eps=rate, weight_decay=decay, decay_mask=ps.matrices_only).config
    arguments = json.loads(json.dumps(config.as_json()))["arguments"]
    assert arguments["eps"] == rate
    assert arguments["betas"] == [0.9, 0.999]
    assert arguments["weight_decay"] == {"tensor": 1 / 3, "dtype": "float64"}
    assert arguments["decay_mask"] == {"function": "purestep.optimizers.adam:matrices_only"}
    assert schedules.parse(arguments["rate"]["schedule"]) == RATE
    assert arguments["amsgrad"] is False


def test_json_of_what_json_has_not():
    plain = transforms.project(functools.partial(halved, by=math.inf)).config.as_json()["arguments"]["fn"]
    assert plain == {"partial": {"function": "test_config:halved"}, "given": [], "named": {"by": {"number": "inf"}}}
    own = Optimizer(ps.sgd(0.1).init, ps.sgd(0.1).update)
    assert ps.chain(own).config.as_json()["arguments"]["parts"] == [{"written": repr(own)}]
    shapes = transforms.project(functools.partial(halved, by=torch.ones(2, 3))).config.as_json()["arguments"]["fn"]
    assert shapes["named"]["by"] == {"shape": [2, 3], "dtype": "float32"}


def test_two_constructors_of_one_name_are_told_apart():
    average, of_gradients = optimizers.ema(ps.sgd(0.1), 0.9).config, transforms.ema(0.9).config
    assert average.name == of_gradients.name == "ema"
    assert average.as_json()["module"] != of_gradients.as_json()["module"]


def test_ones_own_and_a_changed_copy_have_no_config():
    def init(params):
        return params

    own = Optimizer(init, ps.sgd(0.1).update)
    assert own.config is None
    assert repr(own) == (
        "Optimizer(init=test_ones_own_and_a_changed_copy_have_no_config.<locals>.init, update=leafwise.<locals>.update)"
    )
    changed = dataclasses.replace(ps.sgd(0.1), init=init)  # it is no longer what the call made
    assert changed.config is None


def test_recording_ones_own_leaves_what_others_hold_alone():
    shared = ps.sgd(0.1)

    @updates.recorded
    def mine(times: int = 1) -> Optimizer:
        """What it does."""
        return shared

    assert repr(mine(times=2)) == "mine(2)"
    assert repr(shared) == "sgd(0.1)"
    assert mine.__doc__ == "What it does."


def test_updates_compare_and_hash_as_before():
    optimizer = ps.adamw(torch.tensor(0.1), decay_mask=ps.matrices_only)
    assert optimizer == optimizer
    assert hash(optimizer) == hash(optimizer)
    assert ps.sgd(0.1) != ps.sgd(0.1)  # closures of their own


def test_a_config_reads_no_tensor_until_it_is_asked():
    def size(rate):
        optimizer = ps.chain(ps.clip_by_global_norm(rate), ps.adamw(rate))
        assert "<tensor () torch.float32>" in repr(optimizer)
        assert optimizer.config.as_json()["arguments"]["parts"][1]["arguments"]["rate"] == {
            "shape": [],
            "dtype": "float32",
        }
        return rate * 2

    assert torch.vmap(size)(torch.tensor([0.1, 0.2])).shape == (2,)


def test_an_optimizer_of_torch_has_the_config_of_what_it_becomes():
    model = nn.Linear(2, 1)
    optimizer, _ = optimizers.from_torch(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5), model)
    assert repr(optimizer).startswith("sgd(0.1, momentum=0.5")


@pytest.mark.parametrize("make", [ps.adamw, lambda rate: optimizers.inject_hyperparams(ps.adamw, rate=rate)])
def test_an_update_is_what_it_was_without_recording(make):
    plain = ps.adamw.__wrapped__(0.1)
    context = ps.UpdateContext(torch.tensor(0), ps.random.key(0))
    grads = PARAMS.apply(torch.ones_like)
    optimizer = make(0.1)
    got, _ = optimizer.update(grads, optimizer.init(PARAMS), PARAMS, context)
    right, _ = plain.update(grads, plain.init(PARAMS), PARAMS, context)
    assert all(torch.equal(got[name], right[name]) for name in PARAMS.keys())  # noqa: SIM118


def test_a_tensor_as_a_hyperparameter_has_its_derivative():
    def moved(rate: Tensor) -> Tensor:
        optimizer = ps.sgd(rate)
        context = ps.UpdateContext(torch.tensor(0), ps.random.key(0))
        after, _ = optimizer.update(PARAMS.apply(torch.ones_like), optimizer.init(PARAMS), PARAMS, context)
        return after["weight"].sum()

    assert torch.func.grad(moved)(torch.tensor(0.1)) == -6
