"""What the laws are told in: named leaves, bits, errors relative to a norm, and a violation that says all three."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import is_tensor_collection, is_tensorclass
from torch import Tensor

from purestep.gradients import Gradient
from purestep.state import TrainState

_EPS64 = torch.finfo(torch.float64).eps
# How far a stored value may be from another by its own rounding alone.
_ROUNDINGS = 4


class LawViolation(AssertionError):  # noqa: N818  (an assertion that failed, named for what it found)
    """A law that does not hold: the message says which law, on what, and by how much.

    Attributes:
        by: how far it is from holding, such as ``"1.8e-01 of the norm of the whole gradient"``.
        on: the smallest input that was found to show it, such as ``"examples 0 to 1"``.
        report: the :class:`LawReport` of the bundle that raised it, or ``None``.
    """

    def __init__(self, message: str, *, by: str = "", on: str = "", report: Any = None) -> None:
        super().__init__(message)
        self.by, self.on, self.report = by, on, report


def named_leaves(value: Any, path: str) -> dict[str, Any]:
    """Return what a nesting holds, by the path that reaches it: ``state.params['0.weight']``."""
    return dict(_walk(value, path))


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if is_tensorclass(value):
        for name, inner in value.items():
            yield from _walk(inner, f"{path}.{name}")
    elif isinstance(value, Mapping) or is_tensor_collection(value):
        for name, inner in value.items():
            yield from _walk(inner, f"{path}[{name!r}]")
    elif isinstance(value, (tuple, list)):
        for position, inner in enumerate(value):
            yield from _walk(inner, f"{path}[{position}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name), f"{path}.{field.name}")
    else:
        yield path, value


def named_tensors(value: Any, path: str) -> dict[str, Tensor]:
    """As :func:`named_leaves`, the tensors only."""
    return {name: leaf for name, leaf in _walk(value, path) if isinstance(leaf, Tensor)}


def named_result(result: Any) -> dict[str, Any]:
    """As :func:`named_leaves`, of what a step returned: ``state.params['0.weight']``, ``metrics['loss'].total``."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], TrainState):
        return {**named_leaves(result[0], "state"), **named_leaves(result[1], "metrics")}
    return named_leaves(result, "result")


def same_bits(first: Any, second: Any) -> bool:
    """Whether two leaves are the same to the last bit; NaN equals NaN, and 0 is not -0."""
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        return type(first) is type(second) and bool(first == second or (first != first and second != second))
    if (first.shape, first.dtype, first.device) != (second.shape, second.dtype, second.device):
        return False
    return torch.equal(_bits(first), _bits(second))


def _bits(tensor: Tensor) -> Tensor:
    # Expanded tensors have a stride of 0, and bytes can be looked at where they lie side by side.
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8)


def check_same_bits(law: str, got: Mapping[str, Any], right: Mapping[str, Any], *, names: tuple[str, str]) -> None:
    """Raise where two sets of named leaves differ in a name or in a bit.

    Args:
        law: how the message begins.
        got, right: leaves by path.
        names: what the two sets are, for the message.
    """
    check_same_names(law, got, right, names=names)
    for path, leaf in got.items():
        if not same_bits(leaf, right[path]):
            says = f"{law}: {path} differs: {differing(leaf, right[path], names)}"
            raise LawViolation(says, by=distance(leaf, right[path]))


def check_same_names(law: str, got: Mapping[str, Any], right: Mapping[str, Any], *, names: tuple[str, str]) -> None:
    """Raise where one set of paths is not the other."""
    missing, extra = [p for p in right if p not in got], [p for p in got if p not in right]
    for paths, (has, lacks) in ((missing, names[::-1]), (extra, names)):
        if paths:
            says = f"{law}: {', '.join(paths[:6])} is there {has} and missing {lacks}"
            raise LawViolation(says, by=f"{len(paths)} names")


