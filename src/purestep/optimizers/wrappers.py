"""Optimizers made of optimizers: no update that is not finite, slow parameters, hyperparameters in the state."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep import _checks, _each, _tree, updates
from purestep.state import check_optimizer
from purestep.transforms._leaves import paired, zero_count
from purestep.updates import GradientTransformation, Hyperparameter, Optimizer, Tree, UpdateContext

HYPERPARAMS = "hyperparams"


@updates.recorded
def apply_if_finite(optimizer: Optimizer) -> Optimizer:
    """Leave out each update that is not finite: parameters and state stay as they are, and it is counted.

    An update is left out where a gradient is NaN or infinite, or where a parameter or an entry of the state that was
    finite would not be so after it (a second moment that overflows, say, from a gradient that did not). Optax's wrapper
    of this name looks at gradients alone, and lets NaN through after ``max_consecutive_errors``; here none ever gets
    through, since nothing that is not finite is to be applied in silence. How many were left out is reported:
    ``"nonfinite_updates"``, and ``"nonfinite_in_a_row"``, by which a loop may stop.

    A step's own ``on_nonfinite`` looks at the gradient before any optimizer: with ``"raise"`` and ``"skip"`` no such
    gradient comes here. This is for what the optimizer itself makes of a finite one, for one part of a partition, and
    for loops of one's own. ``context.step`` goes on counting, while the optimizer's own counts do not.

    Where an update is applied, its derivative is the optimizer's; where it is left out, the identity's (a gradient
    that was itself computed from what is differentiated by may still bring in NaN from there).

    State: ``inner``, the optimizer's own; ``skipped`` and ``in_a_row``, int64, 0-d.

    Raises:
        TypeError: no optimizer.
    """
    check_optimizer(optimizer)

    def init(params: Tree) -> TensorDict:
        counts = {"skipped": zero_count(params), "in_a_row": zero_count(params)}
        return TensorDict({"inner": optimizer.init(params), **counts}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        finite = _finite(g)
        if updates.plain(finite) is False:  # where that can be read
            return params, counted(state, state["inner"], finite)
        # Zeros in its place, because the derivative of what is not chosen would be NaN times zero.
        if isinstance(updates.plain(finite), Tensor):
            g = [torch.where(finite, leaf, torch.zeros_like(leaf)) for leaf in g]
        after, inner = optimizer.update(_tree.named(names, g, grads), state["inner"], params, context)
        holds = finite & _stay_finite([params, state["inner"]], [after, inner])
        if updates.plain(holds) is False:
            after, inner = params, state["inner"]
        elif isinstance(updates.plain(holds), Tensor):
            after, inner = _tree.choose(holds, after, params), _tree.choose(holds, inner, state["inner"])
        return after, counted(state, inner, holds)

    def counted(state: Tree, inner: Tree, holds: Tensor) -> TensorDict:
        failed = (~holds).to(torch.int64)
        counts = {"skipped": state["skipped"] + failed, "in_a_row": (state["in_a_row"] + failed) * failed}
        return TensorDict({"inner": inner, **counts}, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        counts = {"nonfinite_updates": state["skipped"], "nonfinite_in_a_row": state["in_a_row"]}
        return {**optimizer.hyperparams(state["inner"], context), **counts}

    return _rewrapped(optimizer, init, update, hyperparams)


@updates.recorded
def lookahead(optimizer: Optimizer, *, every: int = 5, alpha: Hyperparameter = 0.5) -> Optimizer:
    r"""Let an optimizer run ahead, and every few updates go part of the way to where it is, from where it left.

    .. math:: \varphi \leftarrow \varphi + \alpha (\theta - \varphi), \quad \theta \leftarrow \varphi
        \qquad \text{after each } k\text{-th update}, \; k = \text{every}

    Source: Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", 2019, https://arxiv.org/abs/1907.08610.
    The optimizer's own state (its momentum) goes on. Evaluated are the slow parameters φ, which begin at the first
    ones. With ``alpha=1`` training is the optimizer's own, bit for bit. Linear in θ and φ, so as smooth as the
    optimizer.

    State: ``inner``, the optimizer's own; ``slow`` (φ, as the parameters: one number a parameter); ``count`` (int64,
    0-d).

    Args:
        optimizer: one that evaluates with the parameters it trains.
        every: k, updates, at least 1.
        alpha: α, a number above 0 and at most 1, a 0-d tensor, or a schedule.

    Raises:
        TypeError, ValueError: no optimizer, or one that evaluates with other parameters; ``every`` or ``alpha`` out of
            its range.
    """
    check_optimizer(optimizer)
    if not updates.evaluates_what_it_trains(optimizer):
        raise ValueError(
            "optimizer must evaluate with the parameters that it trains, got one that keeps others to evaluate with: "
            "put the average around it, as in ema(lookahead(optimizer))"
        )
    _checks.integer("every", every, minimum=1)
    updates.check_hyperparameter("alpha", alpha, minimum=None, above=0, maximum=1)

    def init(params: Tree) -> TensorDict:
        slow = _tree.map_leaves(torch.clone, params)
        return TensorDict({"inner": optimizer.init(params), "slow": slow, "count": zero_count(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        ahead, inner = optimizer.update(grads, state["inner"], params, context)
        names, share = list(ahead.keys()), updates.now(alpha, context)
        fast, slow = _tree.leaves(ahead, names), _tree.leaves(state["slow"], names)
        count = state["count"] + 1
        due = count % every == 0
        if updates.plain(due) is not False:  # where it can be read
            met = _each.arithmetic(fast, slow, share).lerp(slow, fast, share)
            fast, slow = ([torch.where(due, m, leaf) for m, leaf in zip(met, own, strict=True)] for own in (fast, slow))
        after = {"inner": inner, "slow": _tree.named(names, slow, params), "count": count}
        return _tree.named(names, fast, params), TensorDict(after, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return optimizer.hyperparams(state["inner"], context)

    def eval_params(params: Tree, state: Tree) -> Tree:
        return _tree.overlay(params, state["slow"])

    return Optimizer(init, update, hyperparams, eval_params)


@updates.recorded
def inject_hyperparams(factory: Callable[..., Any], /, **hyperparams: Any) -> Any:
    """Keep hyperparameters as tensors in the state, where they may be exchanged, differentiated by, and vmapped over.

    .. code-block:: python

        optimizer = inject_hyperparams(ps.adamw, rate=1e-3, betas=(0.9, 0.999), weight_decay=0.1)
        state = ps.init_state(model, optimizer, seed=0)
        state.opt_state["hyperparams"]["rate"]              # float64, 0-d; of betas: ["hyperparams"]["betas"]["0"]

    A tensor in the state wins over what is given here: each number given begins as one; a schedule has none, and holds
    until an entry of its name is put there. A tensor's value is not checked, and changing it recompiles nothing;
    putting an entry in for a schedule changes the state's form, so a compiled step compiles once more. Eagerly on the
    CPU a tensor that nobody differentiates by has the bits of its number.

    State: ``hyperparams``, the tensors by name (of a tuple a TensorDict of ``"0"``, ``"1"``, ...), and ``inner``, the
    state of what ``factory`` makes. What it reports and evaluates with is its own.

    Args:
        factory: a function of these hyperparameters that returns an optimizer or a gradient transformation. What is no
            hyperparameter (an ``eps``, a mask) is given before: ``functools.partial(ps.adamw, eps=1e-6)``.
        hyperparams: each a number, a 0-d tensor (of which the state has a copy), a schedule, or a tuple of these.

    Raises:
        TypeError, ValueError: ``factory`` makes no update, a hyperparameter that is none or that must not be a tensor;
            whatever ``factory`` says of their values; from ``update``, an entry of the state that is none of them.
    """
    if not callable(factory):
        raise TypeError(f"factory must be a function of the hyperparameters, such as ps.adamw, got {factory!r}")
    if not hyperparams:
        raise ValueError("inject_hyperparams needs at least one hyperparameter, such as rate=1e-3, got none")
    for name, value in hyperparams.items():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            _check_injectable(name, one)
    made = factory(**hyperparams)  # checks the values, which it could not of tensors
    if not isinstance(made, (GradientTransformation, Optimizer)):
        raise TypeError(f"factory must return an Optimizer or a GradientTransformation, got {made!r}")

    def build(kept: Tree) -> Any:
        _check_known("hyperparams", kept, hyperparams)
        return factory(**{name: _overridden(name, value, kept.get(name, None)) for name, value in hyperparams.items()})

    def init(params: Tree) -> TensorDict:
        kept = _tensors(hyperparams, zero_count(params))
        return TensorDict({HYPERPARAMS: kept, "inner": build(kept).init(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        kept = state[HYPERPARAMS]
        after, inner = build(kept).update(grads, state["inner"], params, context)
        return after, TensorDict({HYPERPARAMS: kept, "inner": inner}, batch_size=state.batch_size)

    def report(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return dict(build(state[HYPERPARAMS]).hyperparams(state["inner"], context))

    try:
        build(_tensors(hyperparams, torch.zeros(())))
    except TypeError as error:
        raise TypeError(
            "a hyperparameter here cannot be a tensor, so the state cannot keep it: give it before, as in "
            f"functools.partial(factory, eps=1e-6). The factory says: {error}"
        ) from error
    if isinstance(made, GradientTransformation):
        return GradientTransformation(init, update, report)
    if updates.evaluates_what_it_trains(made):
        return Optimizer(init, update, report)
    return Optimizer(init, update, report, lambda p, state: build(state[HYPERPARAMS]).eval_params(p, state["inner"]))


def _check_injectable(name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        if value.dim():
            raise ValueError(f"{name} must be a number, a 0-d tensor or a schedule, got shape {tuple(value.shape)}")
    elif isinstance(value, bool) or not (isinstance(value, (int, float)) or callable(value)):
        raise TypeError(
            f"{name} must be a number, a 0-d tensor, a schedule, or a tuple of these, got {value!r} "
            f"of type {type(value).__name__}: give it before, as in functools.partial(factory, {name}=...)"
        )


def _tensors(hyperparams: Mapping[str, Any], like: Tensor) -> TensorDict:
    """Return the first tensors: of numbers, and copies of tensors; none of schedules."""
    kept: dict[str, Any] = {}
    for name, value in hyperparams.items():
        if isinstance(value, (tuple, list)):
            kept[name] = _tensors({str(i): one for i, one in enumerate(value)}, like)
        elif not callable(value) or isinstance(value, Tensor):
            kept[name] = updates.as_tensor(value, like).to(like.device).clone()
    return TensorDict(kept, batch_size=[])


def _overridden(name: str, value: Any, kept: Any) -> Any:
    """Return a hyperparameter with what the state keeps of it in its place."""
    if kept is None:
        return value
    if not isinstance(value, (tuple, list)):
        return kept
    places = [str(i) for i in range(len(value))]
    if not isinstance(kept, TensorDictBase):
        raise TypeError(
            f"the state's hyperparams[{name!r}] must be a TensorDict of {_checks.listed(places)}, got "
            f"{type(kept).__name__}"
        )
    _check_known(f"hyperparams[{name!r}]", kept, places)
    return tuple(kept.get(place, one) for place, one in zip(places, value, strict=True))


def _check_known(argument: str, kept: Tree, known: Collection[str]) -> None:
    for name in kept.keys():  # noqa: SIM118 (a TensorDict iterates over its rows)
        if name not in known:
            near = _checks.near_misses(name, known)
            raise ValueError(f"the state's {argument} must be among {_checks.listed(known)}, got {name!r}{near}")


def _finite(leaves: list[Tensor]) -> Tensor:
    """Return whether all entries are finite, bool, 0-d."""
    full = [leaf for leaf in leaves if leaf.numel()]
    if full and isinstance(_each.arithmetic(full), _each.Foreach):
        return torch.isfinite(torch.stack(torch._foreach_norm(full, math.inf))).all()  # the largest does not overflow
    return torch.stack([torch.isfinite(leaf).all() for leaf in leaves]).all()


def _stay_finite(before: list[Any], after: list[Any]) -> Tensor:
    """Return whether each entry of some trees that was finite still is, bool, 0-d."""
    pairs = [pair for trees in zip(before, after, strict=True) for pair in _pairs(*trees)]
    new = [leaf for _, leaf in pairs]
    if not pairs:
        return torch.ones((), dtype=torch.bool)
    finite = _finite(new)
    if updates.plain(finite) is True:
        return finite
    return torch.stack([(torch.isfinite(leaf) | ~torch.isfinite(old)).all() for old, leaf in pairs]).all()


def _pairs(before: Any, after: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what is in the same place of two trees, where it is of a floating dtype and not the same tensor."""
    for name, leaf in after.items():
        old = before[name]
        if not isinstance(leaf, Tensor):
            yield from _pairs(old, leaf)
        elif leaf.is_floating_point() and leaf is not old:
            yield old, leaf


def _rewrapped(optimizer: Optimizer, init: Any, update: Any, hyperparams: Any) -> Optimizer:
    """Return an optimizer whose state has another's as ``inner``, and that evaluates with what that one does."""
    if updates.evaluates_what_it_trains(optimizer):
        return Optimizer(init, update, hyperparams)
    return Optimizer(init, update, hyperparams, lambda params, state: optimizer.eval_params(params, state["inner"]))
