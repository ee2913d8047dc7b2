"""The one state of a training run, and how it begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorClass, TensorDict
from torch import Tensor, nn

from purestep import _checks, _tree, functional, random
from purestep.functional import Trainable
from purestep.updates import GradientTransformation, Optimizer


class DonatedStateError(RuntimeError):
    """A state was read after it was donated to a compiled step: its storage holds the next state."""


@runtime_checkable
class Machine(Protocol):
    """A pure state machine whose state lives in ``TrainState.aux``."""

    def init(self) -> TensorDict: ...

    def update(self, state: Any, *observed: Any) -> TensorDict: ...


SKIPPED = "skipped"


class TrainState(TensorClass):
    """Everything that changes during training, and nothing that does not.

    Attributes:
        params: flat TensorDict of the module's parameters by dotted name, trainable or not.
        buffers: flat TensorDict of its buffers, by dotted name.
        opt_state: the optimizer's own TensorDict; trees of parameters in it have the trainable parameters' names.
        step: int64, 0-d: updates applied. Schedules read it.
        calls: int64, 0-d: steps attempted. Randomness reads it.
        key: int64, ``(2,)``: the random key (:func:`purestep.random.key`).
        aux: the states of named pure state machines (the loss scale), and ``"skipped"``: int64, 0-d, the steps that
            were passed over because their gradient was not finite.

    ``state.replace(step=...)`` is another state that shares the rest, ``state.clone()`` one that shares nothing,
    ``state.to(device)`` moves it, and ``torch.stack([state, ...])`` is an ensemble.
    """

    params: TensorDict
    buffers: TensorDict
    opt_state: TensorDict
    step: Tensor
    calls: Tensor
    key: Tensor
    aux: TensorDict

    def unlock_(self) -> TrainState:
        """As a TensorDict's: from here on entries may be exchanged, so what was known of them is forgotten."""
        vars(self).pop("_purestep_flat", None)
        vars(self)["_tensordict"].unlock_()
        return self

    def replace(self, **changes: Any) -> TrainState:
        """Return another state with some fields replaced whole; it shares the rest.

        (A TensorDict's own ``replace`` would merge another optimizer's state into this one's.)

        Raises:
            TypeError: a name that is no field of a state.
        """
        for name in changes:
            if name not in _FIELDS:
                raise TypeError(f"a TrainState has no field {name!r}{_checks.near_misses(name, _FIELDS)}")
        fields = {name: changes[name] if name in changes else getattr(self, name) for name in _FIELDS}
        # The constructor would look at each field's annotation again, which takes longer than a small update.
        return TrainState.from_tensordict(TensorDict(fields, batch_size=self.batch_size))


_FIELDS = ("params", "buffers", "opt_state", "step", "calls", "key", "aux")


def init_state(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    seed: int,
    device: torch.device | str | None = None,
    trainable: Trainable = None,
    aux: Mapping[str, Machine] | None = None,
) -> TrainState:
    """Return the state a run starts from: copies of the model's values, and the optimizer's first state.

    Args:
        model: its values are copied; it is not modified and not kept.
        optimizer: what will update the parameters, or a chain that ends in one.
        seed: int from 0 to 2^64 - 1: the key of everything random in the run.
        device: where the state lives; by default where the model's values do.
        trainable: as in :func:`purestep.train_step`, which must be given the same: only these have optimizer state.
        aux: pure state machines by name, each with ``init()`` and ``update(...)``, such as
            ``{"loss_scale": ps.DynamicLossScale()}``.

    Raises:
        TypeError, ValueError: no usable model or optimizer, a seed out of range, or ``trainable`` names nothing.
    """
    functional.check_module(model)
    if on_meta := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        raise ValueError(
            f"model has no values: {_checks.listed(on_meta)} are on the meta device; "
            "ps.init_state_from_meta(make_model, ...) builds its structure and its values"
        )
    params = functional.tensors_by_name(model.named_parameters(), device)
    buffers = functional.tensors_by_name(model.named_buffers(), device)
    return _first_state(params, buffers, optimizer, seed, functional.trainable_names(model, trainable), aux)


def init_state_from_meta(
    make_model: Callable[[], nn.Module],
    optimizer: Optimizer,
    *,
    seed: int,
    device: torch.device | str | None = None,
    trainable: Trainable = None,
    aux: Mapping[str, Machine] | None = None,
) -> tuple[nn.Module, TrainState]:
    """Build a model's structure and its first state without ever holding the parameters twice.

    ``make_model`` is called twice: on ``meta``, for the structure, and on ``device``, for values that the state takes
    over without a copy. The values are drawn under ``seed``, with the global generator put back afterwards, so the
    state is the same whatever ran before.

    Returns:
        ``(model, state)``: the model on ``meta``, for :func:`purestep.train_step`, and the state.

    Raises:
        TypeError, ValueError: as :func:`init_state`, or ``make_model`` is no function that returns a module.
    """
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise TypeError(f"make_model must be a function that builds the module, got {type(make_model).__name__}")
    random.key(seed)  # refused here, before torch's own generator says it in other words
    with torch.device("meta"):
        model = make_model()
    functional.check_module(model)
    target = torch.device(device or "cpu")
    with torch.random.fork_rng([target] if target.type == "cuda" else [], device_type="cuda"), target:
        torch.manual_seed(seed)
        values = make_model()
    params = TensorDict({name: p.detach() for name, p in values.named_parameters()}, batch_size=[])
    buffers = TensorDict({name: b.detach() for name, b in values.named_buffers()}, batch_size=[])
    return model, _first_state(params, buffers, optimizer, seed, functional.trainable_names(values, trainable), aux)


def _first_state(
    params: TensorDict,
    buffers: TensorDict,
    optimizer: Any,
    seed: int,
    trainable: tuple[str, ...],
    machines: Mapping[str, Machine] | None,
) -> TrainState:
    check_optimizer(optimizer)
    where = next(iter(params.values())).device
    return TrainState(
        params=params,
        buffers=buffers,
        opt_state=optimizer.init(_tree.select(params, trainable)),
        step=torch.zeros((), dtype=torch.int64, device=where),
        calls=torch.zeros((), dtype=torch.int64, device=where),
        key=random.key(seed, device=where),
        aux=_first_aux(machines or {}, where),
        batch_size=[],
    )


def _first_aux(machines: Mapping[str, Machine], device: torch.device | None) -> TensorDict:
    skipped = torch.zeros((), dtype=torch.int64, device=device)
    states: dict[str, Any] = {}
    for name, machine in machines.items():
        if name == SKIPPED:
            raise ValueError(f"aux must not name {SKIPPED!r}, the count of skipped steps, which every state has")
        if not isinstance(machine, Machine):
            raise TypeError(f"aux[{name!r}] must have init() -> TensorDict and update(...), got {machine!r}")
        states[name] = machine.init().to(device)
    return TensorDict({**states, SKIPPED: skipped}, batch_size=[])


def check_optimizer(optimizer: Any) -> None:
    """Raise ``TypeError`` where it is no :class:`Optimizer`, and say what would make it one."""
    if isinstance(optimizer, Optimizer):
        return
    if isinstance(optimizer, GradientTransformation):
        raise TypeError(
            "optimizer must be an Optimizer, got a GradientTransformation, which gives no new parameters: "
            "close the chain with one, as in ps.chain(transformation, ps.sgd(rate))"
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a purestep Optimizer such as ps.adamw(rate), which returns new parameters; got "
            f"torch.optim.{type(optimizer).__name__}, which changes them in place"
        )
    raise TypeError(f"optimizer must be an Optimizer such as ps.adamw(rate), got {optimizer!r}")