def differing(got: Any, right: Any, names: tuple[str, str] = ("now", "before")) -> str:
    """Say how two leaves differ, where they differ most: ``1.0 now, 2.0 before (at [0, 3])``."""
    if not (isinstance(got, Tensor) and isinstance(right, Tensor)):
        return f"{got!r} {names[0]}, {right!r} {names[1]}"
    if (got.shape, got.dtype, got.device) != (right.shape, right.dtype, right.device):
        kinds = [f"{t.dtype} of shape {tuple(t.shape)} on {t.device}" for t in (got, right)]
        return f"{kinds[0]} {names[0]}, {kinds[1]} {names[1]}"
    index = _worst(got, right)
    return f"{_at(got, index)} {names[0]}, {_at(right, index)} {names[1]}{f' (at {list(index)})' if index else ''}"


def distance(got: Any, right: Any) -> str:
    """Say how far two leaves are apart: the largest absolute difference, or that there is none to be measured."""
    if not (isinstance(got, Tensor) and isinstance(right, Tensor) and got.shape == right.shape and got.numel()):
        return "another value"
    error = float(_errors(got, right).max())
    return f"{error:.2g}" if error else "the sign of a zero"


def _at(tensor: Tensor, index: tuple[int, ...]) -> Any:
    return tensor.detach()[index].item() if tensor.numel() else "empty"


def _worst(first: Tensor, second: Tensor) -> tuple[int, ...]:
    if not first.numel():
        return ()
    position = int(_errors(first, second).argmax())
    return tuple(int(i) for i in torch.unravel_index(torch.tensor(position), first.shape))


def _errors(first: Tensor, second: Tensor) -> Tensor:
    """Absolute differences in float64; none where both are the same NaN or infinity, infinite where one is."""
    wide = torch.complex128 if first.is_complex() else torch.float64
    a, b = first.detach().to("cpu", wide), second.detach().to("cpu", wide)
    error = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    return torch.where(error.isnan(), math.inf, error)


def norm(tensors: Mapping[str, Tensor]) -> float:
    """Return ``√(Σ x²)`` over all floating entries, in float64; NaN and infinities are left out."""
    wide = [t.detach().to("cpu", torch.float64) for t in tensors.values() if t.is_floating_point()]
    return math.sqrt(sum(float(t[t.isfinite()].square().sum()) for t in wide))


