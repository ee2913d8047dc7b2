"""The four steps that everything else is built from.

``loss_step`` is a forward, ``grad_step`` its undivided gradient, ``update_step`` what an optimizer makes of a gradient,
and ``train_step`` exactly the composition of the last two. ``eval_step`` is the forward in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

from purestep import _tree
from purestep._accumulate import Accumulation, Weights, read_options
from purestep._forward import Forward, Metrics, Objective
from purestep.functional import Trainable
from purestep.gradients import Gradient
from purestep.nonfinite import Guard
from purestep.objectives import Loss, Mean
from purestep.precision import DynamicLossScale
from purestep.state import TrainState, check_optimizer
from purestep.updates import Optimizer, UpdateContext

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def loss_step(
    model: nn.Module, objective: Objective, *, training: bool = True, precision: str = "float32"
) -> Callable[[TrainState, Any], tuple[Loss | Mean, TensorDict, Metrics]]:
    """Return the pure forward ``(state, batch) -> (loss, buffers, metrics)``.

    Args:
        model: any ``nn.Module``; its structure is copied, it is never modified.
        objective: ``(model, batch) -> loss`` or ``(model, batch, context) -> loss``, where the loss is a
            :class:`Mean`, a :class:`Loss`, or a bare 0-d tensor, alone or with a dict of metrics. ``model`` inside is
            the user's own module with the state's tensors bound to it.
        training: the mode of the forward, as in :class:`BoundModule`.
        precision: as in :func:`grad_step`.
    """
    forward = Forward(model, objective, training=training, precision=precision)

    def loss_step(state: TrainState, batch: Any) -> tuple[Loss | Mean, TensorDict, Metrics]:
        forward.check(state)
        (loss, metrics), buffers = forward(_tree.as_dict(state.params), state.buffers, batch, state, bare=True)
        return loss, TensorDict(buffers, batch_size=state.batch_size), metrics

    return loss_step


def eval_step(
    model: nn.Module, objective: Objective, *, optimizer: Optimizer | None = None, precision: str = "float32"
) -> Callable[[TrainState, Any], Metrics]:
    """Return ``(state, batch) -> metrics``: the forward in evaluation mode, without gradients.

    Args:
        model, objective: as in :func:`loss_step`.
        optimizer: the one that trains, where it evaluates with other parameters than it trains (an average of them).
        precision: as in :func:`grad_step`.

    Returns:
        A pure function whose metrics are the objective's own and ``"loss"``; ``merge`` pools those of several batches.
    """
    forward = Forward(model, objective, training=False, precision=precision)
    if optimizer is not None:
        check_optimizer(optimizer)

    def eval_step(state: TrainState, batch: Any) -> Metrics:
        forward.check(state)
        params = state.params
        if optimizer is not None:
            params = _tree.overlay(params, optimizer.eval_params(params, state.opt_state))
        with torch.no_grad():
            (loss, metrics), _ = forward(_tree.as_dict(params), state.buffers, batch, state, bare=True)
        return {"loss": loss, **metrics}

    return eval_step


def grad_step(
    model: nn.Module,
    objective: Objective,
    *,
    accumulate: int | str = 1,
    microbatch: int | None = None,
    weights: Weights | None = None,
    loop: str = "python",
    trainable: Trainable = None,
    precision: str = "float32",
) -> Callable[[TrainState, Any], Gradient]:
    """Return the pure function ``(state, batch) -> Gradient`` of totals and weights, not divided.

    However a batch is cut into micro-batches, the gradient is the whole batch's, for an objective that is a sum over
    examples. Buffers pass from one micro-batch to the next, in order. Peak memory is one micro-batch and one gradient
    for each term of the loss.

    Args:
        model, objective: as in :func:`loss_step`.
        accumulate: the number of micro-batches a batch is cut into along dimension 0; their lengths differ by at most
            one. ``"given"``: the batch is cut already, and is a list of batches of any lengths, or a nesting with
            dimensions (micro-batches, examples, ...).
        microbatch: instead, the number of examples in a micro-batch; the last one may have fewer.
        weights: a function of the batch that returns the weight of each of the loss's terms over all of it, 0-d
            (``None`` for a term of :func:`once`), before any forward: with them there is one gradient and one backward
            pass a micro-batch, whatever the number of terms. A gradient of such weights is divided already.
        loop: ``"python"`` writes a compiled step's graph out for every micro-batch; with ``"scan"`` it has one body
            whatever their number, so that compiling takes no longer for more of them. Where their lengths differ, the
            longer come first. A graph with a scan may be vmapped over states, and cannot be differentiated (torch has
            no rule for it); eagerly, and where ``ps.compile`` meets a transform, both loops are the same.
        trainable: the parameters that get gradients: ``None`` for those with ``requires_grad``, a shell pattern over
            dotted names (``"head.*"``), several, or a function ``(name, parameter) -> bool``. The others are
            constants and cost no gradient work.
        precision: ``"float32"`` casts nothing; with ``"bfloat16"`` and ``"float16"`` the forward and backward run
            under torch's autocast, and parameters and gradients stay what they are.

    Raises:
        TypeError, ValueError: at once for bad arguments; at the call for a state of another model, a batch that
            cannot be cut, an objective that returns what cannot be pooled, and ``weights`` that are not the
            objective's (in a compiled step, where values cannot be read, the gradient is NaN then).
    """
    options = read_options(accumulate, microbatch, weights, loop, trainable, precision)
    accumulation = Accumulation(model, objective, options, divide=False)

    def grad_step(state: TrainState, batch: Any) -> Gradient:
        return accumulation(state, batch)

    return grad_step


def update_step(
    optimizer: Optimizer, *, on_nonfinite: str = "raise", loss_scale: DynamicLossScale | None = None
) -> Callable[[TrainState, Gradient], tuple[TrainState, Metrics]]:
    """Return the pure function ``(state, Gradient) -> (state, metrics)``: one division, and one update.

    The metrics are the gradient's (with ``"loss"``), and what the optimizer used: ``"learning_rate"`` and others.

    Args:
        optimizer: such as ``ps.adamw(rate)``.
        on_nonfinite: what is done where the loss or the gradient is NaN or infinite (a window of weight zero
            included). ``"raise"``: :class:`NonFiniteError`, and the state that was given is whole, donated or not; on
            CUDA that waits for the device once a step. Under ``vmap`` nothing can raise: the replica's state stays as
            it is, and the metric ``"nonfinite"`` is 1. ``"skip"``: nothing changes but ``calls``, the count
            ``aux["skipped"]``, which is reported, and the loss scale; without waiting.
        loss_scale: lets ``aux["loss_scale"]`` grow and back off. ``"raise"`` then raises only at the scale's minimum,
            and a gradient that was not finite at a larger one is skipped.

    Raises:
        TypeError: no :class:`Optimizer`, or no :class:`DynamicLossScale`.
        ValueError: no such policy; at the call, where the state's optimizer state belongs to another set of trainable
            parameters, or where ``state.aux`` lacks what the policy counts in.
        NonFiniteError: at the call, as said.
    """
    check_optimizer(optimizer)
    guard = Guard(on_nonfinite, loss_scale)

    def update_step(state: TrainState, gradient: Gradient) -> tuple[TrainState, Metrics]:
        if not isinstance(gradient, Gradient):
            raise TypeError(f"gradient must be a Gradient, as ps.grad_step returns it, got {type(gradient).__name__}")
        guard.check(state)
        grads = gradient.mean()
        loss = gradient.metrics["loss"]
        context = UpdateContext(state.step, state.key, loss.value(), state.calls, state.aux)
        params, opt_state = _update(optimizer, grads, state, _tree.select(state.params, _tree.as_dict(grads)), context)
        after = state.replace(
            params=_tree.overlay(state.params, params),
            buffers=gradient.buffers,
            opt_state=opt_state,
            step=state.step + 1,
            calls=state.calls + 1,
        )
        after, kept = guard.decide(state, after, grads, loss)
        used = {**optimizer.hyperparams(opt_state, context), **kept}
        if taken := sorted(set(used) & set(gradient.metrics)):
            raise ValueError(f"a metric of the objective is named {taken[0]!r}, which the step reports: rename it")
        return after, {**gradient.metrics, **used}

    return update_step


def _update(optimizer: Optimizer, grads: Any, state: TrainState, params: Any, context: UpdateContext) -> Any:
    try:
        return optimizer.update(grads, state.opt_state, params, context)
    except KeyError as error:
        said = str(error.args[0]) if error.args else ""
        if not said.startswith('key "'):  # no TensorDict's: the optimizer's own affair
            raise
        name = said.split('"')[1]
        raise ValueError(
            f"state.opt_state does not belong to this optimizer and these trainable parameters: {name!r} is on one "
            "side only. Give ps.init_state the optimizer and the trainable= that ps.train_step has"
        ) from error


def train_step(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    *,
    accumulate: int | str = 1,
    microbatch: int | None = None,
    weights: Weights | None = None,
    loop: str = "python",
    trainable: Trainable = None,
    precision: str = "float32",
    on_nonfinite: str = "raise",
    loss_scale: DynamicLossScale | None = None,
) -> Step:
    """Return the pure function ``(state, batch) -> (state, metrics)``: ``update_step`` after ``grad_step``.

    Args:
        model: any ``nn.Module``; its structure is copied, it is never modified. Several models (a teacher and a
            student) are one ``nn.ModuleDict``.
        objective: ``(model, batch) -> loss`` or ``(model, batch, context) -> loss``, as in :func:`loss_step`.
        optimizer: such as ``ps.adamw(rate)``, or ``ps.chain(...)`` that ends in one.
        accumulate, microbatch, weights, loop, trainable, precision: as in :func:`grad_step`. ``step`` counts updates,
            whatever the number of micro-batches.
        on_nonfinite, loss_scale: as in :func:`update_step`; the backward pass is multiplied by the scale.

    Returns:
        A pure function. Its metrics are the objective's (each mergeable by :func:`merge`), ``"loss"``, and what the
        optimizer used, such as ``"learning_rate"``, a 0-d tensor. Its attribute ``optimizer`` is the optimizer.

    Raises:
        TypeError, ValueError, NonFiniteError: as :func:`grad_step` and :func:`update_step`.
    """
    options = read_options(accumulate, microbatch, weights, loop, trainable, precision)
    gradient = Accumulation(model, objective, options, divide=True, scaled=loss_scale is not None)
    update = update_step(optimizer, on_nonfinite=on_nonfinite, loss_scale=loss_scale)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return update(state, gradient(state, batch))

    train_step.optimizer = optimizer  # type: ignore[attr-defined]  # for a checkpoint to record
    return train_step
