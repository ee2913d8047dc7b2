"""A transformation of one's own from a plain function, and what becomes of entries that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep import _tree, updates
from purestep.transforms._leaves import paired, zero_count
from purestep.updates import GradientTransformation, Tree, UpdateContext


@updates.recorded
def stateless(fn: Callable[[Tree, Tree, UpdateContext], Tree]) -> GradientTransformation:
    """Return the transformation that applies a function and keeps nothing.

    .. code-block:: python

        def halved_biases(grads, params, context):
            return {name: g / 2 if name.endswith("bias") else g for name, g in grads.items()}

        optimizer = ps.chain(ps.transforms.stateless(halved_biases), ps.sgd(0.1))

    Args:
        fn: ``(grads, params, context) -> grads``, pure, of flat trees by the parameters' names; a dict will do as its
            result. Its derivative, and where it is not smooth, are its own.

    Raises:
        TypeError: ``fn`` is no function; from ``update``, a result that is no tree.
        ValueError: from ``update``, a result whose names or shapes are not the gradients'.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function (grads, params, context) -> grads, got {fn!r}")

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "stateless")
        return TensorDict({}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        return _tree.named(names, _checked(fn(grads, params, context), names, g), grads), state

    return GradientTransformation(init, update)


@updates.recorded
def zero_nonfinite() -> GradientTransformation:
    """Put zero in the place of each entry that is NaN or infinite, and count them.

    For a rule behind it the entry has no gradient at this update; the others have theirs. Nothing passes in silence:
    the counts are reported, as ``"zeroed_entries"`` and ``"zeroed_updates"``. A step whose ``on_nonfinite`` is
    ``"raise"`` or ``"skip"`` looks at the gradient before any optimizer, and never comes here with such an entry; what
    does come here is made by a transformation before this one, or by a loop of one's own. Linear in the entries that
    are finite; the derivative by the others is zero. (Optax's ``zero_nans`` leaves infinities, and says where without a
    count.)

    State: ``entries`` and ``updates``, int64, 0-d: the entries that were zeroed so far, and the updates that had any.
    """

    def init(params: Tree) -> TensorDict:
        updates.check_real(params, "zero_nonfinite")
        return TensorDict({"entries": zero_count(params), "updates": zero_count(params)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        names, g, _ = paired(grads, params)
        finite = [torch.isfinite(leaf) for leaf in g]
        zeroed = torch.stack([(~holds).sum() for holds in finite]).sum()
        after = [torch.where(holds, leaf, 0.0) for holds, leaf in zip(finite, g, strict=True)]
        counts = {"entries": state["entries"] + zeroed, "updates": state["updates"] + (zeroed > 0).to(torch.int64)}
        return _tree.named(names, after, grads), TensorDict(counts, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        return {"zeroed_entries": state["entries"], "zeroed_updates": state["updates"]}

    return GradientTransformation(init, update, hyperparams)


def _checked(result: Any, names: list[str], grads: list[Tensor]) -> list[Tensor]:
    """Return a function's result in the order of the names."""
    if not isinstance(result, (dict, TensorDictBase)):
        raise TypeError(f"fn must return gradients by name, a TensorDict or a dict, got {type(result).__name__}")
    found = set(result.keys())
    if found != set(names):
        name = min(found ^ set(names))
        raise ValueError(f"fn must return the names that it is given: {name!r} is {_side(name in found)}")
    leaves = [result[name] for name in names]
    for name, leaf, grad in zip(names, leaves, grads, strict=True):
        if not isinstance(leaf, Tensor) or (leaf.shape, leaf.dtype) != (grad.shape, grad.dtype):
            got = f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)
            raise ValueError(
                f"fn must keep shapes and dtypes: {name!r} must be {tuple(grad.shape)} {grad.dtype}, got {got}"
            )
    return leaves


def _side(extra: bool) -> str:
    return "too many" if extra else "missing"
