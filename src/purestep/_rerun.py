"""A block of a module as a function of tensors alone, with the derivatives of running it again (see ``remat``)."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from purestep.draws import Draws, Undrawn

Homes = tuple[tuple[tuple[str, str], ...], ...]


@torch.compiler.assume_constant_result
def homes_of(block: nn.Module) -> tuple[Homes, Homes]:
    """Return for each parameter, and for each buffer, the places (path, leaf) at which the block has it."""
    found: tuple[dict[int, list[tuple[str, str]]], ...] = ({}, {})
    for path, module in block.named_modules(remove_duplicate=False):
        for homes, held in zip(found, (module._parameters, module._buffers), strict=True):
            for leaf, tensor in held.items():
                if tensor is not None:
                    homes.setdefault(id(tensor), []).append((path, leaf))
    parameters, buffers = (tuple(map(tuple, homes.values())) for homes in found)
    return parameters, buffers


def owner(block: nn.Module, path: str) -> nn.Module:
    return block.get_submodule(path) if path else block


class Run:
    """A block as a function of tensors alone: the key of its draws, parameters, buffers, and tensors among its
    arguments. It runs on a replica of the block, so nothing of the block is touched.

    Attributes:
        smooth: which of the results can have a derivative, known after a call.
    """

    def __init__(
        self, block: nn.Module, place: Any, parameters: int, buffers: int, arguments: Any, device: str
    ) -> None:
        self._block, self._sizes = block, (parameters, buffers)
        leaves, self._form = pytree.tree_flatten((place, arguments))
        self._leaves = [_Hole() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._homes = homes_of(block)
        self._autocast: tuple[Any, ...] = ()
        if torch.amp.is_autocast_available(device):
            self._autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        self.smooth: list[bool] = []

    def tensors_of(self, place: Any, parameters: Any, buffers: Any, arguments: Any) -> list[Tensor]:
        """Return the inputs of a call, in its order."""
        leaves = pytree.tree_leaves((place, arguments))
        return [*parameters, *buffers, *(leaf for leaf in leaves if isinstance(leaf, Tensor))]

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors among the block's results, its buffers, and the number of its draws as a shape."""
        first, second = self._sizes[0], sum(self._sizes)
        parameters, before, given = tensors[:first], tensors[first:second], iter(tensors[second:])
        leaves = [next(given) if isinstance(leaf, _Hole) else leaf for leaf in self._leaves]
        place, (args, kwargs) = pytree.tree_unflatten(leaves, self._form)
        twin, buffers = _replica(self._block), [buffer.clone() for buffer in before]
        for homes, part, values in zip(self._homes, ("_parameters", "_buffers"), (parameters, buffers), strict=True):
            for home, value in zip(homes, values, strict=True):
                for path, leaf in home:
                    getattr(owner(twin, path), part)[leaf] = value
        versions = [] if torch.compiler.is_compiling() else [tensor._version for tensor in tensors]
        draws = Undrawn() if place is None else Draws.at(place)
        with draws, self._same_casts():
            result = _plain_forward(twin)(twin, *args, **kwargs)
        _refuse_hidden_results(self._block, twin)
        if any(tensor._version != version for tensor, version in zip(tensors, versions, strict=False)):
            raise RuntimeError(
                f"a rematerialised {type(twin).__name__} writes into what it was called with, and would find it "
                "changed when it runs again: let it copy (inplace=False)"
            )
        after: list[Any] = [owner(twin, home[0][0])._buffers[home[0][1]] for home in self._homes[1]]
        leaves, self._result_form = pytree.tree_flatten(result)
        self._results = [_Hole() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # An autograd.Function must not return what it was given, but another tensor of the same storage.
        given_ids = {id(tensor) for tensor in tensors}
        results = [leaf.view_as(leaf) if id(leaf) in given_ids else leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.smooth = [leaf.is_floating_point() or leaf.is_complex() for leaf in results]
        return *results, *after, torch.empty((0, draws.used), dtype=torch.int8)

    def _same_casts(self) -> contextlib.AbstractContextManager[object]:
        """Autocast as it was where the block was called. Casts are not cached: one made where no gradient is recorded
        would be found later by the same weight."""
        if not self._autocast:
            return contextlib.nullcontext()
        device, dtype, enabled = self._autocast
        return torch.autocast(device, dtype, enabled=enabled, cache_enabled=False)

    def smooth_results(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return only the results that can have a derivative."""
        results = self(*tensors)
        return tuple(result for result, smooth in zip(results, self.smooth, strict=False) if smooth)

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """Return the block's result with these tensors in it."""
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, _Hole) else leaf for leaf in self._results]
        return pytree.tree_unflatten(leaves, self._result_form)


class _Hole:
    """Where a tensor was."""


class Rerun(torch.autograd.Function):
    """A block with the derivatives of running it again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.run = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *seeds: Any) -> Any:
        # Called after `torch.func.vjp` has returned, the saved tensors still wear the wrappers of its level.
        tensors, run = [torch._C._functorch.unwrap_if_dead(tensor) for tensor in ctx.saved_tensors], ctx.run
        wanted = [index for index, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        seeds = tuple(seed for seed, smooth in zip(seeds, run.smooth, strict=False) if smooth)
        first_order = not torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
        pull_back = _by_autograd if first_order and not torch.compiler.is_compiling() else _by_func
        gradients = dict(zip(wanted, pull_back(run, tensors, wanted, seeds), strict=True))
        return None, *(gradients.get(index) for index in range(len(tensors)))

    @staticmethod
    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        tensors, run = ctx.saved_tensors, ctx.run
        moved = [index for index, tangent in enumerate(tangents) if tangent is not None]
        both: Any = torch.func.jvp(
            _partial(run, tensors, moved), tuple(tensors[i] for i in moved), tuple(tangents[i] for i in moved)
        )
        given = iter(both[1])
        after = [None] * (run._sizes[1] + 1)
        return *(next(given) if smooth else None for smooth in run.smooth), *after


def _partial(run: Run, tensors: Sequence[Tensor], moved: Sequence[int]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the block's smooth results as a function of some of its inputs."""

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        inputs = list(tensors)
        for index, value in zip(moved, values, strict=True):
            inputs[index] = value
        return run.smooth_results(*inputs)

    return function


def _by_func(run: Run, tensors: Sequence[Tensor], wanted: Sequence[int], seeds: Any) -> Any:
    result: Any = torch.func.vjp(_partial(run, tensors, wanted), *(tensors[index] for index in wanted))
    return result[1](seeds)


def _by_autograd(run: Run, tensors: Sequence[Tensor], wanted: Sequence[int], seeds: Any) -> Any:
    """The same at half the cost, where nobody differentiates the gradient."""
    with torch.enable_grad():
        inputs = [tensor.detach() for tensor in tensors]
        for index in wanted:
            inputs[index].requires_grad_()
        results = run.smooth_results(*inputs)
    reached = [(result, seed) for result, seed in zip(results, seeds, strict=True) if result.requires_grad]
    leaves = [inputs[index] for index in wanted]
    if not reached:
        return [None] * len(leaves)
    outputs, given = zip(*reached, strict=True)
    return torch.autograd.grad(outputs, leaves, given, allow_unused=True)


def _replica(block: nn.Module) -> nn.Module:
    """Return a copy of the block that shares everything but the tables of its parameters, buffers and submodules, and
    its own attributes: values can be bound to it while somebody else calls the block."""
    twins: dict[int, nn.Module] = {}
    replica = _replicated(block, twins)
    for twin in twins.values():
        for name, value in list(vars(twin).items()):
            if isinstance(value, types.MethodType) and id(value.__self__) in twins:
                vars(twin)[name] = types.MethodType(value.__func__, twins[id(value.__self__)])
    return replica


def _replicated(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    if id(module) in twins:
        return twins[id(module)]
    twin = twins[id(module)] = object.__new__(type(module))
    vars(twin).update(vars(module))
    for part in ("_parameters", "_buffers"):
        vars(twin)[part] = dict(vars(module)[part])
    vars(twin)["_modules"] = {
        name: None if child is None else _replicated(child, twins) for name, child in module._modules.items()
    }
    return twin


def _plain_forward(block: nn.Module) -> Callable[..., Any]:
    """Return the ``forward`` that the block had before it was rematerialised."""
    base: Any = next(kind for kind in type(block).__mro__ if not hasattr(kind, "is_rematerialised"))
    return base.forward


def _refuse_hidden_results(block: nn.Module, twin: nn.Module) -> None:
    """A tensor left in an attribute would have no gradient, and nothing would say so."""
    for name, attribute in _written(block, twin):
        raise RuntimeError(
            f"a rematerialised {type(twin).__name__} keeps a tensor in {name + '.' if name else ''}{attribute}, which "
            "nobody can read after it: return it, or keep it in a buffer"
        )


def _written(block: nn.Module, twin: nn.Module) -> Iterator[tuple[str, str]]:
    for (name, before), after in zip(block.named_modules(), twin.modules(), strict=True):
        for attribute, value in vars(after).items():
            if isinstance(value, Tensor) and vars(before).get(attribute) is not value:
                yield name, attribute
        for leaf, buffer in after._buffers.items():
            if buffer is not None and before._buffers.get(leaf) is None:
                yield name, leaf
