"""Rematerialisation: a block that keeps its inputs instead of its activations, and runs again in the backward pass.

``torch.utils.checkpoint`` cannot be used inside a pure step or under ``torch.func``. Here the block is a function of
explicit inputs (its arguments, parameters, buffers and the key of its draws) in an ``autograd.Function`` whose rules
run it again, so it can be transformed like any other. Source: Griewank and Walther, "Revolve" (2000); Chen et al.,
"Training deep nets with sublinear memory cost" (2016).
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from purestep import _checks, _structure
from purestep._rerun import Rerun, Run, homes_of, owner
from purestep.draws import current_draws


def remat(model: nn.Module, *patterns: str) -> nn.Module:
    """Return ``model`` with the named submodules rematerialised: less memory for one more forward of each.

    A rematerialised submodule holds what it was called with until the backward pass, and nothing it computed. Its
    results and gradients have the same bits, its random draws included, and names of parameters, ``isinstance`` and
    checkpoints stay as they are. It works in the eager engine, under ``torch.func`` (``grad``, ``vjp``, ``vmap``,
    ``jvp``), in a step, and in a compiled step.

    Args:
        model: any ``nn.Module``; it is not modified. The result shares its parameters and buffers.
        patterns: shell patterns over the dotted names of submodules, as in ``"layers.*"``. Of nested matches the
            outermost counts. Without a pattern the module itself is rematerialised.

    What a block must keep to: it communicates through arguments, results and buffers alone; it writes neither into its
    arguments nor tensors into its attributes (both are refused when it runs eagerly). What it writes into buffers is
    written once, and carries no gradient. Hooks on modules inside it run twice. It draws only inside a pure step.

    Raises:
        TypeError: no module, one that cannot be copied, or one whose ``forward`` was replaced on the instance.
        ValueError: a pattern that names nothing, or only modules that are never called (a ``ModuleList``); a block
            that reaches a module otherwise than as its submodule.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"model must be a plain torch.nn.Module, got {type(model).__name__}")
    names = _matched(model, patterns)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        result = copy.deepcopy(model, memo)
    except Exception as error:
        raise TypeError(
            f"model cannot be copied: copy.deepcopy of a {type(model).__name__} failed with "
            f"{type(error).__name__}: {error}"
        ) from error
    for name in names:
        block = result.get_submodule(name)
        _check_block(name or "the model", block)
        kind: Any = type(block)
        block.__class__ = _rematerialised(kind)
    return result


def _matched(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return [""]
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    matched: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"patterns must be names of submodules, got {pattern!r} of type {type(pattern).__name__}")
        found = fnmatch.filter(modules, pattern)
        if not found:
            near = _checks.near_misses(pattern, modules)
            raise ValueError(f"{pattern!r} names no submodule{near}; the model has {_checks.listed(modules)}")
        matched.update(found)
    outermost = [n for n in modules if n in matched and not any(n.startswith(f"{other}.") for other in matched)]
    for name in outermost:
        if isinstance(modules[name], (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
            raise ValueError(
                f"{name!r} is a {type(modules[name]).__name__}, which is never called itself: name its entries, "
                f"{name + '.*'!r}"
            )
    return outermost


def _check_block(name: str, block: nn.Module) -> None:
    """Refuse what the backward pass could not run again on other values."""
    if "forward" in vars(block):
        raise TypeError(f"{name!r} has its forward replaced on the instance, which remat would not see: undo that")
    inside = {id(module) for module in block.modules()}
    for path, module in block.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            bound_here = isinstance(value, types.MethodType) and id(value.__self__) in inside
            reached = [value.__self__] if isinstance(value, types.MethodType) and not bound_here else []
            reached += [found for _, found in _structure._inside(value, "", set(), _structure._DEPTH)]
            if any(isinstance(found, nn.Module) for found in reached):
                raise ValueError(
                    f"{name!r} reaches a module through the plain attribute {path + '.' if path else ''}{attribute}, "
                    "whose parameters remat cannot see: make it a submodule, or rematerialise another block"
                )


@functools.cache
def _rematerialised(base: Any) -> Any:
    """Return the subclass of a module's class whose ``forward`` is rematerialised."""
    if issubclass(base, _Rematerialised):
        return base
    _trace_opaquely()

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _forward(self, base.forward, args, kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        return _blank, (base,), self.__getstate__()

    body = {
        "forward": functools.wraps(base.forward)(forward),
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (base, _Rematerialised), body)


class _Rematerialised:
    """Marks the classes that :func:`_rematerialised` makes."""

    is_rematerialised = True


def _blank(base: Any) -> Any:
    kind = _rematerialised(base)
    return kind.__new__(kind)


def _forward(block: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run the block for its result, with its inputs laid open to differentiation."""
    if not torch.is_grad_enabled():
        return forward(block, *args, **kwargs)
    draws = current_draws()
    # A number added takes the constant's source away, which pytree would have guarded.
    handle = _number(block) + 0 if torch.compiler.is_compiling() else block
    homes = homes_of(block)
    parameters = [owner(block, home[0][0])._parameters[home[0][1]] for home in homes[0]]
    buffers = [owner(block, home[0][0])._buffers[home[0][1]] for home in homes[1]]
    place = None if draws is None else draws.place()
    result, after, used = _OPAQUE[0](handle, place, parameters, buffers, args, kwargs)
    if draws is not None:
        draws.advance(used.shape[1])
    for home, buffer in zip(homes[1], after, strict=True):
        for path, leaf in home:
            owner(block, path)._buffers[leaf] = buffer
    return result


def _run_opaque(
    handle: Any, place: Any, parameters: list[Any], buffers: list[Any], args: Any, kwargs: Any
) -> tuple[Any, list[Any], Tensor]:
    """Return the block's result, its buffers after it, and the number of draws it made as the second size of an empty
    tensor, which a tracer can read."""
    block = _BLOCKS[handle] if isinstance(handle, int) else handle
    device = next((leaf.device.type for leaf in (*parameters, *buffers) if leaf is not None), "cpu")
    run = Run(block, place, len(parameters), len(buffers), (args, kwargs), device)
    outcome = Rerun.apply(run, *run.tensors_of(place, parameters, buffers, (args, kwargs)))
    results, after, used = outcome[: -1 - len(buffers)], outcome[-1 - len(buffers) : -1], outcome[-1]
    result = run.result(results)
    if torch.compiler.is_compiling():
        result = pytree.tree_map(lambda leaf: _Nothing() if leaf is None else leaf, result)
    return result, [buffer.detach() for buffer in after], used


# Filled on first use: `torch._dynamo` takes a second to import.
_OPAQUE: list[Callable[..., Any]] = [_run_opaque]
# The blocks that a compiled graph is made of, while it is traced: a graph takes numbers, not modules.
_BLOCKS: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()


def _trace_opaquely() -> None:
    """Have Dynamo leave a block to the tracer under it, which records its operations as they run: Dynamo itself traces
    no ``autograd.Function`` with a ``setup_context``."""
    if _OPAQUE[0] is _run_opaque:
        _OPAQUE[0] = torch._dynamo.nonstrict_trace(_run_opaque)


@torch.compiler.assume_constant_result
def _number(block: nn.Module) -> int:
    _BLOCKS[id(block)] = block
    return id(block)


class _Nothing:
    """``None`` among the results of a graph's operation, which may not be ``None``; it is taken apart into nothing, and
    put together as ``None``."""


pytree.register_pytree_node(_Nothing, lambda _: ([], None), lambda children, _: None)
