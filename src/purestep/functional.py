"""Binding a module: its structure without values, called with any values through ``torch.func.functional_call``."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call

from purestep import _checks, _tree
from purestep._structure import Attributes, structure_of
from purestep.draws import name_calls

Trainable = str | Sequence[str] | Callable[[str, Tensor], bool] | None


class BoundModule:
    """The structure of a module on the ``meta`` device, called with values that somebody else holds.

    The user's module is copied once, with every parameter and buffer replaced by a meta copy, so nothing is held twice
    and nothing that happens here reaches it. Tied weights stay tied. Tensors that are neither parameter nor buffer are
    copied as they are and are constants; changing the module afterwards changes nothing here. What a forward writes
    into plain attributes (a cache, a counter) is put back after the call: a call leaves nothing for the next to read.

    Args:
        model: any ``nn.Module``; never modified.
        training: the mode of the forward. ``True`` keeps the mode of each submodule where the module itself is in
            training mode (a BatchNorm that was put into evaluation mode stays frozen), and puts everything into
            training mode where it is not. ``False`` is evaluation mode throughout.

    Attributes:
        parameter_names, buffer_names: dotted names, each tensor once, as in ``named_parameters()``.

    Raises:
        TypeError: no ``nn.Module``, a wrapper of one (compiled, data-parallel, scripted), one with lazy parameters, or
            one that cannot be copied.
        ValueError: a module without parameters, or one that keeps a parameter where no value can be bound.
    """

    def __init__(self, model: nn.Module, *, training: bool = True) -> None:
        check_module(model)
        structure = structure_of(model)
        if not training:
            structure.eval()
        elif not structure.training:
            structure.train()
        if training:  # (in evaluation hooks would keep a transformer from its fast path; what draws there goes unnamed)
            name_calls(structure)
        self.parameter_names = tuple(name for name, _ in model.named_parameters())
        self.buffer_names = tuple(name for name, _ in model.named_buffers())
        self._caller = _Caller(structure)
        self._slots = _Slots(structure)
        self._attributes = Attributes(structure)
        # One structure serves one call at a time: its values are swapped in and out.
        self._lock = threading.RLock()
        self._depth = 0  # calls under way: an objective may call a step of the same model

    def __call__(
        self, function: Callable[..., Any], params: TensorDictBase | dict[str, Tensor], buffers: Any, *args: Any
    ) -> tuple[Any, dict[str, Tensor]]:
        """Return ``function(module, *args)`` with the values bound to the module, and the buffers after it.

        Args:
            params, buffers: tensors by dotted name; neither is written. A module writes into its buffers (BatchNorm's
                running statistics): it gets copies, and what became of them is the second result.
        """
        bound = _tree.as_dict(params)
        bound = {**bound, **{name: tensor.clone() for name, tensor in _tree.as_dict(buffers).items()}}
        if torch.compiler.is_compiling():
            bound = {f"model.{name}": tensor for name, tensor in bound.items()}
            return functional_call(self._caller, bound, (function, *args), strict=True)
        with self._lock:
            # What an outer call wrote, it may still read: a call within a call has its own "before".
            attributes = Attributes(self._caller.model) if self._depth else self._attributes
            before = self._slots.fill(bound)
            self._depth += 1
            try:
                return self._caller(function, *args)
            finally:
                self._depth -= 1
                self._slots.put(before)
                attributes.restore()


class _Slots:
    """Where a structure keeps its parameters and buffers: what ``functional_call`` with ``strict=True`` looks for in
    every call, found once. Eagerly that search takes as long as a small forward."""

    def __init__(self, structure: nn.Module) -> None:
        named = [
            *structure.named_parameters(remove_duplicate=False),
            *structure.named_buffers(remove_duplicate=False),
        ]
        homes = [(name, blank, *_home(structure, name)) for name, blank in named]
        first: dict[int, str] = {}
        self._slots = [
            (first.setdefault(id(blank), name), vars(owner)[kind], leaf)
            for name, blank, owner, leaf in homes
            for kind in ("_parameters", "_buffers")
            if leaf in vars(owner)[kind]
        ]
        self._names = set(first.values())

    def fill(self, values: dict[str, Tensor]) -> list[Tensor | None]:
        """Put a value into each place, tied ones the same, and return what was there (an outer call's values).

        Raises:
            ValueError: names that are missing or too many.
        """
        if values.keys() != self._names:
            check_same_names("the values", values, "module", self._names)
        before = []
        for name, home, leaf in self._slots:
            before.append(home[leaf])
            home[leaf] = values[name]
        return before

    def put(self, tensors: list[Tensor | None]) -> None:
        """Put back what :meth:`fill` returned."""
        for (_, home, leaf), tensor in zip(self._slots, tensors, strict=True):
            home[leaf] = tensor


class _Caller(nn.Module):
    """Holds the structure so that ``functional_call`` reaches any function of it, not only its ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Read here, not by `named_buffers()` inside a traced call, which is slow to trace.
        self._buffer_homes = [(name, *_home(model, name)) for name, _ in model.named_buffers()]

    def forward(self, function: Callable[..., Any], *args: Any) -> tuple[Any, dict[str, Tensor]]:
        result = function(self.model, *args)
        # `getattr`, because a module may write into a buffer or put another tensor in its place.
        after = {name: getattr(owner, leaf) for name, owner, leaf in self._buffer_homes}
        for name, buffer in after.items():
            if buffer is None:
                raise ValueError(f"the forward sets its buffer {name!r} to None: the state would lose it")
        return result, after


def _home(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def check_module(model: Any) -> None:
    """Raise where ``model`` is no plain module with parameters whose shapes are known."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r} of type {type(model).__name__}")
    wrapper = type(model).__name__
    if wrapper in ("OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel") or (
        isinstance(model, torch.jit.ScriptModule)
    ):
        raise TypeError(
            f"model must be the plain module, got a {wrapper}: unwrap it, and compile or distribute the step"
        )
    lazy = [name for name, parameter in model.named_parameters() if nn.parameter.is_lazy(parameter)]
    if lazy:
        raise TypeError(
            f"model has parameters without a shape ({_checks.listed(lazy)}): call it once on a batch before it is bound"
        )
    if next(model.parameters(), None) is None:
        raise ValueError(f"model must have parameters, got a {type(model).__name__} with none")


def trainable_names(model: nn.Module, trainable: Trainable) -> tuple[str, ...]:
    """Return the names of the parameters that get gradients, in the module's order.

    Args:
        model: the module whose parameters are meant.
        trainable: ``None`` for every parameter with ``requires_grad``; a shell pattern over dotted names
            (``"head.*"``), or several; or a function ``(name, parameter) -> bool``.

    Raises:
        ValueError: nothing is trainable, or a pattern that names nothing; near misses are named.
    """
    parameters = dict(model.named_parameters())
    aliases = dict(model.named_parameters(remove_duplicate=False))
    if trainable is None:
        names = [name for name, parameter in parameters.items() if parameter.requires_grad]
        if not names:
            raise ValueError("trainable=None takes the parameters with requires_grad=True, and the model has none")
        return tuple(names)
    if callable(trainable):
        names = [name for name, parameter in parameters.items() if trainable(name, parameter)]
        if not names:
            raise ValueError(f"trainable must choose at least one of {_checks.listed(parameters)}, and chose none")
        return tuple(names)
    patterns = [trainable] if isinstance(trainable, str) else list(trainable)
    if not patterns:
        raise ValueError("trainable must name at least one parameter, got an empty list")
    for pattern in patterns:
        if not fnmatch.filter(aliases, pattern):
            raise ValueError(
                f"trainable={pattern!r} names no parameter{_checks.near_misses(pattern, parameters)}; "
                f"the model has {_checks.listed(parameters)}"
            )
    # A tied weight has several names, and any of them names it.
    chosen = {id(aliases[name]) for pattern in patterns for name in fnmatch.filter(aliases, pattern)}
    return tuple(name for name, parameter in parameters.items() if id(parameter) in chosen)


def tensors_by_name(named: Iterable[tuple[str, Tensor]], device: Any = None) -> TensorDict:
    """Return detached copies of named tensors as a flat TensorDict, on ``device`` where one is given."""
    return TensorDict({name: tensor.detach().to(device=device, copy=True) for name, tensor in named}, batch_size=[])


def load_into(model: nn.Module, state: Any) -> nn.Module:
    """Write a state's parameters and buffers into a module, in place, and return the module.

    Raises:
        ValueError: the names, shapes or dtypes differ; the difference is named, and nothing is written.
    """
    targets = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    values = {**_tree.as_dict(state.params), **_tree.as_dict(state.buffers)}
    check_same_names("state", values, "model", targets)
    for name, target in targets.items():
        value = values[name]
        if (target.shape, target.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"state[{name!r}] must have the model's shape and dtype, {tuple(target.shape)} {target.dtype}, got "
                f"{tuple(value.shape)} {value.dtype}"
            )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])
    return model


def check_same_names(argument: str, got: Iterable[str], owner: str, wanted: Iterable[str]) -> None:
    """Raise ``ValueError`` naming what is missing and what is too much, where two sets of names differ."""
    got, wanted = list(got), list(wanted)
    missing, extra = [n for n in wanted if n not in set(got)], [n for n in got if n not in set(wanted)]
    if missing or extra:
        parts = [f"lacks {_checks.listed(missing)}"] * bool(missing) + [f"has {_checks.listed(extra)}"] * bool(extra)
        raise ValueError(
            f"{argument} does not belong to this {owner}: it {' and '.join(parts)}"
            + (f", which the {owner} has not" if extra else f", which the {owner} has")
        )
