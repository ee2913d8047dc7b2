"""A pytest plugin on pytest-benchmark: the fixture ``step_benchmark``.

Every pytest run loads it where purestep is installed, so it imports nothing before the fixture is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from purestep.measure.report import StepReport


class StepBenchmark:
    """What the fixture ``step_benchmark`` is: a training step under pytest-benchmark.

    Call it with a step, a state and a batch. Each round is a run of steps, driven on from the state the last one
    returned, and ends when the device has finished. The figures of :func:`purestep.measure.report` go into the
    benchmark's ``extra_info``, and from there into pytest-benchmark's JSON.
    """

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def device(self, name: str) -> torch.device:
        """Return the device, or skip the test where it is not here, saying why.

        Raises:
            ValueError: a device that is neither a CPU nor a CUDA device.
        """
        from purestep.measure._machine import AbsentDeviceError, check_device

        try:
            return check_device("device", name)
        except AbsentDeviceError as error:
            pytest.skip(str(error))

    def __call__(
        self,
        step: Callable[..., Any],
        state: Any,
        batch: Any,
        *,
        tokens: int | Callable[[Any], int] | None = None,
        rounds: int = 20,
        steps: int | None = None,
        threads: int | None = None,
    ) -> StepReport | None:
        """Benchmark a step, and return its report; ``None`` under ``--benchmark-disable``, which takes one step.

        Args:
            step, state, batch, tokens, threads: as in :func:`purestep.measure.report`. The state given stays as it is.
            rounds: of pytest-benchmark; each is one figure of its table, which is therefore ``steps`` times a step's.
            steps: in a round; by default as many as take 1 ms (5 ms on CUDA).

        Raises:
            TypeError, ValueError: as in :func:`purestep.measure.report`, or rounds or steps below 1.
        """
        from purestep import _checks
        from purestep.measure._drive import Drive
        from purestep.measure._machine import thread_count
        from purestep.measure.report import report

        _checks.integer("rounds", rounds, minimum=1)
        if steps is not None:
            _checks.integer("steps", steps, minimum=1)
        if self._benchmark.disabled:
            with thread_count(threads):
                self._benchmark(Drive(step, state.clone(), batch).wait)
            return None
        measured = report(step, state, batch, tokens=tokens, threads=threads)
        drive = Drive(step, state.clone(), batch)
        calls = steps or measured.timing.calls

        def a_round() -> None:
            for _ in range(calls):
                drive()
            drive.wait_for_device()

        with thread_count(threads):
            self._benchmark.pedantic(a_round, rounds=rounds, warmup_rounds=1)
        self._benchmark.extra_info.update(
            {"step": measured.name, "device": measured.device, "threads": measured.timing.threads, "steps": calls}
        )
        self._benchmark.extra_info.update(measured.figures())
        return measured


@pytest.fixture
def step_benchmark(request: pytest.FixtureRequest) -> StepBenchmark:
    """A training step under pytest-benchmark, with purestep's figures in ``extra_info``."""
    if not request.config.pluginmanager.hasplugin("benchmark"):
        pytest.skip("step_benchmark needs pytest-benchmark: pip install pytest-benchmark")
    return StepBenchmark(request.getfixturevalue("benchmark"))
