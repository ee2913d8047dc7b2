"""The overhead of a training step: purestep against hand-written loops, Fabric, accelerate, TorchOpt, and JAX.

A three-layer MLP is small enough that a step's time is mostly what surrounds the mathematics. All ways train the same
model on the same batch with AdamW and a warm-up schedule.

    python bench/step_overhead.py [--threads 1] [--only torch purestep]
"""

from __future__ import annotations

from _report import Bench, main
from _step_ways import step_bench
from _works import mlp


def benches() -> list[Bench]:
    return [step_bench(mlp(), "step_overhead")]


if __name__ == "__main__":
    main(__doc__, benches())
