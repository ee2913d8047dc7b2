"""Laws of update rules: pure, stable in shape and dtype, vmappable, scheduled, and differentiable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import _tree
from purestep.laws._compare import (
    Comparison,
    LawViolation,
    check_same_bits,
    named_leaves,
    named_tensors,
    norm,
)
from purestep.laws._report import LawDoesNotApplyError, LawReport, check_laws, name_of, on_smallest
from purestep.laws._trees import SHAPES, context_at, make_grads, make_params, wave
from purestep.laws._world import Untouched, copies, guarded_world
from purestep.optimizers import sgd
from purestep.updates import GradientTransformation, Optimizer, Tree, chain

_PURE = "law 1 (pure)"
_EXECUTION = "law 3 (execution-invariant)"
_DIFFERENTIABLE = "law 8 (differentiable)"
OPTIMIZER_LAWS = ("pure", "form", "rates", "ensemble", "finite", "derivatives")
_FORM = "a stable form"
_STEPS = 3
_RATE = 0.125
_BY_RATE = "the derivative by the rate"
# Central differences in float64 are good to about h² and 1e-16 / h.
_DIFFERENCE, _DIFFERENCE_TOLERANCE = 2.0**-18, 1e-6

Make = Callable[[Any], Optimizer]


def check_optimizer(
    optimizer: Optimizer | Make,
    *,
    dtypes: Iterable[torch.dtype] = (torch.float64, torch.float32, torch.bfloat16),
    smooth: bool = True,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Assert what every optimizer keeps, on a small set of parameters: a scalar, vectors, matrices, an empty one.

    - ``pure``: ``init`` and ``update`` give the same bits twice and touch neither their arguments nor the global state;
    - ``form``: names, shapes and dtypes of the parameters and of the state are the same after each update, values stay
      finite, and ``hyperparams`` gives 0-d tensors;
    - ``rates``: a number, a 0-d tensor and a schedule give the same update (where a function is given);
    - ``ensemble``: under ``vmap`` it gives what it gives for each member, to 1e-10;
    - ``finite``: gradients through three updates, by the parameters, by the gradients' scale and by the rate, are
      finite, also where the gradient is zero;
    - ``derivatives``: they are equal to finite differences.

    A law that does not hold is tried on each parameter alone.

    Args:
        optimizer: the optimizer, or a function of the rate that makes it, such as ``ps.adamw`` or
            ``lambda rate: ps.adamw(rate, amsgrad=True)``, which shows more.
        dtypes: of the parameters, one run of the first two laws for each; at least one.
        smooth: compare with finite differences too; ``False`` for a rule that is not smooth (a sign, a rounding).
        laws, skip: names of the laws to look at, and of those to leave out.

    Returns:
        The report, where all laws hold.

    Raises:
        LawViolation: with the report: which laws do not hold, on what, and by how much.
        LawDoesNotApplyError: a law in ``laws`` that has nothing to look at.
        TypeError: no optimizer, nor a function that makes one.
        ValueError: names of no law, or no dtypes.
    """
    make, by_rate = _maker(optimizer), not isinstance(optimizer, Optimizer)
    return _check(name_of("optimizer", optimizer), make, by_rate, tuple(dtypes), smooth, laws, skip)


def check_transformation(
    transformation: GradientTransformation,
    *,
    dtypes: Iterable[torch.dtype] = (torch.float64, torch.float32, torch.bfloat16),
    smooth: bool = True,
    laws: Sequence[str] | None = None,
    skip: Sequence[str] = (),
) -> LawReport:
    """Assert the same of a gradient transformation, closed with SGD; the arguments are :func:`check_optimizer`'s.

    Raises:
        LawViolation, LawDoesNotApplyError, ValueError: as :func:`check_optimizer`.
        TypeError: no :class:`purestep.GradientTransformation`.
    """
    if not isinstance(transformation, GradientTransformation):
        raise TypeError(f"transformation must be a GradientTransformation, got {transformation!r}")
    name = name_of("transformation", transformation)
    return _check(name, lambda rate: chain(transformation, sgd(rate)), True, tuple(dtypes), smooth, laws, skip)


def _check(
    subject: str,
    make: Make,
    by_rate: bool,
    dtypes: tuple[torch.dtype, ...],
    smooth: bool,
    laws: Sequence[str] | None,
    skip: Sequence[str],
) -> LawReport:
    if not dtypes:
        raise ValueError("dtypes must be at least one, or nothing is looked at, got none")

    def form(params: Tree, grads: Tree) -> None:
        _check_form(make(_RATE), params, grads)
        _check_form(make(_RATE), params, _tree.zeros_like(grads))

    def rates(params: Tree, grads: Tree) -> None:
        if not by_rate:
            raise LawDoesNotApplyError("an optimizer is given, and no function of the rate that makes it")
        _check_rates(make, params, grads)

    def derivatives(params: Tree, grads: Tree) -> None:
        if not smooth:
            raise LawDoesNotApplyError("smooth=False is given")
        _check_differences(make, params, grads, by_rate=by_rate)

    bundle = {
        "pure": _on_trees(lambda params, grads: _check_pure(make(_RATE), params, grads), dtypes),
        "form": _on_trees(form, dtypes),
        "rates": _on_trees(rates),
        "ensemble": _on_trees(lambda params, grads: _check_vmapped(make(_RATE), params, grads)),
        "finite": _on_trees(lambda params, grads: _check_finite(make, params, grads, by_rate=by_rate)),
        "derivatives": _on_trees(derivatives),
    }
    return check_laws(subject, bundle, laws=laws, skip=skip)


