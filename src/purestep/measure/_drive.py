"""A training step as a function without arguments, driven on from the state that it returned last."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from purestep.measure._arguments import device_of, name_of, named_tensors
from purestep.state import TrainState

Step = Callable[[TrainState, Any], Any]


class Drive:
    """The step as a function without arguments: each call starts from the state that the last one returned."""

    def __init__(self, step: Step, state: TrainState, batch: Any) -> None:
        self._step, self._state, self._batch = step, state, batch
        self._device = device_of(named_tensors(state, "state")) or torch.device("cpu")
        self.__qualname__ = name_of(step)

    def __call__(self) -> None:
        results = self._step(self._state, self._batch)
        if not (isinstance(results, tuple) and len(results) == 2 and isinstance(results[0], TrainState)):
            raise TypeError(
                f"step must return (state, metrics) to be driven on, got {type(results).__name__}: time a function "
                "that returns no state with measure.time(step, state, batch)"
            )
        self._state = results[0]

    def wait_for_device(self) -> None:
        """Return once the state's device has done what it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def wait(self) -> None:
        """One call, until the device has done it."""
        self()
        self.wait_for_device()

    def timed(self) -> float:
        """The wall time of one call until the device has done it, in seconds."""
        began = perf_counter()
        self.wait()
        return perf_counter() - began
