"""Metrics of many steps: pooled where they are, and read by the host without making the device wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from purestep import _checks, objectives
from purestep.objectives import Bare, Loss, Mean


class Window:
    """The metrics of consecutive batches, pooled on their device.

    The totals and weights of each :class:`Mean` and :class:`Loss` are added up in float64 (float32 on MPS, which has no
    float64): a float32 count of examples stops growing at 2^24. Other metrics merge by their own ``merge``; of plain
    tensors the last stays, as in :func:`purestep.merge`. Nothing of an earlier batch is kept, so a step may write its
    next metrics over its last ones.

    Args:
        last_bare: keep the last one also of losses that were bare tensors, which cannot be pooled; otherwise two of
            them are the ``TypeError`` of their ``merge``.
    """

    def __init__(self, *, last_bare: bool) -> None:
        self._last_bare = last_bare
        self._form: list[tuple[str, int]] = []  # each name, and its number of terms in the vector
        self._alike = False  # whether the terms can be stacked as they are
        self._sums: Tensor | None = None
        self._others: dict[str, Any] = {}
        self._read: list[list[Any]] = []  # what was read of the others, until a batch shows what they are made of
        self.steps = 0
        self.resumed = 0  # how many of the steps are those of an earlier run

    def add(self, metrics: Any) -> None:
        """Pool the metrics of one more batch; they must have the names and terms of those before."""
        if not isinstance(metrics, Mapping):
            raise TypeError(f"metrics must be a dict of ps.mean(values) and tensors, got {type(metrics).__name__}")
        terms: list[Tensor] = []
        others: dict[str, Any] = {}
        form: list[tuple[str, int]] = []
        for name, metric in metrics.items():
            kind = type(metric)
            means = (metric,) if kind is Mean else metric.terms if kind is Loss else ()
            for mean in means:
                terms += (mean.total, mean.weight)
            if not means:
                others[name] = metric.value() if self._last_bare and kind is Bare else metric
            form.append((name, len(means)))
        if not self.steps:
            self._form = form
        elif form != self._form:
            raise ValueError(
                f"metrics must have the same names and terms for every batch, got {_described(self._form)} and then "
                f"{_described(form)}"
            )
        if self.steps == self.resumed:
            self._begin(terms, others)
        for name, metric in others.items():
            known = self._others.get(name)
            if isinstance(metric, Tensor):
                self._others[name] = metric
            elif known is None:
                self._others[name] = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), metric)
            else:
                self._others[name] = objectives.merge(known, metric)
        if terms:
            # One vector is two small kernels a step, where adding up each term would be a kernel for each.
            vector = torch.stack(terms if self._alike else _alike(terms)).detach()
            self._sums = vector.to(_wide(vector.device)) if self._sums is None else self._sums.add_(vector)
        self.steps += 1

    def _begin(self, terms: list[Tensor], others: dict[str, Any]) -> None:
        for name, metric in others.items():
            _check_metric(name, metric)
        self._alike = all(term.is_floating_point() and term.device == terms[0].device for term in terms)
        if self._sums is not None:
            self._sums = self._sums.to(terms[0].device, _wide(terms[0].device))
        for (name, metric), leaves in zip(others.items(), self._read, strict=bool(self._read)):
            if not isinstance(metric, Tensor):
                self._others[name] = _rebuilt(name, leaves, metric)
        self._read = []

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what ``Window.resume`` goes on from: tensors by name, and the rest as JSON has it.

        Raises:
            TypeError: a metric that torch cannot take apart into tensors.
        """
        tensors = {} if self._sums is None else {"sums": self._sums}
        others = []
        for position, (name, metric) in enumerate(self._others.items()):
            leaves = [] if isinstance(metric, Tensor) else pytree.tree_leaves(metric)  # of tensors, the last stays
            others.append([_kind(name, leaf) for leaf in leaves])
            for place, leaf in enumerate(leaves):
                tensors[f"other-{position}-{place}"] = torch.as_tensor(leaf)
        form = [list(each) for each in self._form]
        return tensors, {"last_bare": self._last_bare, "steps": self.steps, "form": form, "others": others}

    @classmethod
    def resume(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Window:
        """Return a window that goes on with the next batch from where ``state()`` was, and cannot be pooled before."""
        window = cls(last_bare=about["last_bare"])
        window._form = [(name, count) for name, count in about["form"]]
        window.steps = window.resumed = about["steps"]
        window._sums = tensors.get("sums")
        for position, kinds in enumerate(about["others"]):
            read = (tensors[f"other-{position}-{place}"] for place in range(len(kinds)))
            window._read.append([_as(kind, leaf) for kind, leaf in zip(kinds, read, strict=True)])
        return window

    def pooled(self) -> dict[str, Any]:
        """Return the metrics of all batches so far, by name, in the order of the first."""
        parts = iter(() if self._sums is None else self._sums.clone().unbind())
        metrics: dict[str, Any] = {}
        for name, count in self._form:
            means = tuple(Mean(next(parts), next(parts)) for _ in range(count))
            # A Loss of one term has the value of a Mean, and merges with one.
            metrics[name] = means[0] if count == 1 else Loss(means) if means else self._others[name]
        return metrics


class Reading:
    """The values of metrics on their way to the host, as one small copy.

    On CUDA the copy goes into page-locked memory behind what is queued already, and the host goes on at once; on the
    CPU there is nothing to wait for. Another device is read by ``values()``, which waits.

    Raises:
        ValueError: a metric whose value is not one number.
    """

    def __init__(self, metrics: Mapping[str, Any]) -> None:
        values = {name: _one_number(name, metric) for name, metric in metrics.items()}
        self._names = tuple(values)
        self._event: torch.cuda.Event | None = None
        if not values:
            self._vector = torch.zeros(0)
            return
        device = next((v.device for v in values.values() if v.device.type != "cpu"), torch.device("cpu"))
        wide = _wide(device)
        self._vector = torch.stack([v.to(device, wide, non_blocking=True) for v in values.values()])
        if device.type == "cuda":
            host = torch.empty(self._vector.shape, dtype=wide, pin_memory=True)
            self._vector = host.copy_(self._vector, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def arrived(self) -> bool:
        """Whether ``values()`` would not wait."""
        return self._event.query() if self._event is not None else self._vector.device.type == "cpu"

    def values(self) -> dict[str, float]:
        """Return the values by name."""
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._vector.tolist(), strict=True))