def _on_trees(
    law: Callable[[Tree, Tree], None], dtypes: tuple[torch.dtype, ...] = (torch.float64,)
) -> Callable[[], None]:
    """Return the law on parameters and gradients of each dtype; where it does not hold, on one parameter alone."""

    def check() -> None:
        for dtype in dtypes:
            trees = (make_params(dtype), make_grads(dtype))
            alone = (
                (f"parameter {name!r} alone, {dtype}", tuple(_tree.select(tree, [name]) for tree in trees))
                for name in SHAPES
            )
            on_smallest(lambda pair: law(*pair), trees, alone)()

    return check


def _maker(optimizer: Any) -> Make:
    if isinstance(optimizer, Optimizer):
        return lambda rate: optimizer
    if not callable(optimizer) or not isinstance(optimizer(_RATE), Optimizer):
        raise TypeError(f"optimizer must be an Optimizer or a function of the rate that makes one, got {optimizer!r}")
    return optimizer


def _run(optimizer: Optimizer, params: Tree, grads: Tree) -> tuple[Tree, Tree]:
    """Take a few updates with gradients that shrink, so that moments and counts have something to differ by."""
    state: Tree = optimizer.init(params)
    for step in range(_STEPS):
        shrunk = _tree.map_leaves(lambda g, factor=0.5**step: g * factor, grads)
        params, state = optimizer.update(shrunk, state, params, context_at(step))
    return params, state


def _check_pure(optimizer: Optimizer, params: Tree, grads: Tree) -> None:
    with guarded_world(_PURE, "init"):
        state = optimizer.init(params)
    check_same_bits(
        _PURE,
        named_leaves(optimizer.init(params), "state"),
        copies(named_leaves(state, "state")),
        names=("at a second init", "at the first"),
    )
    context = context_at(0)
    arguments = {"grads": grads, "state": state, "params": params, "context": context}
    watched = Untouched(
        _PURE, lambda: {p: leaf for name, tree in arguments.items() for p, leaf in named_leaves(tree, name).items()}
    )
    results = []
    for seed in (None, 20_251):
        with guarded_world(_PURE, "update", seed=seed):
            result = optimizer.update(grads, state, params, context)
        watched.check("update")
        results.append(copies(named_leaves(result, "result")))
    check_same_bits(_PURE, results[1], results[0], names=("at a second update", "at the first"))


def _check_form(optimizer: Optimizer, params: Tree, grads: Tree) -> None:
    state = optimizer.init(params)
    forms = {"params": _form(params, "params"), "state": _form(state, "state")}
    context = context_at(0)
    for step in range(_STEPS):
        context = context_at(step)
        params, state = optimizer.update(grads, state, params, context)
        for name, tree in (("params", params), ("state", state)):
            check_same_bits(_FORM, _form(tree, name), forms[name], names=(f"after update {step + 1}", "before"))
        _check_all_finite(_FORM, named_tensors(params, "params"), f"after {step + 1} updates of finite gradients")
    for name, value in optimizer.hyperparams(state, context).items():
        if not isinstance(value, Tensor) or value.dim() != 0:
            raise LawViolation(f"{_FORM}: hyperparams must give 0-d tensors, got {name!r}: {value!r}")


def _form(tree: Tree, name: str) -> dict[str, str]:
    return {path: f"{t.dtype} of shape {tuple(t.shape)}" for path, t in named_tensors(tree, name).items()}


def _check_rates(make: Make, params: Tree, grads: Tree) -> None:
    right, _ = _run(make(_RATE), params, grads)
    kinds = {
        "a 0-d tensor": torch.tensor(_RATE, dtype=torch.float64),
        "a schedule": lambda step: torch.full_like(torch.as_tensor(step), _RATE, dtype=torch.float64),
    }
    for kind, rate in kinds.items():
        got, _ = _run(make(rate), params, grads)
        comparison = Comparison(_EXECUTION, f"with {kind} as its rate", "with a number", 1e-12)
        _compare(comparison, got, right, params)
    falling, _ = _run(make(lambda step: _RATE * 0.5 ** torch.as_tensor(step, dtype=torch.float64)), params, grads)
    if all(torch.equal(falling[name], leaf) for name, leaf in _tree.as_dict(right).items()):
        raise LawViolation(f"{_EXECUTION}: a schedule that falls gives the update of its first value: it is not called")


