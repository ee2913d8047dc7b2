"""The four steps that everything else is built from.

``loss_step`` is a forward, ``grad_step`` its undivided gradient, ``update_step`` what an optimizer makes of a gradient,
and ``train_step`` exactly the composition of the last two. ``eval_step`` is the forward in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purestep import _checks, _tree
from purestep._forward import Forward, Metrics, Objective
from purestep.functional import Trainable, trainable_names
from purestep.gradients import Gradient, gradients_of_totals
from purestep.objectives import Bare, Loss, Mean
from purestep.state import TrainState, check_optimizer
from purestep.updates import Optimizer, UpdateContext

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def loss_step(
    model: nn.Module, objective: Objective, *, training: bool = True
) -> Callable[[TrainState, Any], tuple[Loss | Mean, TensorDict, Metrics]]:
    """Return the pure forward ``(state, batch) -> (loss, buffers, metrics)``.

    Args:
        model: any ``nn.Module``; its structure is copied, it is never modified.
        objective: ``(model, batch) -> loss`` or ``(model, batch, context) -> loss``, where the loss is a
            :class:`Mean`, a :class:`Loss`, or a bare 0-d tensor, alone or with a dict of metrics. ``model`` inside is
            the user's own module with the state's tensors bound to it.
        training: the mode of the forward, as in :class:`BoundModule`.
    """
    forward = Forward(model, objective, training=training)

    def loss_step(state: TrainState, batch: Any) -> tuple[Loss | Mean, TensorDict, Metrics]:
        forward.check(state)
        (loss, metrics), buffers = forward(_tree.as_dict(state.params), state.buffers, batch, state, bare=True)
        return loss, TensorDict(buffers, batch_size=state.batch_size), metrics

    return loss_step


def eval_step(
    model: nn.Module, objective: Objective, *, optimizer: Optimizer | None = None
) -> Callable[[TrainState, Any], Metrics]:
    """Return ``(state, batch) -> metrics``: the forward in evaluation mode, without gradients.

    Args:
        model, objective: as in :func:`loss_step`.
        optimizer: the one that trains, where it evaluates with other parameters than it trains (an average of them).

    Returns:
        A pure function whose metrics are the objective's own and ``"loss"``; ``merge`` pools those of several batches.
    """
    forward = Forward(model, objective, training=False)
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
    model: nn.Module, objective: Objective, *, accumulate: int = 1, trainable: Trainable = None
) -> Callable[[TrainState, Any], Gradient]:
    """Return the pure function ``(state, batch) -> Gradient`` of totals and weights, not divided.

    Args:
        model, objective: as in :func:`loss_step`.
        accumulate: the number of micro-batches a batch is cut into along dimension 0; their lengths differ by at most
            one, and whatever the cut, the gradient is the whole batch's. Buffers pass from one to the next.
        trainable: the parameters that get gradients: ``None`` for those with ``requires_grad``, a shell pattern over
            dotted names (``"head.*"``), several, or a function ``(name, parameter) -> bool``. The others are
            constants and cost no gradient work.

    Raises:
        TypeError, ValueError: at once for bad arguments; at the call for a state of another model, a batch that
            cannot be cut, and an objective that returns what cannot be pooled.
    """
    return _grad_step(model, objective, accumulate, trainable, divide=False)


def _grad_step(
    model: nn.Module, objective: Objective, accumulate: int, trainable: Trainable, *, divide: bool
) -> Callable[[TrainState, Any], Gradient]:
    """``divide``: nothing will be merged with an undivided batch's gradient, so its loss may be divided before it is
    differentiated: one backward pass however many terms it has, and no pass over the gradient to divide it."""
    _checks.integer("accumulate", accumulate, minimum=1)
    forward = Forward(model, objective, training=True)
    names = trainable_names(model, trainable)
    frozen_names = [name for name in forward.bound.parameter_names if name not in set(names)]
    whole = accumulate == 1

    def one(state: TrainState, buffers: Any, batch: Any, first: int, count: int) -> Gradient:
        frozen = {name: state.params[name] for name in frozen_names}

        def function(params: dict[str, Tensor]) -> tuple[Any, Any]:
            (loss, metrics), after = forward(
                {**frozen, **params}, buffers, batch, state, bare=whole, first=first, count=count
            )
            return loss, (after, metrics)

        trees, loss, (after, metrics) = gradients_of_totals(
            function, _tree.select(state.params, names), (frozen, buffers, batch), divided=divide and whole
        )
        divided = (divide and whole) or isinstance(loss, Bare)
        return Gradient(
            trees,
            () if divided else tuple(term.weight for term in loss.terms),
            TensorDict(after, batch_size=state.batch_size),
            {"loss": loss, **metrics},
        )

    def grad_step(state: TrainState, batch: Any) -> Gradient:
        forward.check(state)
        if whole:
            return one(state, state.buffers, batch, 0, 0)
        gradient = None
        for part, first, count in _tree.split_batch(batch, accumulate):
            if gradient is None:
                gradient = one(state, state.buffers, part, first, count)
            else:
                gradient = gradient.merge(one(state, gradient.buffers, part, first, count))
        assert gradient is not None
        return gradient

    return grad_step


def update_step(optimizer: Optimizer) -> Callable[[TrainState, Gradient], tuple[TrainState, Metrics]]:
    """Return the pure function ``(state, Gradient) -> (state, metrics)``: one division, and one update.

    The metrics are the gradient's (with ``"loss"``), and what the optimizer used: ``"learning_rate"`` and others.

    Raises:
        TypeError: no :class:`Optimizer`.
        ValueError: at the call, where the state's optimizer state belongs to another set of trainable parameters.
    """
    check_optimizer(optimizer)

    def update_step(state: TrainState, gradient: Gradient) -> tuple[TrainState, Metrics]:
        if not isinstance(gradient, Gradient):
            raise TypeError(f"gradient must be a Gradient, as ps.grad_step returns it, got {type(gradient).__name__}")
        grads = gradient.mean()
        params = _tree.select(state.params, grads.keys())
        context = UpdateContext(state.step, state.key, gradient.metrics["loss"].value(), state.calls)
        params, opt_state = _update(optimizer, grads, state, params, context)
        after = TrainState(
            params=_tree.overlay(state.params, params),
            buffers=gradient.buffers,
            opt_state=opt_state,
            step=state.step + 1,
            calls=state.calls + 1,
            key=state.key,
            aux=state.aux,
            batch_size=state.batch_size,
        )
        used = optimizer.hyperparams(opt_state, context)
        if taken := sorted(set(used) & set(gradient.metrics)):
            raise ValueError(f"a metric of the objective is named {taken[0]!r}, which the optimizer reports: rename it")
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
    model: nn.Module, objective: Objective, optimizer: Optimizer, *, accumulate: int = 1, trainable: Trainable = None
) -> Step:
    """Return the pure function ``(state, batch) -> (state, metrics)``: ``update_step`` after ``grad_step``.

    Args:
        model: any ``nn.Module``; its structure is copied, it is never modified. Several models (a teacher and a
            student) are one ``nn.ModuleDict``.
        objective: ``(model, batch) -> loss`` or ``(model, batch, context) -> loss``, as in :func:`loss_step`.
        optimizer: such as ``ps.adamw(rate)``, or ``ps.chain(...)`` that ends in one.
        accumulate, trainable: as in :func:`grad_step`.

    Returns:
        A pure function. Its metrics are the objective's (each mergeable by :func:`merge`), ``"loss"``, and what the
        optimizer used, such as ``"learning_rate"``, a 0-d tensor.

    Raises:
        TypeError, ValueError: as :func:`grad_step` and :func:`update_step`.
    """
    gradient = _grad_step(model, objective, accumulate, trainable, divide=True)
    update = update_step(optimizer)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return update(state, gradient(state, batch))

    return train_step
