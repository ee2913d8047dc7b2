"""One graph for a whole step, and donation: the new state written over the old one's storage."""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from purestep import _flat, _tree
from purestep.execution import _boundary
from purestep.execution._boundary import Flat
from purestep.execution._random_operations import RefuseRandomOperations
from purestep.execution._scalars import StoreScalars
from purestep.nonfinite import NonFinite, findings, raise_pending
from purestep.state import TrainState


def compile(
    step: Callable[[TrainState, Any], Any],
    *,
    donate: bool = False,
    dynamic: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[TrainState, Any], Any]:
    """Return a step with the same meaning, compiled into one graph by ``torch.compile(fullgraph=True)``.

    Forward, backward, clipping, schedule and update are one graph. Nothing that changes during training lives outside
    the state, so a new rate, step or key compiles nothing. A batch of another shape compiles once more; that graph
    takes any length.

    Args:
        step: a pure function ``(state, batch) -> (state, metrics)`` or ``(state, batch) -> metrics``. What it closes
            over (modules, numbers, tensors) is taken as constant: changing it later has no effect.
        donate: write the new state into the storage of the old one, inside the graph, so that no second copy of the
            model exists. The state that was given in then refuses to be read, by name; tensors that were taken out of
            it earlier change: clone what must stay.
        dynamic, options: as in ``torch.compile``; ``options`` are inductor's.

    Returns:
        A function of the same arguments, results and attributes. Called inside ``torch.func`` transforms or another
        compilation, it is ``step`` itself, without donation.

    Raises:
        TypeError: ``step`` is no function; at the call, a state that is no :class:`TrainState`, or a batch that is not
            made of tensors.
        RuntimeError: at the first call on the CPU, where torch finds no C++ compiler.
        ValueError: at the call, with ``donate``, where two entries of the state share storage, or where the new state
            cannot take the old one's place.
    """
    if not callable(step):
        raise TypeError(f"step must be a function (state, batch) -> (state, metrics), got {step!r}")
    compiled = _Compiled(step, donate, dynamic, dict(options or {}))

    @functools.wraps(step)
    def compiled_step(state: TrainState, batch: Any) -> Any:
        if _tree.is_transformed():
            return step(state, batch)
        return compiled(state, batch)

    return compiled_step


