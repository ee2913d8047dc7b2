"""Different updates for different parameters: partition, masked, freeze."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from tensordict import TensorDict
from torch import Tensor

from purestep import _checks, _tree, updates
from purestep.transforms._choosing import Known, Mask, chosen_in, chosen_of, matched, matching
from purestep.transforms._leaves import paired
from purestep.updates import GradientTransformation, Optimizer, Tree, UpdateContext

Labels = Mapping[str, str] | Callable[[str, Tensor], Any]
Part = TypeVar("Part", GradientTransformation, Optimizer)
Groups = dict[str, tuple[str, ...]]


@updates.recorded
def partition(parts: Mapping[str, Part], labels: Labels) -> Part:
    """Give each parameter to the part of its label: every parameter exactly once.

    .. code-block:: python

        partition({"backbone": adamw(1e-5), "head": adamw(1e-3)}, {"backbone.*": "backbone", "head.*": "head"})
        partition({"weights": adamw(1e-3), "biases": sgd(1e-2), "norms": sgd(1e-2)}, by_kind(model))

    A part sees its parameters alone: a norm that it clips by is theirs. For rules that treat each leaf by itself, a
    partition into parts of one rule is that rule, bit for bit.

    State: a TensorDict by label, each the state of its part over its parameters. What parts report has the label behind
    it, ``"learning_rate.head"``.

    Args:
        parts: by label: gradient transformations, or optimizers. Chains and partitions may be parts.
        labels: a dict from shell patterns over the parameters' names to labels, or a function
            ``(name, parameter) -> label``, such as :func:`by_kind` gives for a model.

    Returns:
        An :class:`Optimizer` where the parts are, a :class:`GradientTransformation` otherwise.

    Raises:
        TypeError, ValueError: parts of both kinds or of neither, labels that are none or of no part; from ``init`` and
            ``update``: a pattern that matches nothing, a parameter with two labels or with none, a part without
            parameters.
    """
    moves, members = _are_optimizers(parts), dict[str, Any](parts)
    assign = _by_pattern(labels, parts) if isinstance(labels, Mapping) else _by_function(labels, parts)

    def init(params: Tree) -> TensorDict:
        groups = assign(params, True)
        return TensorDict({label: members[label].init(_tree.select(params, groups[label])) for label in members}, [])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, _, _ = paired(grads, params)
        leaves: dict[str, Tensor] = {}
        states = {}
        for label, own in assign(params, True).items():
            given = _tree.select(grads, own), state[label], _tree.select(params, own)
            after, states[label] = members[label].update(*given, context)
            leaves.update(_tree.as_dict(after))
        return _tree.named(names, [leaves[name] for name in names], params), TensorDict(states, state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {
            f"{name}.{label}": value
            for label, part in members.items()
            for name, value in part.hyperparams(state[label], context).items()
        }

    def eval_params(params: Tree, state: Tree) -> Tree:
        changed: dict[str, Tensor] = {}
        for label, own in assign(params, False).items():
            if not own:
                continue
            changed.update(_tree.as_dict(members[label].eval_params(_tree.select(params, own), state[label])))
        return _tree.overlay(params, TensorDict(changed, params.batch_size))

    made: Any = GradientTransformation(init, update, hyperparams)
    if moves:
        plain = all(updates.evaluates_what_it_trains(part) for part in members.values())
        made = Optimizer(init, update, hyperparams) if plain else Optimizer(init, update, hyperparams, eval_params)
    return made


@updates.recorded
def masked(update: Part, mask: Mask) -> Part:
    """Apply an update to the parameters that a mask chooses, and to no other.

    With a gradient transformation the other gradients pass as they are; with an optimizer the other parameters stay as
    they are, to the bit. The state is the update's own, over the chosen parameters alone.

    Args:
        update: a gradient transformation or an optimizer.
        mask: a shell pattern over the parameters' names, several, or a function ``(name, parameter) -> bool``, such as
            :func:`purestep.matrices_only`.

    Raises:
        TypeError, ValueError: ``update`` is neither, ``mask`` is none; from ``init`` and ``update``, a mask that
            chooses nothing, or a pattern that matches nothing.
    """
    _check_update("update", update)
    return cast(Part, _masked(update, chosen_in("mask", mask)))


@updates.recorded
def freeze(optimizer: Part, patterns: Mask) -> Part:
    """Keep some parameters as they are, whatever the optimizer does: decay, momentum, or what it evaluates with.

    The same as :func:`masked` with the other parameters: the frozen ones take no memory in the state. Their gradients
    are computed all the same; ``trainable=`` of a step spares that too.

    Args:
        optimizer: an optimizer, or a gradient transformation, which then lets the gradients of these parameters pass.
        patterns: those that stay: a shell pattern over names, several, or a function ``(name, parameter) -> bool``.

    Raises:
        TypeError, ValueError: as :func:`masked`; also where no parameter is left.
    """
    _check_update("optimizer", optimizer)
    choose = chosen_in("patterns", patterns)

    def others(names: Sequence[str], parameters: Sequence[Tensor]) -> tuple[str, ...]:
        frozen = set(choose(names, parameters))
        if len(frozen) == len(names):
            raise ValueError(f"patterns={patterns!r} freezes every parameter: {_checks.listed(names)}")
        return tuple(name for name in names if name not in frozen)

    return cast(Part, _masked(optimizer, others))


def _masked(part: Any, choose: Callable[[Sequence[str], Sequence[Tensor]], tuple[str, ...]]) -> Any:
    moves = isinstance(part, Optimizer)

    def init(params: Tree) -> TensorDict:
        return part.init(_tree.select(params, chosen_of(choose, params)))

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        paired(grads, params)
        own = chosen_of(choose, params)
        after, state = part.update(_tree.select(grads, own), state, _tree.select(params, own), context)
        return _tree.overlay(params if moves else grads, after), state

    if not isinstance(part, Optimizer):
        return GradientTransformation(init, update, part.hyperparams)

    def eval_params(params: Tree, state: Tree) -> Tree:
        own = _tree.select(params, chosen_of(choose, params))
        return _tree.overlay(params, part.eval_params(own, state))

    if updates.evaluates_what_it_trains(part):
        return Optimizer(init, update, part.hyperparams)
    return Optimizer(init, update, part.hyperparams, eval_params)


def _by_pattern(labels: Mapping[str, str], parts: Mapping[str, Any]) -> Callable[[Tree, bool], Groups]:
    for pattern, label in labels.items():
        if not isinstance(pattern, str):
            raise TypeError(f"labels must have shell patterns over names as its keys, got {pattern!r}")
        _check_label(f"labels[{pattern!r}]", label, parts)

    def find(names: tuple[str, ...]) -> Groups:
        owners: dict[str, list[str]] = {name: [] for name in names}
        for pattern in labels:
            for name in matching("the pattern of labels", pattern, names):
                owners[name].append(pattern)
        if left := [name for name, found in owners.items() if not found]:
            raise ValueError(f"labels leaves out {_checks.listed(left)}: every parameter needs one label")
        for name, found in owners.items():
            if len({labels[pattern] for pattern in found}) > 1:
                both = " and ".join(f"{labels[pattern]!r} by {pattern!r}" for pattern in found)
                raise ValueError(f"labels gives {name!r} more than one label: {both}")
        return _grouped({name: labels[found[0]] for name, found in owners.items()}, parts)

    def loosely(names: tuple[str, ...]) -> Groups:
        # Parameters that nobody trains are evaluated too, and may have no label.
        own = {name: label for pattern, label in labels.items() for name in matched(pattern, names)}
        return _grouped({name: own[name] for name in names if name in own}, parts, empty=True)

    strict, loose = Known(find), Known(loosely)
    return lambda params, strictly: (strict if strictly else loose)(tuple(params.keys()))


def _by_function(labels: Any, parts: Mapping[str, Any]) -> Callable[[Tree, bool], Groups]:
    if not callable(labels):
        raise TypeError(
            "labels must be a dict from patterns to labels or a function (name, parameter) -> label, got "
            f"{labels!r} of type {type(labels).__name__}"
        )

    def assign(params: Tree, strictly: bool) -> Groups:
        given = {name: labels(name, parameter) for name, parameter in _tree.as_dict(params).items()}
        if not strictly:
            return _grouped({name: label for name, label in given.items() if label in parts}, parts, empty=True)
        for name, label in given.items():
            _check_label(f"the label of {name!r}", label, parts)
        return _grouped(given, parts)

    return assign


def _grouped(labels: Mapping[str, str], parts: Mapping[str, Any], *, empty: bool = False) -> Groups:
    groups: Groups = {label: tuple(name for name, own in labels.items() if own == label) for label in parts}
    if bare := [label for label, names in groups.items() if not names and not empty]:
        raise ValueError(f"no parameter has the label {_checks.listed(bare)} of parts")
    return groups


def _are_optimizers(parts: Any) -> bool:
    """Whether all parts are optimizers; raise where they are not of one kind."""
    if not isinstance(parts, Mapping) or not parts:
        raise TypeError(f"parts must be a dict from labels to updates, with at least one, got {parts!r}")
    for label, part in parts.items():
        if not isinstance(label, str):
            raise TypeError(f"parts must have strings as its labels, got {label!r}")
        _check_update(f"parts[{label!r}]", part)
    kinds = {isinstance(part, Optimizer): label for label, part in parts.items()}
    if len(kinds) > 1:
        raise ValueError(
            f"parts must all be optimizers or all be gradient transformations, got an optimizer as {kinds[True]!r} and "
            f"a transformation as {kinds[False]!r}: close it, as in chain(transformation, sgd(rate))"
        )
    return True in kinds


def _check_update(argument: str, update: Any) -> None:
    if not isinstance(update, (GradientTransformation, Optimizer)):
        raise TypeError(
            f"{argument} must be a GradientTransformation or an Optimizer, got {update!r} of type "
            f"{type(update).__name__}"
        )


def _check_label(argument: str, label: Any, parts: Mapping[str, Any]) -> None:
    if label not in parts:
        near = _checks.near_misses(str(label), parts)
        raise ValueError(f"{argument} must be one of {_checks.listed(parts)}, which parts has, got {label!r}{near}")
