"""The gradient of a batch from its micro-batches, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from purestep import _batches, _each, _flat, _tree, gradients, objectives, precision
from purestep._batches import Cut, Part, Run
from purestep._forward import Forward, Objective
from purestep.functional import Trainable, trainable_names
from purestep.gradients import Gradient
from purestep.objectives import Bare
from purestep.state import TrainState

Weights = Callable[[Any], Any]


class Options(NamedTuple):
    """The arguments of :func:`purestep.grad_step`, checked."""

    cut: Cut
    weights: Weights | None
    scan: bool
    trainable: Trainable
    precision: str


def read_options(
    accumulate: Any, microbatch: Any, weights: Any, loop: str, trainable: Trainable, precision_: str
) -> Options:
    """Return the options, or raise ``TypeError`` or ``ValueError`` for one that is wrong."""
    cut = _batches.read_cut(accumulate, microbatch)
    if weights is not None and not callable(weights):
        raise TypeError(f"weights must be a function batch -> weight of each term, or None, got {weights!r}")
    if loop not in ("python", "scan"):
        raise ValueError(f"loop must be one of 'python', 'scan', got {loop!r}")
    if loop == "scan" and cut.whole:
        raise ValueError("loop='scan' runs over micro-batches: give accumulate= or microbatch= with it")
    precision.check_precision(precision_)
    return Options(cut, weights, loop == "scan", trainable, precision_)


class Accumulation:
    """``(state, batch) -> Gradient``: an objective's gradient over the micro-batches of a batch.

    Args:
        model, objective: as in :func:`purestep.grad_step`.
        options: its other arguments.
        divide: nothing will be merged with a batch's gradient, so where it is whole its loss may be divided before it
            is differentiated: one backward pass however many terms it has, and no pass over the gradient to divide it.
        scaled: multiply the backward pass by the state's loss scale.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, options: Options, *, divide: bool, scaled: bool = False
    ) -> None:
        self.forward = Forward(model, objective, training=True, precision=options.precision)
        self._names = trainable_names(model, options.trainable)
        chosen = set(self._names)
        self._frozen_names = [name for name in self.forward.bound.parameter_names if name not in chosen]
        self._cut, self._weights, self._scan = options.cut, options.weights, options.scan
        self._divide, self._scaled = divide, scaled
        self._bodies: list[tuple[Any, Any]] = []

    def __call__(self, state: TrainState, batch: Any) -> Gradient:
        self.forward.check(state)
        if self._cut.whole and self._weights is None:
            outputs = gradients.value if self._divide else gradients.totals
            return self._one(state, state.buffers, Part(batch, 0, 0), outputs)
        if self._scan:
            return self._scanned(state, batch)
        parts = [Part(batch, 0, 0)] if self._cut.whole else _batches.parts_of(batch, self._cut)
        weights = self._read_weights(batch, len(parts))
        return self._checked(self._over(state, None, parts, weights), weights)

    def _over(
        self, state: TrainState, whole: Gradient | None, parts: list[Part], weights: list[Tensor] | None
    ) -> Gradient:
        """Pool the gradients of micro-batches, one after the other, with what there is before."""
        outputs = gradients.totals if weights is None else gradients.over(weights)
        for position, part in enumerate(parts):
            one = self._one(state, state.buffers if whole is None else whole.buffers, part, outputs)
            # The first sum is a tensor of our own, which the later ones may be added into.
            whole = one if whole is None else _added(whole, one, into=position > 1)
        assert whole is not None
        return whole

    def _one(
        self, state: TrainState, buffers: Any, part: Part, outputs: gradients.Outputs, *, traced: bool = False
    ) -> Gradient:
        frozen = {name: state.params[name] for name in self._frozen_names}

        def function(params: dict[str, Tensor]) -> tuple[Any, Any]:
            (loss, metrics), after = self.forward(
                {**frozen, **params},
                buffers,
                part.batch,
                state,
                bare=self._cut.whole and self._weights is None,
                first=part.first,
                count=part.length,
            )
            return loss, (after, metrics)

        trees, loss, (after, metrics) = gradients.gradients_of(
            function,
            _tree.select(state.params, self._names),
            (frozen, buffers, part.batch),
            outputs=outputs,
            scale=precision.scale_of(state.aux)["scale"] if self._scaled else None,
            traced=traced,
        )
        undivided = outputs is gradients.totals and not isinstance(loss, Bare)
        return Gradient(
            trees,
            tuple(term.weight for term in loss.terms) if undivided else (),
            TensorDict(after, batch_size=state.batch_size),
            {"loss": loss, **metrics},
        )

    def _checked(self, whole: Gradient, weights: list[Tensor] | None) -> Gradient:
        """Where denominators were given beforehand that are not the objective's, say so, or make the gradient NaN
        where they cannot be read: the step would be one of a wrong rate, and nobody would know."""
        if weights is None:
            return whole
        counted = [term.weight for term in whole.metrics["loss"].terms]
        fits = torch.stack(
            [torch.isclose(w.to(c.dtype), c, rtol=1e-4, atol=0.0) for w, c in zip(weights, counted, strict=True)]
        ).all()
        if fits.device.type == "cpu" and _tree.readable(fits):
            if not bool(fits):
                raise ValueError(
                    f"weights(batch) must be the weight of each of the loss's terms over the whole batch, got "
                    f"{[float(w) for w in weights]}, and the objective counted {[float(c) for c in counted]}"
                )
            return whole
        total = tuple(_tree.map_leaves(lambda leaf: torch.where(fits, leaf, torch.nan), tree) for tree in whole.total)
        return Gradient(total, whole.weight, whole.buffers, whole.metrics)

    def _read_weights(self, batch: Any, parts: int) -> list[Tensor] | None:
        """Return the denominators of the terms that ``weights=`` gives. ``None`` in their place stands for a term of
        :func:`purestep.once`, which every micro-batch has once."""
        if self._weights is None:
            return None
        given = self._weights(batch)
        weights = []
        for position, weight in enumerate(given if isinstance(given, (tuple, list)) else (given,)):
            if weight is None:
                weight = torch.full((), float(parts))
            if not isinstance(weight, Tensor) or weight.dim() != 0:
                raise ValueError(
                    f"weights(batch) must be a 0-d tensor for each term of the loss (None for one of ps.once), got "
                    f"{weight!r} for term {position}"
                )
            weights.append(weight.detach())
        return weights

    def _scanned(self, state: TrainState, batch: Any) -> Gradient:
        """While a graph is traced, run the first micro-batch of each length by itself, which tells the structure of
        what is carried on, and ``scan`` over the others; otherwise, run one after the other."""
        runs = _batches.runs_of(batch, self._cut)
        weights = self._read_weights(batch, sum(run.number for run in runs))
        whole: Gradient | None = None
        for run in runs:
            if torch.compiler.is_compiling():
                whole = self._over(state, whole, [run.part(0)], weights)
                if run.number > 1:
                    whole = self._scan_over(state, whole, run, weights or [])
            else:
                whole = self._over(state, whole, [run.part(i) for i in range(run.number)], weights)
                self._know_body(state, whole, run.part(0).batch)
        assert whole is not None
        return self._checked(whole, weights)

    def _know_body(self, state: TrainState, whole: Gradient, batch: Any) -> None:
        """Make the body of a scan over batches like ``batch``. Torch traces a body that enters a mode only where it
        was made outside the trace, and a step runs once before it is compiled."""
        forms = tuple(_flat.flatten(value, "")[1] for value in (state, batch, whole))
        if any(known[:2] == forms[:2] for known, _ in self._bodies):
            return
        state_form, batch_form, form = forms

        def body(
            carry: list[Tensor], rows: list[Tensor], leaves: list[Tensor], weights: list[Tensor]
        ) -> tuple[list[Tensor], list[Tensor]]:
            sofar, state = _flat.unflatten(form, carry), _flat.unflatten(state_form, leaves)
            part = Part(_flat.unflatten(batch_form, rows[1:]), rows[0], rows[1].shape[0])
            outputs = gradients.over(weights) if weights else gradients.totals
            merged = _added(sofar, self._one(state, sofar.buffers, part, outputs, traced=True))
            return [new.to(old.dtype).clone() for new, old in zip(_leaves(merged), carry, strict=True)], []

        self._bodies.append((forms, torch._dynamo.nonstrict_trace(body)))

    def _scan_over(self, state: TrainState, whole: Gradient, run: Run, weights: list[Tensor]) -> Gradient:
        """Pool the micro-batches of a run but the first with ``whole``."""
        rows, carried = _leaves(run.batches), [leaf.clone() for leaf in _leaves(whole)]
        leaves, state_form = _flat.flatten(state, "state")
        _, batch_form = _flat.flatten(run.part(0).batch, "batch")
        for forms, body in self._bodies:
            if _flat.same_structure(forms[0], state_form) and _flat.same_structure(forms[1], batch_form):
                starts = run.first + run.length * torch.arange(1, run.number, device=rows[0].device)
                rest = [starts, *(row[1:] for row in rows)]
                last, _ = scan(lambda c, x: body(c, x, leaves, weights), carried, rest)  # noqa: B023 (it runs at once)
                return _flat.unflatten(forms[2], last)
        raise RuntimeError('a step with loop="scan" is compiled with ps.compile, or has to run once eagerly before')


def _leaves(value: Any) -> list[Tensor]:
    return _flat.flatten(value, "")[0]


def _added(sofar: Gradient, other: Gradient, *, into: bool = False) -> Gradient:
    """Pool two micro-batches; of gradients that are divided already by the whole batch's weights, the sum is meant.

    ``into``: the totals of ``sofar`` are nobody else's, and may be written where nobody traces or differentiates.
    """
    if bool(sofar.weight) != bool(other.weight) or len(sofar.total) != len(other.total):
        return sofar.merge(other)  # raises
    total = tuple(_sum(a, b, into) for a, b in zip(sofar.total, other.total, strict=True))
    weight = tuple(a + b for a, b in zip(sofar.weight, other.weight, strict=True))
    return Gradient(total, weight, other.buffers, objectives.merge(sofar.metrics, other.metrics))


def _sum(tree: TensorDict, other: TensorDict, into: bool) -> TensorDict:
    names = list(_tree.as_dict(tree))
    ours, theirs = _tree.leaves(tree, names), _tree.leaves(other, names)
    each = _each.arithmetic(ours, theirs)
    return _tree.named(names, each.add_into(ours, theirs) if into else each.add_scaled(ours, theirs, 1.0), tree)
