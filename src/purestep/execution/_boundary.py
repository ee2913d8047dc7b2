"""Between a user's nested arguments and a compiled graph's flat lists of tensors.

Flat lists cost Dynamo a few microseconds to check where a TensorClass costs tens, and a form that was seen before needs
no check of its structure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from purestep import _flat
from purestep.state import DonatedStateError, TrainState


class Flat(NamedTuple):
    """The leaves of a state, in the order of its form."""

    leaves: list[Tensor]
    form: Any


def flatten_state(state: Any) -> Flat:
    """Return a state's leaves and form; of a state that a donating step returned, without walking it again."""
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
    if isinstance(vars(state)["_tensordict"], _Donated):
        state.params  # raises  # noqa: B018
    known = vars(state).get("_purestep_flat")
    # A locked TensorDict cannot get other leaves, so what was true when it was returned still is.
    if known is not None and state.is_locked:
        return known
    leaves, form = _flat.flatten(state, "state")
    return Flat(leaves, form)


def check_owned(state: TrainState, flat: Flat) -> None:
    """Raise ``ValueError`` where two leaves share storage: a write to one would change the other."""
    if "_purestep_flat" in vars(state):
        return
    owners: dict[int, int] = {}
    for position, leaf in enumerate(flat.leaves):
        if leaf.numel() and owners.setdefault(leaf.untyped_storage().data_ptr(), position) != position:
            raise ValueError(
                f"state must not hold the same storage twice where it is donated (two entries of shape "
                f"{tuple(leaf.shape)} do): give state.clone(), whose entries are apart"
            )


def hand_over(state: TrainState, flat: Flat, reader: str) -> TrainState:
    """Return a state over the same TensorDicts, and leave the given one unreadable."""
    after = object.__new__(type(state))
    vars(after).update(vars(state))
    if "_purestep_flat" not in vars(after):
        after.lock_()
        vars(after)["_purestep_flat"] = flat
    vars(state)["_tensordict"] = _Donated(reader)
    vars(state).pop("_purestep_flat", None)
    return after


class _Donated:
    """Stands where a donated state's tensors were."""

    def __init__(self, reader: str) -> None:
        object.__setattr__(self, "_reader", reader)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        reader = object.__getattribute__(self, "_reader")
        raise DonatedStateError(
            f"this state was donated to the compiled step {reader!r}, and its storage holds the next state now: use "
            "the state that the step returned, or give the step state.clone() where the old one is still needed"
        )


def check_same_form(before: Flat, after: Flat, step_name: str) -> None:
    """Raise ``ValueError`` where a step's new state cannot take the old one's place."""
    same = before.form == after.form and all(
        a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        for a, b in zip(before.leaves, after.leaves, strict=True)
    )
    if not same:
        changed = [
            f"{tuple(a.shape)} {a.dtype} became {tuple(b.shape)} {b.dtype}"
            for a, b in zip(before.leaves, after.leaves, strict=False)
            if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device)
        ]
        raise ValueError(
            f"with donate=True the new state of {step_name!r} must have the entries, shapes, dtypes and devices of the "
            f"old one: {changed[0] if changed else 'its entries differ'}"
        )


def moved(before: list[Tensor], after: list[Tensor], step_name: str) -> tuple[tuple[int, int], ...]:
    """Return ``(to, source)`` for each new leaf that is the old leaf of another place (a target network's parameters,
    a value kept for one step).

    Raises:
        ValueError: a new leaf that is a part of an old one.
    """
    places = {leaf.untyped_storage()._cdata: place for place, leaf in enumerate(before) if leaf.numel()}
    found = []
    for to, leaf in enumerate(after):
        source = places.get(leaf.untyped_storage()._cdata)
        if source is None or leaf is before[to]:
            continue
        old = before[source]
        if (leaf.shape, leaf.stride(), leaf.storage_offset()) != (old.shape, old.stride(), old.storage_offset()):
            raise ValueError(
                f"with donate=True a new entry of the state must not be a view of an old one: {step_name!r} returns "
                f"one of shape {tuple(leaf.shape)}; clone it in the step"
            )
        if source != to:
            found.append((to, source))
    return tuple(found)


def fake(values: list[Tensor], mode: Any) -> list[Tensor]:
    """Return stand-ins without storage for tensors."""
    return [mode.from_tensor(value.detach()) for value in values]