_PLAIN = {"bool": bool, "int": int, "float": float}


def _kind(name: str, leaf: Any) -> str:
    """Return what a leaf of a metric is: a tensor, or a number that a tensor keeps for it."""
    kind = "tensor" if isinstance(leaf, Tensor) else type(leaf).__name__
    if kind != "tensor" and _PLAIN.get(kind) is not type(leaf):
        raise TypeError(
            f"metric {name!r} must be made of tensors and numbers to be kept in a checkpoint, got {leaf!r} in it: "
            "register its class with torch.utils._pytree.register_pytree_node"
        )
    return kind


def _as(kind: str, leaf: Tensor) -> Any:
    return leaf if kind == "tensor" else leaf.item()


def _rebuilt(name: str, leaves: list[Any], like: Any) -> Any:
    """Return a metric of these leaves, each where it is in ``like``."""
    there, spec = pytree.tree_flatten(like)
    if len(there) != len(leaves):
        raise ValueError(
            f"metric {name!r} must be what it was in the run that is resumed, of {len(leaves)} tensors, got a "
            f"{type(like).__name__} of {len(there)}"
        )
    pairs = zip(leaves, there, strict=True)
    moved = [a.to(b.device) if isinstance(a, Tensor) and isinstance(b, Tensor) else a for a, b in pairs]
    return pytree.tree_unflatten(moved, spec)


def _one_number(name: str, metric: Any) -> Tensor:
    if isinstance(metric, (int, float)):
        metric = torch.tensor(float(metric), dtype=torch.float64)
    _check_metric(name, metric)
    value = (metric if isinstance(metric, Tensor) else metric.value()).detach()
    if value.numel() != 1 or value.is_complex():
        raise ValueError(
            f"metric {name!r} must be one real number to be logged, got shape {tuple(value.shape)} of {value.dtype}"
        )
    return value.reshape(())


def _alike(terms: list[Tensor]) -> list[Tensor]:
    """Return the terms on one device, and integers as wide floats: beside a float32, a stack would round them."""
    device = terms[0].device
    return [
        term if term.is_floating_point() and term.device == device else term.to(device, _wide(device)) for term in terms
    ]


def _check_metric(name: str, metric: Any) -> None:
    if not isinstance(metric, (Tensor, objectives.Metric)):
        raise TypeError(
            f"metric {name!r} must be ps.mean(values), another mergeable metric or a tensor, got {metric!r}"
        )


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _described(form: Any) -> str:
    return _checks.listed(f"{name} of {count} terms" if count > 1 else name for name, count in form)
