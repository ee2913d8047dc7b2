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
from purestep._config import Config as Config
from purestep._config import Recorded
from purestep._config import recorded as recorded

Tree = TensorDictBase


class UpdateContext(NamedTuple):
    """What an update may read besides gradients, state and parameters.

    Attributes:
        step: int64, 0-d: updates applied so far. Schedules read it.
        seed_key: the state's random key, the same at every step: draw from ``key`` instead.
        loss: the loss of the batch, 0-d, or ``None`` where nobody computed one.
        calls: int64, 0-d: steps attempted so far; ``None`` where there is no count.
        aux: the states of the train state's machines by name, before this update; ``None`` where there are none.
    """

    step: Tensor
    seed_key: Tensor
    loss: Tensor | None = None
    calls: Tensor | None = None
    aux: Tree | None = None

    @property
    def key(self) -> Tensor:
        """A random key of this update alone, int64, ``(2,)``; computed when it is asked for."""
        calls = self.step if self.calls is None else self.calls
        return random.fold_in(random.call_key(self.seed_key, calls), 0)


@dataclass(frozen=True)
class FromContext:
    """A hyperparameter that is read from more than the step, such as a machine's state in ``context.aux``.

    Attributes:
        function: ``context -> 0-d tensor``, pure.
        written: its ``repr``.
    """

    function: Callable[[UpdateContext], Tensor]
    written: str

    def __call__(self, context: UpdateContext) -> Tensor:
        return self.function(context)

    def __repr__(self) -> str:
        return self.written


Hyperparameter = float | Tensor | Callable[[Any], Tensor] | FromContext


def _nothing(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
    return {}


def _as_they_are(params: Tree, state: Tree) -> Tree:
    return params


@dataclass(frozen=True, repr=False)
class GradientTransformation(Recorded):
    """A map from gradients to gradients with a state of its own.

    Attributes:
        init: ``(params) -> state``, a TensorDict (empty where nothing is kept).
        update: ``(grads, state, params, context) -> (grads, state)``, pure.
        hyperparams: ``(state, context) -> {name: 0-d tensor}``: what the update that led to ``state`` used or saw, for
            the metrics.
        config: the call that made it, a :class:`Config`, where :func:`recorded` wrote it down; ``None`` for one's own.
    """

    init: Callable[[Tree], TensorDict]
    update: Callable[[Tree, Tree, Tree, UpdateContext], tuple[Tree, Tree]]
    hyperparams: Callable[[Tree, UpdateContext], dict[str, Tensor]] = _nothing


@dataclass(frozen=True, repr=False)
class Optimizer(Recorded):
    """A map from gradients to new parameters with a state of its own.

    Attributes:
        init: ``(params) -> state``, a TensorDict.
        update: ``(grads, state, params, context) -> (params, state)``, pure.
        hyperparams: as in :class:`GradientTransformation`.
        eval_params: ``(params, state) -> params`` to evaluate with (an average of them, where the rule keeps one).
        config: as in :class:`GradientTransformation`.
    """

    init: Callable[[Tree], TensorDict]
    update: Callable[[Tree, Tree, Tree, UpdateContext], tuple[Tree, Tree]]
    hyperparams: Callable[[Tree, UpdateContext], dict[str, Tensor]] = _nothing
    eval_params: Callable[[Tree, Tree], Tree] = _as_they_are


@dataclass(frozen=True, repr=False)
class Projection(Recorded):
    """A map from parameters to parameters that follows an optimizer in a chain, and keeps nothing.

    Attributes:
        project: ``(params, context) -> params``, pure.
        check: ``params -> None``: raises where such parameters cannot be projected.
        config: as in :class:`GradientTransformation`.
    """

    project: Callable[[Tree, UpdateContext], Tree]
    check: Callable[[Tree], None]


@recorded
def chain(*parts: GradientTransformation | Optimizer | Projection) -> Any:
    """Apply gradient transformations from left to right, then the optimizer that closes them, then projections.

    The state is a TensorDict with one entry for each part, ``"0"``, ``"1"``, ...; a projection's is empty. What is
    evaluated is what the optimizer says, of parameters that were projected; a projection has no look at an average that
    the optimizer keeps. So a wrapper that averages goes around the chain.

    Returns:
        An :class:`Optimizer` where one closes the transformations, a :class:`GradientTransformation` otherwise.

    Raises:
        ValueError: no parts, an optimizer before a transformation or another optimizer, a projection that follows none.
        TypeError: a part that is none of the three.
    """
    last = _check_parts(parts)

    def init(params: Tree) -> TensorDict:
        states = {}
        for i, part in enumerate(parts):
            if isinstance(part, Projection):
                part.check(params)
            states[str(i)] = TensorDict({}, []) if isinstance(part, Projection) else part.init(params)
        return TensorDict(states, batch_size=[])

    def update(grads: Tree, state: Tree, params: Tree, context: UpdateContext) -> tuple[Tree, Tree]:
        tree, after = grads, {}
        for i, part in enumerate(parts):
            if isinstance(part, Projection):
                tree, after[str(i)] = part.project(tree, context), state[str(i)]
            else:
                tree, after[str(i)] = part.update(tree, state[str(i)], params, context)
        return tree, TensorDict(after, batch_size=state.batch_size)

    def hyperparams(state: Tree, context: UpdateContext) -> dict[str, Tensor]:
        used: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            if not isinstance(part, Projection):
                for name, value in part.hyperparams(state[str(i)], context).items():
                    used[name if name not in used else f"{name}.{i}"] = value
        return used

    closing = parts[last]
    if not isinstance(closing, Optimizer):
        return GradientTransformation(init, update, hyperparams)
    if evaluates_what_it_trains(closing):
        return Optimizer(init, update, hyperparams)

    def eval_params(params: Tree, state: Tree) -> Tree:
        return closing.eval_params(params, state[str(last)])

    return Optimizer(init, update, hyperparams, eval_params)


def evaluates_what_it_trains(optimizer: Optimizer) -> bool:
    """Whether an optimizer has no ``eval_params`` of its own."""
    return optimizer.eval_params is _as_they_are


def _check_parts(parts: tuple[Any, ...]) -> int:
    """Raise where these make no chain; return the place of the last one that is no projection."""
    if not parts:
        raise ValueError("chain needs at least one part, got none")
    for position, part in enumerate(parts):
        if not isinstance(part, (GradientTransformation, Optimizer, Projection)):
            raise TypeError(
                f"part {position} of chain must be a GradientTransformation, an Optimizer or a Projection, got "
                f"{part!r} of type {type(part).__name__}"
            )
    last = max((i for i, part in enumerate(parts) if not isinstance(part, Projection)), default=-1)
    for position, part in enumerate(parts):
        if isinstance(part, Optimizer) and position != last:
            raise ValueError(
                f"an optimizer must be the last part of chain but for projections, got one as part {position} of "
                f"{len(parts)}"
            )
        if isinstance(part, Projection) and (position < last or last < 0 or not isinstance(parts[last], Optimizer)):
            raise ValueError(f"a projection must follow an optimizer, got one as part {position} of {len(parts)}")
    return last


def check_hyperparameter(
    name: str,
    value: Any,
    *,
    minimum: float | None = 0.0,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
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
        _checks.number(name, value, minimum=minimum, maximum=maximum, above=above, below=below)


def check_flag(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless it is a bool: a string would be taken for true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


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
    if isinstance(value, FromContext):
        return value(context)
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
