"""A training step of larger works, each way.

    python bench/step.py [conv] [gpt] [accumulate] [ensemble] [--threads all] [--only torch purestep]

conv: a convolutional net on synthetic pictures of MNIST's size. gpt: a character GPT on the text of Python's
``help()``. accumulate: the small MLP's batch in 8 micro-batches. ensemble: 64 small MLPs on one batch.
"""

from __future__ import annotations

from _report import Bench, main
from _step_ways import ensemble_bench, step_bench
from _works import conv, gpt, mlp


def benches() -> list[Bench]:
    accumulated = step_bench(mlp(batch=256, accumulate=8), "step_accumulate")
    return [step_bench(conv(), "step_conv"), step_bench(gpt(), "step_gpt"), accumulated, ensemble_bench()]


if __name__ == "__main__":
    main(__doc__, benches(), max_time=20.0)