def compiler_missing() -> str | None:
    """Return why torch's compiler cannot work on this CPU, or ``None`` where it can."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        return (
            "torch's compiler needs a C++ compiler on the CPU, and none was found: install g++ or clang (Debian: "
            "`apt-get install g++`), or name one in the environment variable CXX; or run the step without ps.compile"
        )
    return None


_COUNTER = itertools.count()

# Positions of 0-d float64 leaves in the state and in the batch: see _widened.
_Numbers = tuple[tuple[int, ...], tuple[int, ...]]


class _Probe(NamedTuple):
    """What is known of a step's results before it is compiled: their form (of the metrics alone, where it donates), and
    the places ``(to, source)`` of new entries that are old entries of another place."""

    returns_state: bool
    form: Any
    moved: tuple[tuple[int, int], ...] = ()


class _Graph:
    """One structure of (state, batch) and what was compiled for it."""

    def __init__(
        self,
        run: Callable[..., list[Tensor]],
        probe: _Probe,
        numbers: _Numbers,
        search: RefuseRandomOperations,
    ) -> None:
        self._run, self._search = run, search
        self.form, self.returns_state, self.numbers = probe.form, probe.returns_state, numbers
        self.moved = probe.moved
        self.may_raise = _flat.holds(probe.form, NonFinite)

    def run(self, state_leaves: list[Tensor], batch_leaves: list[Tensor]) -> list[Tensor]:
        try:
            return self._traced(state_leaves, batch_leaves)
        except Exception:
            if self._search.error is not None:  # the compiler wraps it in an error of its own
                refused, self._search.error = self._search.error, None
                raise refused from None
            raise

    def _traced(self, state_leaves: list[Tensor], batch_leaves: list[Tensor]) -> list[Tensor]:
        try:
            return self._run(state_leaves, batch_leaves)
        except torch._dynamo.exc.Unsupported as error:
            if "allow_rnn" not in str(error):
                raise
        # A recurrent network, which Dynamo traces where it is told to.
        with torch._dynamo.config.patch(allow_rnn=True):
            return self._run(state_leaves, batch_leaves)


class _Compiled:
    """A step, and the graphs compiled for the structures of arguments that it has met."""

    def __init__(self, step: Callable[..., Any], donate: bool, dynamic: bool | None, options: dict[str, Any]) -> None:
        self._step, self._donate, self._dynamic, self._options = step, donate, dynamic, options
        self._name = getattr(step, "__qualname__", repr(step))
        self._graphs: dict[Any, _Graph] = {}

    def __call__(self, state: TrainState, batch: Any) -> Any:
        flat = _boundary.flatten_state(state)
        inputs, batch_form = _flat.flatten(batch, "batch")
        graph = self._graphs.get((flat.form, batch_form))
        if graph is None:
            graph = self._graphs[flat.form, batch_form] = self._trace(flat, Flat(inputs, batch_form))
        donating = self._donate and graph.returns_state
        if donating:
            _boundary.check_owned(state, flat)
        # An entry that moves to another place is copied around the graph: inside, inductor would drop the copy that
        # keeps it from being overwritten first.
        moved = [(flat.leaves[to], flat.leaves[source].clone()) for to, source in graph.moved]
        outputs = graph.run(_widened(flat.leaves, graph.numbers[0]), _widened(inputs, graph.numbers[1]))
        results = _flat.unflatten(graph.form, outputs)
        if graph.may_raise:  # the graph left the state as it was, and nothing is handed over yet
            results = raise_pending(results)
        for leaf, value in moved:
            leaf.copy_(value)
        return (_boundary.hand_over(state, flat, self._name), results) if donating else results

    def _trace(self, state: Flat, batch: Flat) -> _Graph:
        search = RefuseRandomOperations()
        options: dict[str, Any] = {"guard_filter_fn": _only_arguments, "joint_custom_pre_pass": search}
        if any(leaf.device.type == "cpu" for leaf in state.leaves):
            missing = compiler_missing()
            if missing:
                raise RuntimeError(missing)
            options["post_grad_custom_post_pass"] = StoreScalars()
        probe = self._probe(state, batch)
        numbers = _numbers(state.leaves), _numbers(batch.leaves)
        kept = {to for to, _ in probe.moved} if self._donate and probe.returns_state else None
        run = _flat_function(self._step, state.form, batch.form, probe.form, numbers, kept)
        options |= self._options
        compiled = torch.compile(run, fullgraph=True, dynamic=self._dynamic, options=options)
        return _Graph(compiled, probe, numbers, search)

    def _probe(self, state: Flat, batch: Flat) -> _Probe:
        """Run the step once on tensors without storage: its errors are raised as they are, and its results' form is
        known. (It also lets a module write what it writes at its first call, which would compile it twice.)"""
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            leaves = _boundary.fake(state.leaves, mode)
            results = self._step(
                _flat.unflatten(state.form, leaves),
                _flat.unflatten(batch.form, _boundary.fake(batch.leaves, mode)),
            )
            returns_state = isinstance(results, tuple) and len(results) == 2 and isinstance(results[0], TrainState)
            if not (self._donate and returns_state):
                return _Probe(returns_state, _flat.flatten(results, "results")[1])
            after = _boundary.flatten_state(results[0])
            _boundary.check_same_form(Flat(leaves, state.form), after, self._name)
            moved = _boundary.moved(leaves, after.leaves, self._name)
            return _Probe(True, _flat.flatten(results[1], "metrics")[1], moved)


def _numbers(leaves: list[Tensor]) -> tuple[int, ...]:
    return tuple(i for i, leaf in enumerate(leaves) if _flat.is_number(leaf))


def _widened(leaves: list[Tensor], numbers: tuple[int, ...]) -> list[Tensor]:
    """Dynamo takes a 0-d float64 tensor on the CPU for a Python number: it guards on its not being NaN, traces the
    step twice, and the second time loses what is written into it. A view with one dimension is a tensor to it."""
    return [leaf.view(1) if i in numbers else leaf for i, leaf in enumerate(leaves)] if numbers else leaves


def _flat_function(
    step: Callable[..., Any], state_form: Any, batch_form: Any, form: Any, numbers: _Numbers, kept: set[int] | None
) -> Callable[..., Any]:
    """Return ``step`` as a function of flat lists. Where it donates, it writes the new state into the old leaves, but
    for those in ``kept``; ``kept`` is ``None`` where it does not donate. ``form`` is what its results had in the probe;
    Dynamo traces again for a batch of another length, and results of another form would get the wrong names."""

    def run(state_leaves: list[Tensor], batch_leaves: list[Tensor]) -> list[Tensor]:
        state_leaves = [leaf.view(()) if i in numbers[0] else leaf for i, leaf in enumerate(state_leaves)]
        batch_leaves = [leaf.view(()) if i in numbers[1] else leaf for i, leaf in enumerate(batch_leaves)]
        results = step(_flat.unflatten(state_form, state_leaves), _flat.unflatten(batch_form, batch_leaves))
        outputs, got = _flat.flatten(results if kept is None else results[1], "results")
        if not _flat.same_structure(got, form):
            raise ValueError("a step's results must have the same names and structure for every length of the batch")
        if kept is None:
            return outputs
        after = _unless_raising(results[1], state_leaves, _boundary.flatten_state(results[0]).leaves, kept)
        # A metric that is an entry of the old state, or a view of one, would change with it.
        outputs = [output.clone() for output in outputs]
        for place, (old, new) in enumerate(zip(state_leaves, after, strict=True)):
            if new is not old and place not in kept:
                old.copy_(new)
        return outputs

    # Dynamo keeps what it compiled with the code object, and we drop the guards that would tell two closures of one
    # code object apart: each needs a code object of its own. What it has seen vary (the shapes of arguments) it keeps
    # by the code's name and line: each needs a name of its own, or a first call finds the shapes of another step.
    name = f"{run.__name__}_{next(_COUNTER)}"
    return types.FunctionType(
        run.__code__.replace(co_name=name, co_qualname=name), run.__globals__, run.__name__, None, run.__closure__
    )


def _unless_raising(metrics: Any, before: list[Tensor], after: list[Tensor], kept: set[int]) -> list[Tensor]:
    """Return the new leaves, or the old ones where a step is going to raise. (A step may be made of several, be one of
    replicas, or write more than an update does: nothing of the state that was given may change then.)"""
    raising = [found.found.any() for found in findings(metrics)]
    if not raising:
        return after
    stays = torch.stack(raising).any()
    pairs = enumerate(zip(before, after, strict=True))
    return [new if new is old or place in kept else torch.where(stays, old, new) for place, (old, new) in pairs]


def _only_arguments(entries: Sequence[Any]) -> list[bool]:
    """Keep Dynamo's guards on the arguments and on torch's global modes; a step closes over constants only."""
    arguments = ("state_leaves", "batch_leaves", "L['state_leaves']", "L['batch_leaves']")
    return [entry.name == "" or entry.name.startswith(arguments) for entry in entries]
