"""Steps by the gradient's sign alone: Rprop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purestep import _checks, updates
from purestep.optimizers._leafwise import After, Part, leafwise, zeros
from purestep.updates import Hyperparameter, Optimizer


@updates.recorded
def rprop(
    rate: Hyperparameter = 0.01,
    *,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50.0),
    maximize: bool = False,
) -> Optimizer:
    """Resilient backpropagation, bit for bit ``torch.optim.Rprop(foreach=False)`` in eager mode on CPU.

    With g the gradient, g' the one kept, γ the rate, and for each entry::

        Δ ← γ at the first update
        Δ ← Δη₊ where gg' > 0, Δη₋ where gg' < 0, kept within step_sizes
        g ← 0 where gg' < 0
        θ ← θ - sign(g)Δ
        g' ← g

    Source: Riedmiller & Braun, `A direct adaptive method for faster backpropagation learning
    <https://doi.org/10.1109/ICNN.1993.298623>`_ (1993), in the form without backtracking. It is meant for whole
    batches: the noise of small ones changes the signs. The rate is that of the first update alone, as in torch.
    Optax applies each step one call late.

    State: ``prev`` (g') and ``step_size`` (Δ), as the parameters: two numbers a parameter; ``count`` (int64, 0-d).
    Not smooth where g or gg' is zero: there and everywhere the derivative of a sign is taken as zero, so derivatives by
    the gradients are zero; those by the rate are what differences give while no sign changes. Half of the derivative at
    a bound of step_sizes.

    Args:
        rate: a number of at least 0, a 0-d tensor, or a schedule, of which the first value counts.
        etas: η₋ above 0 and below 1, and η₊ above 1.
        step_sizes: the least and the largest Δ, in order.
        maximize: ascend instead.

    Raises:
        TypeError, ValueError, KeyError: as :func:`adamw`.
    """
    shrink, grow = _pair("etas", etas)
    _checks.number("etas[0]", shrink, above=0, below=1)
    _checks.number("etas[1]", grow, above=1)
    least, largest = _pair("step_sizes", step_sizes)
    _checks.number("step_sizes[0]", least, minimum=0)
    _checks.number("step_sizes[1]", largest, minimum=least)

    def advance(part: Part, h: Any) -> After:
        after: dict[str, list[Tensor]] = {"prev": [], "step_size": []}
        params = []
        each = zip(part.p, part.g, part.kept["prev"], part.kept["step_size"], strict=True)
        for p, g, prev, size in each:
            sign = g.mul(prev).sign()
            back = sign < 0
            # A sign that is NaN stays one, and so does what it makes.
            factor = sign.masked_fill(sign > 0, grow).masked_fill(back, shrink).masked_fill(sign == 0, 1.0)
            size = (_first(size, part.t, h.rate) * factor).clamp(least, largest)
            g = g.masked_fill(back, 0.0)
            params.append(torch.addcmul(p, g.sign(), size, value=-1))
            after["prev"].append(g)
            after["step_size"].append(size)
        return After(params, after, {})

    def _first(size: Tensor, t: Any, rate: Any) -> Tensor:
        if not isinstance(t, Tensor) and t != 1:
            return size
        first = rate.to(size.dtype).expand_as(size) if isinstance(rate, Tensor) else torch.full_like(size, rate)
        return torch.where(t == 1, first, size) if isinstance(t, Tensor) else first

    return leafwise(
        "rprop",
        advance,
        hyperparameters={"rate": rate},
        trees={"prev": zeros, "step_size": zeros},
        maximize=maximize,
    )


def _pair(name: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers, got {value!r}")
    return value[0], value[1]