def _compare(comparison: Comparison, got: Tree, right: Tree, before: Tree) -> None:
    change = {name: right[name] - leaf for name, leaf in before.items()}
    comparison.tree(
        named_tensors(got, "params"),
        named_tensors(right, "params"),
        scale=norm(change),
        of="the norm of the whole update",
        stored=True,
    )


def _check_vmapped(optimizer: Optimizer, params: Tree, grads: Tree) -> None:
    members = [
        (params, grads),
        (_tree.map_leaves(lambda p: 0.5 - p, params), _tree.map_leaves(lambda g: g * 3.0, grads)),
    ]
    stacked = [torch.stack(list(trees)) for trees in zip(*members, strict=True)]
    together, _ = torch.vmap(lambda p, g: _run(optimizer, p, g))(*stacked)
    for position, (mine, own_grads) in enumerate(members):
        alone, _ = _run(optimizer, mine, own_grads)
        comparison = Comparison(_EXECUTION, f"as member {position} of an ensemble", "alone", 1e-10)
        _compare(comparison, together[position], alone, mine)


def _outcome(
    make: Make, params: Tree, grads: Tree, by_rate: bool, rate: Tensor, scale: Tensor, offset: Tensor
) -> Tensor:
    """A number that depends on everything: what some updates lead to, by rate, gradients and first parameters."""
    start, scaled = _tree.map_leaves(lambda p: p + offset, params), _tree.map_leaves(lambda g: g * scale, grads)
    after, _ = _run(make(rate if by_rate else _RATE), start, scaled)
    return torch.stack(
        [(leaf * wave(tuple(leaf.shape), 1.0, leaf.dtype)).sum() for leaf in _tree.as_dict(after).values()]
    ).sum()


def _check_finite(make: Make, params: Tree, grads: Tree, *, by_rate: bool) -> None:
    for name, given in (("a gradient of zero", _tree.zeros_like(grads)), ("a gradient", grads)):
        when = f"through {_STEPS} updates with {name}"
        _check_all_finite(_DIFFERENTIABLE, _slopes(make, params, given, by_rate=by_rate), when)
        # The scale of a gradient of zero changes nothing: ask for the derivative by each entry as well.
        moving = {k: g.clone().requires_grad_() for k, g in _tree.as_dict(given).items()}
        after, _ = _run(make(_RATE), params, TensorDict(moving, batch_size=[]))
        outcome = torch.stack([leaf.sum() for leaf in _tree.as_dict(after).values()]).sum()
        if not outcome.requires_grad:  # differences tell whether that is right
            continue
        each = torch.autograd.grad(outcome, list(moving.values()), allow_unused=True, materialize_grads=True)
        by_entry = {f"the derivative by grads[{k!r}]": d for k, d in zip(moving, each, strict=True)}
        _check_all_finite(_DIFFERENTIABLE, by_entry, when)


def _slopes(make: Make, params: Tree, grads: Tree, *, by_rate: bool) -> dict[str, Tensor]:
    start = _starting_point()

    def outcome(*values: Tensor) -> Tensor:
        return _outcome(make, params, grads, by_rate, *values)

    slopes = torch.func.grad(outcome, argnums=tuple(range(len(start))))(*start.values())
    return {name: slope for name, slope in zip(start, slopes, strict=True) if by_rate or name != _BY_RATE}


def _starting_point() -> dict[str, Tensor]:
    """What the outcome of some updates depends on, by the name of the derivative, at the value it has."""
    names = (_BY_RATE, "the derivative by the gradients' scale", "the derivative by the first parameters")
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(names, (_RATE, 1.0, 0.0), strict=True)}


def _check_differences(make: Make, params: Tree, grads: Tree, *, by_rate: bool) -> None:
    for name, slope in _slopes(make, params, grads, by_rate=by_rate).items():
        ends = []
        for sign in (1, -1):
            moved = {n: v + sign * _DIFFERENCE * (n == name) for n, v in _starting_point().items()}
            ends.append(float(_outcome(make, params, grads, by_rate, *moved.values())))
        difference = (ends[0] - ends[1]) / (2 * _DIFFERENCE)
        if not math.isclose(float(slope), difference, rel_tol=_DIFFERENCE_TOLERANCE, abs_tol=_DIFFERENCE_TOLERANCE):
            raise LawViolation(
                f"{_DIFFERENTIABLE}: {name} through {_STEPS} updates is {float(slope):.9g}, and finite differences "
                f"give {difference:.9g}",
                by=f"{abs(float(slope) - difference):.2g} beside {difference:.2g}",
            )


def _check_all_finite(law: str, tensors: dict[str, Tensor], when: str) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            wrong = tensor[~torch.isfinite(tensor)].flatten()[0].item()
            raise LawViolation(f"{law}: {name} is {wrong} {when}", by=f"{wrong}")
