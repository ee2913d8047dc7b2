"""The two kinds of update, and how they chain.

A gradient transformation maps gradients to gradients; an optimizer maps them to new parameters. The split is what makes
bit-for-bit parity with ``torch.optim`` possible: AdamW's decay multiplies the parameter before the step, which no
additive update reproduces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.autograd import forward_ad

from purestep import _checks, _tree, random

Hyperparameter = float | Tensor | Callable[[Any], Tensor]
Tree = TensorDictBase


class UpdateContext(NamedTuple):
    """What an update may read besides gradients, state and parameters.

    Attributes:
        step: int64, 0-d: updates applied so far. Schedules read it.
        seed_key: the state's random key, the same at every step: draw from ``key`` instead.
        loss: the loss of the batch, 0-d, or ``None`` where nobody computed one.
        calls: int64, 0-d: steps attempted so far; ``None`` where there is no count.
    """

    step: Tensor
    seed_key: Tensor
    loss: Tensor | None = None
    calls: Tensor | None = None

    @property
    def key(self) -> Tensor:
        """A random key of this update alone, int64, ``(2,)``; computed when it is asked for."""
        calls = self.step if self.calls is None else self.calls
        return random.site_key(self.seed_key, calls, random.UPDATE_SITE)


def _nothing(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
    return {}


def _as_they_are(params: Tree, state: Tree) -> Tree:
    return params


@dataclass(frozen=True)
class GradientTransformation:
    """A map from gradients to gradients with a state of its own.

    Attributes:
        init: ``(params) -> state``, a TensorDict (empty where nothing is kept).
        update: ``(grads, state, params, context) -> (grads, state)``, pure.
        hyperparams: ``(state, context) -> {name: 0-d tensor}``: what the update that led to ``state`` used or saw, for
            the metrics.
    """

    init: Callable[[Tree], TensorDict]
    update: Callable[[Tree, Tree, Tree, UpdateContext], tuple[Tree, Tree]]
    hyperparams: Callable[[Tree, UpdateContext], dict[str, Tensor]] = _nothing


@dataclass(frozen=True)
class Optimizer:
    """A map from gradients to new parameters with a state of its own.

    Attributes:
        init: ``(params) -> state``, a TensorDict.
        update: ``(grads, state, params, context) -> (params, state)``, pure.
        hyperparams: as in :class:`GradientTransformation`.
        eval_params: ``(params, state) -> params`` to evaluate with (an average of them, where the rule keeps one).
    """

    init: Callable[[Tree], TensorDict]
    update: Callable[[Tree, Tree, Tree, UpdateContext], tuple[Tree, Tree]]
    hyperparams: Callable[[Tree, UpdateContext], dict[str, Tensor]] = _nothing
    eval_params: Callable[[Tree, Tree], Tree] = _as_they_are


def chain(*parts: GradientTransformation | Optimizer) -> Any:
    """Apply gradient transformations from left to right, and then the optimizer that closes them.

    The state is a TensorDict with one entry for each part, ``"0"``, ``"1"``, ...

    Returns:
        An :class:`Optimizer` where the last part is one, a :class:`GradientTransformation` otherwise.

    Raises:
        ValueError: no parts, or an optimizer that is not the last.
        TypeError: a part that is neither.
    """
    if not parts:
        raise ValueError("chain needs at least one part, got none")
    for position, part in enumerate(parts):
        if not isinstance(part, (GradientTransformation, Optimizer)):
            raise TypeError(
                f"part {position} of chain must be a GradientTransformation or an Optimizer, got {part!r} of type "
                f"{type(part).__name__}"
            )
        if isinstance(part, Optimizer) and position != len(parts) - 1:
            raise ValueError(f"an optimizer must be the last part of chain, got one as part {position} of {len(parts)}")

    def init(params: Tree) -> TensorDict:
        return TensorDict({str(i): part.init(params) for i, part in enumerate(parts)}, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        after = {}
        for i, part in enumerate(parts):
            grads, after[str(i)] = part.update(grads, state[str(i)], params, context)
        return grads, TensorDict(after, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        used: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            for name, value in part.hyperparams(state[str(i)], context).items():
                used[name if name not in used else f"{name}.{i}"] = value
        return used

    last = parts[-1]
    if not isinstance(last, Optimizer):
        return GradientTransformation(init, update, hyperparams)

    def eval_params(params: Tree, state: Tree) -> Tree:
        return last.eval_params(params, state[str(len(parts) - 1)])

    return Optimizer(init, update, hyperparams, eval_params)


def check_hyperparameter(
    name: str, value: Any, *, minimum: float | None = 0.0, above: float | None = None, below: float | None = None
) -> None:
    """Check a hyperparameter that may be a number, a tensor or a schedule; only a number has a value to check."""
    if isinstance(value, Tensor):
        if value.dim() != 0:
            raise ValueError(f"{name} must be a number, a 0-d tensor or a schedule, got shape {tuple(value.shape)}")
    elif not callable(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(
                f"{name} must be a number, a 0-d tensor or a schedule (step -> rate), got {value!r} of type "
                f"{type(value).__name__}"
            )
        _checks.number(name, value, minimum=minimum, above=above, below=below)


def is_zero(value: Hyperparameter) -> bool:
    """Whether a hyperparameter is the number zero, which leaves a term out; a tensor or a schedule keeps it."""
    return isinstance(value, (int, float)) and value == 0


def check_real(params: Tree, owner: str) -> None:
    """Raise ``TypeError`` where a parameter is not of a real floating-point dtype."""
    for name, parameter in _tree.as_dict(params).items():
        if not parameter.is_floating_point():
            raise TypeError(
                f"{owner} needs parameters of a real floating-point dtype, got {parameter.dtype} as {name!r}: freeze "
                "it with trainable=, or keep its real and imaginary parts"
            )


def resolve(value: Hyperparameter, context: UpdateContext) -> float | Tensor:
    """Return a hyperparameter's value at this step: a schedule is called, a number or tensor stays."""
    return value(context.step) if callable(value) else value


