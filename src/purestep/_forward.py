"""An objective on a bound module: the forward that every step begins with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from purestep import _checks, objectives, random
from purestep.draws import Draws, unread_generators
from purestep.functional import BoundModule, check_same_names
from purestep.objectives import Loss, Mean
from purestep.precision import autocast, check_precision
from purestep.state import TrainState

Objective = Callable[..., Any]
Metrics = dict[str, Any]


class Context(NamedTuple):
    """What an objective may read besides the module and the batch, as its third argument.

    Attributes:
        step: int64, 0-d: updates applied so far.
        key: int64, ``(2,)``: a random key of this call alone (:func:`purestep.random.fold_in` gives more). With
            ``accumulate > 1`` all micro-batches have the same; ``start`` of the generators tells them apart.
        training: whether the forward is a training forward.
        first: index, in the whole batch, of the first example of this micro-batch; an int or an int64 0-d tensor. With
            ``n`` numbers for each example, ``start=n * context.first`` gives each its own however the batch is cut.
    """

    step: Tensor
    key: Tensor
    training: bool
    first: int | Tensor = 0


class Forward:
    """``(params, buffers, batch, state) -> ((loss, metrics), buffers)``: an objective, the module it reads bound to
    values, and its random operations drawn from the state's key."""

    def __init__(self, model: nn.Module, objective: Objective, *, training: bool, precision: str = "float32") -> None:
        if not callable(objective):
            raise TypeError(f"objective must be a function (model, batch) -> loss, got {objective!r}")
        self.bound = BoundModule(model, training=training)
        self._call, self._takes_context = _reader(objective)
        self._code = getattr(objective, "__code__", None)
        self._training = training
        self._probed = False  # whether a first call was seen to leave every global generator alone
        check_precision(precision)
        self._precision = precision

    def __call__(
        self,
        params: Mapping[str, Tensor],
        buffers: Any,
        batch: Any,
        state: TrainState,
        *,
        bare: bool,
        first: int | Tensor = 0,
        count: int = 0,
    ) -> tuple[tuple[Loss | Mean, Metrics], dict[str, Tensor]]:
        """``bare``: a bare tensor may be the loss; ``first``, ``count``: the place of a micro-batch in its batch."""
        context: tuple[Context, ...] = ()
        if self._takes_context:
            context = (Context(state.step, random.fold_in(state.key, state.calls), self._training, first),)

        def call(watch: bool = False) -> tuple[Any, dict[str, Tensor]]:
            draws = Draws(state.key, state.calls, first=first, count=count, watch=watch)
            with draws, autocast(self._precision, state.key.device):
                return self.bound(self._call, dict(params), buffers, batch, *context)

        try:
            with unread_generators(lambda: call(watch=True), thorough=not self._probed):
                result, after = call()
            if not torch.compiler.is_compiling():
                self._probed = True
        except KeyError as error:
            raise self._explained(error, batch) from error
        return objectives.read_outcome(result, bare=bare), after

    def check(self, state: TrainState) -> None:
        """Raise ``ValueError`` where the state is another model's."""
        if not isinstance(state, TrainState):
            raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
        for part, names in (("params", self.bound.parameter_names), ("buffers", self.bound.buffer_names)):
            if tuple(getattr(state, part).keys()) != names:
                check_same_names(f"state.{part}", getattr(state, part).keys(), "model", names)

    def _explained(self, error: KeyError, batch: Any) -> KeyError:
        """Say which key the batch lacks, where it was the objective that asked the batch for it."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        code = trace.tb_frame.f_code if trace is not None else None
        asked = code is not None and (code is self._code or "tensordict" in Path(code.co_filename).parts)
        key = error.args[0] if error.args else None
        keys = list(batch.keys()) if hasattr(batch, "keys") else []
        if not asked or not isinstance(key, str) or not keys:
            return error
        wanted = key.split('"')[1] if key.startswith('key "') else key  # TensorDict's message quotes it
        if wanted in keys:
            return error
        near = _checks.near_misses(wanted, keys)
        return KeyError(f"the objective asked for {wanted!r}, and batch has {_checks.listed(keys)}{near}")


def _reader(objective: Objective) -> tuple[Callable[..., Any], bool]:
    """Return the objective as a function of positional arguments, and whether it takes a context."""
    try:
        parameters = list(inspect.signature(objective).parameters.values())
    except (TypeError, ValueError):
        return objective, False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    variable = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    by_keyword = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > 3 or (len(positional) < 2 and not variable) or set(by_keyword) - {"context"}:
        raise TypeError(f"objective must take (model, batch) or (model, batch, context), got {objective!r}")
    if by_keyword:
        return lambda model, batch, context: objective(model, batch, context=context), True
    return objective, len(required) == 3 or any(p.name == "context" for p in positional[2:3])