def apart(got: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference of two sets of tensors; NaN counts."""
    return math.sqrt(sum(float((got[name] - leaf).double().square().sum()) for name, leaf in right.items()))


def allowed(tolerance: float, dtype: torch.dtype) -> float:
    """Return a tolerance that is meant for float64 in as many roundings of ``dtype``."""
    return tolerance * max(1.0, torch.finfo(dtype).eps / _EPS64)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two executions of one thing, and how closely they must agree.

    Attributes:
        law: how a message begins: ``"law 3 (execution-invariant)"``.
        got, right: what the two are called, as in ``"by accumulate=3"``.
        tolerance: in float64; other dtypes get as many of their own roundings.
    """

    law: str
    got: str
    right: str
    tolerance: float

    def tree(
        self, got: Mapping[str, Tensor], right: Mapping[str, Tensor], *, scale: float, of: str, stored: bool = False
    ) -> None:
        """Raise where a leaf is off by more than the tolerance times ``scale``, which is ``of`` something.

        ``stored``: the leaves carry a rounding of their own, since ``scale`` is that of a change and not of themselves.
        """
        check_same_names(self.law, got, right, names=(self.got, self.right))
        for path, leaf in got.items():
            self._leaf(path, leaf, right[path], scale, of, stored)

    def _leaf(self, path: str, got: Tensor, right: Tensor, scale: float, of: str, stored: bool) -> None:
        if (got.shape, got.dtype) != (right.shape, right.dtype):
            raise LawViolation(
                f"{self.law}: {path} is {got.dtype} of shape {tuple(got.shape)} {self.got}, and {right.dtype} of shape "
                f"{tuple(right.shape)} {self.right}"
            )
        if not got.numel():
            return
        error = float(_errors(got, right).max())
        limit = 0.0
        if got.is_floating_point():
            limit = allowed(self.tolerance, got.dtype) * scale
            if stored:
                finite = right[right.isfinite()]
                limit += _ROUNDINGS * torch.finfo(got.dtype).eps * float(finite.abs().max() if finite.numel() else 0)
        if error > limit:
            index = _worst(got, right)
            share = f"{error / scale:.2e} of {of} ({scale:.3g})" if scale else f"{error:.2e} ({of} is 0)"
            wanted = f"{allowed(self.tolerance, got.dtype):.0e} is" if got.is_floating_point() else "no difference is"
            raise LawViolation(
                f"{self.law}: {path}{list(index) if index else ''} is {_at(got, index)!r} {self.got}, and "
                f"{_at(right, index)!r} {self.right}: off by {share}, where {wanted} allowed",
                by=share,
            )

    def metrics(self, got: Mapping[str, Any], right: Mapping[str, Any]) -> None:
        """Raise where the value of a metric is off by more than the tolerance, relative to it or to 1."""
        first, second = _values(got), _values(right)
        check_same_names(self.law, first, second, names=(self.got, self.right))
        for path, value in first.items():
            scale = max(1.0, norm({path: second[path]}))
            self._leaf(path, value, second[path], scale, "its value, or of 1", False)

    def gradients(self, got: Gradient, right: Gradient) -> None:
        """Raise where two gradients differ, once divided; the norm is that of the whole gradient."""
        first, second = (named_tensors(g.mean(), "gradient") for g in (got, right))
        self.tree(first, second, scale=norm(second), of="the norm of the whole gradient")
        self.metrics(got.metrics, right.metrics)

    def states(self, got: TrainState, right: TrainState, before: TrainState, *, buffers: bool = True) -> None:
        """Raise where two states that came from ``before`` differ: parameters relative to the norm of the whole update,
        everything else relative to the norm of the tree it is in; ``buffers``: whether those are compared."""
        first, second = (
            {path: leaf for path, leaf in named_tensors(s, "state").items() if buffers or "state.buffers[" not in path}
            for s in (got, right)
        )
        check_same_names(self.law, first, second, names=(self.got, self.right))
        start = named_tensors(before.params, "state.params")
        change = {path: second[path] - leaf for path, leaf in start.items()}
        params = {path: first.pop(path) for path in start}
        self.tree(
            params,
            {path: second.pop(path) for path in start},
            scale=norm(change),
            of="the norm of the whole update",
            stored=True,
        )
        for tree in dict.fromkeys(_parent(path) for path in first):
            inside = {path: leaf for path, leaf in first.items() if _parent(path) == tree}
            same = {path: second[path] for path in inside}
            self.tree(inside, same, scale=norm(same), of=f"the norm of {tree}")

    def results(self, got: Any, right: Any, before: TrainState, *, buffers: bool = True) -> None:
        """Raise where what two steps returned differs: states and metrics, gradients, or metrics alone."""
        if type(got) is not type(right):
            raise LawViolation(
                f"{self.law}: the result is a {type(got).__name__} {self.got} and a {type(right).__name__} {self.right}"
            )
        if isinstance(right, Gradient):
            self.gradients(got, right)
        elif isinstance(right, tuple) and len(right) == 2 and isinstance(right[0], TrainState):
            self.states(got[0], right[0], before, buffers=buffers)
            self.metrics(got[1], right[1])
        elif isinstance(right, Mapping):
            self.metrics(got, right)
        else:
            first, second = named_tensors(got, "result"), named_tensors(right, "result")
            self.tree(first, second, scale=norm(second), of="the norm of the whole result")


def _values(metrics: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        f"metric {name!r}": metric if isinstance(metric, Tensor) else metric.value() for name, metric in metrics.items()
    }


def _parent(path: str) -> str:
    return path.rpartition("[" if path.endswith("]") else ".")[0]
