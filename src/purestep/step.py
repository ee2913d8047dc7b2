"""The four steps that everything else is built from.

``loss_step`` is a forward, ``grad_step`` its undivided gradient, ``update_step`` what an optimizer makes of a gradient,
and ``train_step`` exactly the composition of the last two. ``eval_step`` is the forward in evaluation mode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purestep import _checks, _tree, objectives, random
from purestep.draws import Draws
from purestep.functional import BoundModule, Trainable, check_same_names, trainable_names
from purestep.gradients import Gradient, gradients_of_totals
from purestep.objectives import Bare, Loss, Mean
from purestep.state import TrainState, check_optimizer
from purestep.updates import Optimizer, UpdateContext

Objective = Callable[..., Any]
Metrics = dict[str, Any]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class Context(NamedTuple):
    """What an objective may read besides the module and the batch, as its third argument.

    Attributes:
        step: int64, 0-d: updates applied so far.
        key: int64, ``(2,)``: a random key of this call alone (:func:`purestep.random.fold_in` gives more).
        training: whether the forward is a training forward.
    """

    step: Tensor
    key: Tensor
    training: bool


class _Forward:
    """An objective on a bound module: ``(params, buffers, batch, state) -> ((loss, metrics), buffers)``."""

    def __init__(self, model: nn.Module, objective: Objective, *, training: bool) -> None:
        if not callable(objective):
            raise TypeError(f"objective must be a function (model, batch) -> loss, got {objective!r}")
        self.bound = BoundModule(model, training=training)
        self.training = training
        self._objective = objective
        self._takes_context = _takes_context(objective)

    def __call__(
        self,
        params: Mapping[str, Tensor],
        buffers: Any,
        batch: Any,
        state: TrainState,
        *,
        bare: bool,
        first: int = 0,
        count: int = 0,
    ) -> tuple[tuple[Loss | Mean, Metrics], dict[str, Tensor]]:
        args: tuple[Any, ...] = (batch,)
        if self._takes_context:
            args = (batch, Context(state.step, random.fold_in(state.key, state.calls), self.training))
        try:
            with Draws(state.key, state.calls, first=first, count=count):
                result, after = self.bound(self._objective, dict(params), buffers, *args)
        except KeyError as error:
            raise _named_key_error(error, batch) from error
        return objectives.read_outcome(result, bare=bare), after

    def check(self, state: TrainState) -> None:
        """Raise ``ValueError`` where the state is another model's."""
        _check_is_state(state)
        for part, names in (("params", self.bound.parameter_names), ("buffers", self.bound.buffer_names)):
            if tuple(getattr(state, part).keys()) != names:
                check_same_names(f"state.{part}", getattr(state, part).keys(), "model", names)


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
    forward = _Forward(model, objective, training=training)

    def step(state: TrainState, batch: Any) -> tuple[Loss | Mean, TensorDict, Metrics]:
        forward.check(state)
        (loss, metrics), buffers = forward(_tree.as_dict(state.params), state.buffers, batch, state, bare=True)
        return loss, TensorDict(buffers, batch_size=state.batch_size), metrics

    return step


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
    forward = _Forward(model, objective, training=False)
    if optimizer is not None:
        check_optimizer(optimizer)

    def step(state: TrainState, batch: Any) -> Metrics:
        forward.check(state)
        params = state.params
        if optimizer is not None:
            params = _tree.overlay(params, optimizer.eval_params(params, state.opt_state))
        with torch.no_grad():
            (loss, metrics), _ = forward(_tree.as_dict(params), state.buffers, batch, state, bare=True)
        return {"loss": loss, **metrics}

    return step


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
    forward = _Forward(model, objective, training=True)
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
            function, _tree.select(state.params, names), divided=divide and whole
        )
        divided = (divide and whole) or isinstance(loss, Bare)
        return Gradient(
            trees,
            () if divided else tuple(term.weight for term in loss.terms),
            TensorDict(after, batch_size=state.batch_size),
            {"loss": loss, **metrics},
        )

    def step(state: TrainState, batch: Any) -> Gradient:
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

    return step


def update_step(optimizer: Optimizer) -> Callable[[TrainState, Gradient], tuple[TrainState, Metrics]]:
    """Return the pure function ``(state, Gradient) -> (state, metrics)``: one division, and one update.

    The metrics are the gradient's (with ``"loss"``), and what the optimizer used: ``"learning_rate"`` and others.

    Raises:
        TypeError: no :class:`Optimizer`.
        ValueError: at the call, where the state's optimizer state belongs to another set of trainable parameters.
    """
    check_optimizer(optimizer)

    def step(state: TrainState, gradient: Gradient) -> tuple[TrainState, Metrics]:
        grads = gradient.mean()
        params = _tree.select(state.params, grads.keys())
        context = UpdateContext(state.step, state.key, gradient.metrics["loss"].value())
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
        return after, {**gradient.metrics, **optimizer.hyperparams(opt_state, context)}

    return step


def _update(optimizer: Optimizer, grads: Any, state: TrainState, params: Any, context: UpdateContext) -> Any:
    try:
        return optimizer.update(grads, state.opt_state, params, context)
    except KeyError as error:
        # TensorDict's own message quotes the name inside a sentence.
        name = str(error.args[0]).split('"')[1] if '"' in str(error.args[0]) else error.args[0]
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

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        return update(state, gradient(state, batch))

    return step


def _takes_context(objective: Objective) -> bool:
    try:
        parameters = inspect.signature(objective).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if len(required) > 3 or (len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        raise TypeError(f"objective must take (model, batch) or (model, batch, context), got {objective!r}")
    return len(required) == 3 or any(p.name == "context" for p in positional[2:3])


def _check_is_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")


def _named_key_error(error: KeyError, batch: Any) -> KeyError:
    key = error.args[0] if error.args else None
    keys = list(batch.keys()) if hasattr(batch, "keys") else []
    if not isinstance(key, str) or key in keys or not keys:
        return error
    wanted = key.split('"')[1] if key.startswith('key "') else key
    return KeyError(
        f"the objective asked for {wanted!r}, and batch has {_checks.listed(keys)}{_checks.near_misses(wanted, keys)}"
    )
