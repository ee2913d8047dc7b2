"""A schedule made of a function as it is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from purestep.schedules._decorator import schedule


@schedule
def function(step: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    r"""``f(step)``, whatever it is.

    .. math:: s(t) = f(t)

    ``f`` is pure and elementwise, as a formula under the decorator ``schedule`` is: it gets the step as a float64
    tensor of any shape, and returns one like it. The decorator is to be preferred: it gives the function a name, and
    its numbers become hyperparameters.

    A function that a module has at its top is written down by its name, as ``function(f='package.module:name')``, which
    may also be given in the place of the function, if the module is imported already. A lambda or an inner function has
    no name that it could be found by: its ``repr`` says where it stands, and ``to_config`` raises.

    Equivalents: ``torch.optim.lr_scheduler.LambdaLR(optimizer, f)`` is ``base * function(f)``, where torch's ``f`` is
    called with an int.
    """
    return f(step)