def now(value: Hyperparameter, context: UpdateContext) -> float | Tensor:
    """Return a hyperparameter's value at this step, as a number where :func:`plain` may read it."""
    return value if isinstance(value, float) else plain(resolve(value, context))


def as_tensor(value: float | Tensor, like: Tensor) -> Tensor:
    """Return a hyperparameter as a 0-d float64 tensor (float32 on MPS, which has no float64) on ``like``'s device."""
    if isinstance(value, Tensor):
        return value
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    return torch.full((), value, dtype=dtype, device=like.device)


def plain(value: float | Tensor) -> float | Tensor:
    """Return a 0-d tensor's number where reading it stalls nothing and hides nothing; otherwise the tensor.

    torch's own optimizers compute with Python floats, and parity with their bits needs the same: ``torch.add(alpha=)``
    rounds once where a product and a sum round twice. A derivative, a trace, vmap or another device needs the tensor.
    """
    if not isinstance(value, Tensor):
        return value
    readable = (
        type(value) is Tensor  # neither fake nor distributed
        and value.device.type == "cpu"
        and not value.requires_grad
        and not _tree.is_transformed()
        and forward_ad._current_level < 0
    )
    return value.item() if readable else value


def add_scaled(tensor: Tensor, direction: Tensor, scale: float | Tensor) -> Tensor:
    """Return ``tensor + scale · direction`` in ``tensor``'s dtype, rounded once where ``scale`` is a number.

    A compiled graph gets the product: inductor fuses ``add(mm, alpha=)`` into an ``addmm`` without the alpha (torch
    2.13, pytorch#167313 is its sibling), which is silently another number.
    """
    if isinstance(scale, Tensor) or torch.compiler.is_compiling():
        return tensor + (scale * direction).to(tensor.dtype)
    return tensor.add(direction, alpha=scale)


def squares(tree: Tree) -> Tensor:
    """Return the sum of the squares of each leaf, ``(leaves,)``, summed in float32 at least."""
    return torch.stack([wide(leaf).square().sum() for leaf in _tree.as_dict(tree).values()])


def wide(leaf: Tensor) -> Tensor:
    """Return a tensor of half precision in float32, and others as they are."""
    return leaf.to(torch.float32) if leaf.dtype in (torch.float16, torch.bfloat16) else leaf


def safe_sqrt(tensor: Tensor) -> Tensor:
    """Return ``√tensor`` with the same bits, and the derivative zero at zero instead of infinity, which times zero is
    NaN."""
    if not _differentiable(tensor):
        return torch.sqrt(tensor)
    zero = tensor == 0
    # A product with zero keeps the sign of a negative zero, and has the derivative zero in either mode.
    return torch.where(zero, tensor * 0, torch.sqrt(torch.where(zero, torch.ones_like(tensor), tensor)))


def _differentiable(tensor: Tensor) -> bool:
    """Whether somebody may differentiate through this: only then are the passes of a safe root worth their time."""
    return tensor.requires_grad or _tree.is_transformed() or forward_ad._current_level >= 0
