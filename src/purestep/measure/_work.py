"""What a step computes, moves, compiles and launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from purestep.measure._arguments import named_tensors
from purestep.state import TrainState


@dataclass(frozen=True)
class Work:
    """What one step must do at least.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention; ``None`` where not counted.
        bytes_read: of the state and the batch.
        bytes_written: of the entries of the state that change.
    """

    flops: int | None
    bytes_read: int
    bytes_written: int


def work_of(step: Callable[..., Any], state: TrainState, batch: Any) -> Work:
    """Count what an eager step does, on tensors without storage: it costs no time on the device and no memory.

    A step whose course depends on values cannot run so; it is then run once on a clone of the state.
    """
    read = sum(tensor.nbytes for _, tensor in named_tensors((state, batch), ""))
    everything = sum(tensor.nbytes for _, tensor in named_tensors(state, ""))
    for storage in (False, True):
        try:
            with torch.random.fork_rng(devices=[]):
                flops, written = _counted(step, state, batch, storage=storage)
        except Exception:
            continue
        return Work(flops, read, written)
    return Work(None, read, everything)


def _counted(step: Callable[..., Any], state: TrainState, batch: Any, *, storage: bool) -> tuple[int, int]:
    if storage:
        return _run(step, state.clone(), batch)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        stand_in = state.apply(lambda leaf: mode.from_tensor(leaf.detach()))
        return _run(step, stand_in, _faked(batch, mode))


def _run(step: Callable[..., Any], state: TrainState, batch: Any) -> tuple[int, int]:
    before = dict(named_tensors(state, ""))
    with FlopCounterMode(display=False) as counter:
        after, _ = step(state, batch)
    written = sum(new.nbytes for path, new in named_tensors(after, "") if new is not before.get(path))
    return counter.get_total_flops(), written


def _faked(batch: Any, mode: FakeTensorMode) -> Any:
    if hasattr(batch, "apply"):
        return batch.apply(lambda leaf: mode.from_tensor(leaf.detach()))
    return pytree.tree_map_only(torch.Tensor, lambda leaf: mode.from_tensor(leaf.detach()), batch)


class Compilations:
    """Graphs compiled and graph breaks, counted from when it was made."""

    def __init__(self) -> None:
        self._before = self._counters()

    def so_far(self) -> tuple[int, int]:
        """Return ``(graphs, graph breaks)``."""
        graphs, breaks = self._counters()
        return graphs - self._before[0], breaks - self._before[1]

    @staticmethod
    def _counters() -> tuple[int, int]:
        from torch._dynamo.utils import counters

        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def count_launches(call: Callable[[], None]) -> int:
    """Return how many kernels a call runs on CUDA, copies and fills among them."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    # Annotations (a user's record_function, an optimizer's step) are shown on the device as well.
    return sum(
        event.device_type == DeviceType.CUDA and not event.is_user_annotation for event in profiler.events() or ()
    )
