"""Projections: what parameters are brought back to after an optimizer, as ``chain(..., optimizer, projection)``.

The first parameters are not projected: a chain projects what an update leads to.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from purestep import _tree, updates
from purestep.transforms._choosing import Mask, chosen_in, chosen_of
from purestep.transforms.clipping import norms, shrinking
from purestep.updates import Hyperparameter, Projection, Tree, UpdateContext


@updates.recorded
def project(fn: Callable[[Tensor], Tensor], *, where: Mask | None = None) -> Projection:
    """Apply a function to each parameter after the update.

    Args:
        fn: ``parameter -> parameter``, pure, of the same shape and dtype. Its derivative is its own.
        where: which parameters: a shell pattern over their names, several, or a function
            ``(name, parameter) -> bool``; ``None`` is all.

    Raises:
        TypeError, ValueError: ``fn`` is no function, ``where`` is none; from ``init`` and ``update``, a mask that
            chooses nothing, and a result of another shape or dtype.
    """
    if not callable(fn):
        raise TypeError(f"fn must be a function parameter -> parameter, got {fn!r}")

    def projected(names: list[str], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        after = [fn(leaf) for leaf in p]
        for name, old, new in zip(names, p, after, strict=True):
            if not isinstance(new, Tensor) or (new.shape, new.dtype) != (old.shape, old.dtype):
                got = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else repr(new)
                raise ValueError(
                    f"fn must keep shape and dtype: {name!r} must be {tuple(old.shape)} {old.dtype}, got {got}"
                )
        return after

    return _projection(projected, where)


@updates.recorded
def project_nonnegative(*, where: Mask | None = None) -> Projection:
    r"""Bring parameters back to at least zero, the nearest such point: :math:`\theta \leftarrow \max(\theta, 0)`.

    Not smooth at 0, where the derivative taken is 1.

    Args:
        where: as in :func:`project`.

    Raises:
        TypeError, ValueError: as :func:`project`.
    """
    return _projection(lambda names, p, context: [leaf.clamp(min=0) for leaf in p], where)


@updates.recorded
def project_norm_ball(radius: Hyperparameter, *, per_leaf: bool = False, where: Mask | None = None) -> Projection:
    r"""Bring parameters back into the ball of a radius around zero, the nearest point of it.

    .. math:: \theta \leftarrow \theta \, \min\!\left(1, \frac{r}{\lVert \theta \rVert}\right), \qquad r = \text{radius}

    Not smooth on the sphere, where the derivative taken is the identity's, as it is at zero. Optax has it as
    ``projection_l2_ball``.

    Args:
        radius: r, a number above 0, a 0-d tensor, or a schedule.
        per_leaf: each leaf into a ball of its own, instead of all of them together into one.
        where: as in :func:`project`; the norm is that of the chosen parameters.

    Raises:
        TypeError, ValueError: ``radius`` that is not above 0, ``per_leaf`` is no bool; as :func:`project`.
    """
    updates.check_hyperparameter("radius", radius, minimum=None, above=0)
    updates.check_flag("per_leaf", per_leaf)

    def projected(names: list[str], p: list[Tensor], context: UpdateContext) -> list[Tensor]:
        bound = updates.now(radius, context)
        pairs = zip(p, norms(p, per_leaf=per_leaf), strict=True)
        return [(leaf * shrinking(norm, bound)).to(leaf.dtype) for leaf, norm in pairs]

    return _projection(projected, where)


def _projection(fn: Callable[[list[str], list[Tensor], UpdateContext], list[Tensor]], where: Mask | None) -> Projection:
    choose = None if where is None else chosen_in("where", where)

    def chosen(params: Tree) -> list[str]:
        return list(params.keys()) if choose is None else list(chosen_of(choose, params))

    def check(params: Tree) -> None:
        chosen(params)

    def run(params: Tree, context: UpdateContext) -> Tree:
        names = chosen(params)
        after = fn(names, [params[name] for name in names], context)
        return _tree.overlay(params, _tree.named(names, after, params))

    return Projection(run, check)
