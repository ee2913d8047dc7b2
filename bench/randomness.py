"""The keyed generator against torch's own: a million numbers, few numbers, and a compiled dropout.

    python bench/randomness.py [uniform normal small compiled dropout] [--max-time 5] [--json runs/bench]

Compiled, the results are added up within the graph, so that the making of the numbers is what is timed, and not how a
result is handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from _report import Bench, LeftOut, Setting, Way, main
from purestep import random
from purestep.execution.compile import compiler_missing
from purestep.random.words import at_least

MANY, FEW = 1_000_000, 4096
SIDE = 1024


def _ways(setting: Setting, *pairs: tuple[str, Callable[[Tensor], Tensor]]) -> dict[str, Callable[[], Way]]:
    """Ways of a key: torch's functions leave it alone."""
    key = random.key(0, device=setting.device)

    def bound(draw: Callable[[Tensor], Tensor]) -> Callable[[], Way]:
        return lambda: lambda: draw(key)

    return {name: bound(draw) for name, draw in pairs}


def uniform(setting: Setting) -> Mapping[str, Callable[[], Way]]:
    return _ways(
        setting,
        ("torch.rand", lambda key: torch.rand(MANY, device=key.device)),
        ("purestep.random.uniform", lambda key: random.uniform(key, (MANY,))),
    )


def normal(setting: Setting) -> Mapping[str, Callable[[], Way]]:
    return _ways(
        setting,
        ("torch.randn", lambda key: torch.randn(MANY, device=key.device)),
        ("purestep.random.normal", lambda key: random.normal(key, (MANY,))),
    )


def small(setting: Setting) -> Mapping[str, Callable[[], Way]]:
    return _ways(
        setting,
        ("torch.rand", lambda key: torch.rand(FEW, device=key.device)),
        ("purestep.random.uniform", lambda key: random.uniform(key, (FEW,))),
    )


def _compiled(function: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Way]:
    def way() -> Way:
        if not inputs[0].is_cuda and (missing := compiler_missing()) is not None:
            raise LeftOut(missing)
        graph = torch.compile(function, fullgraph=True, dynamic=False)
        graph(*inputs)
        return lambda: graph(*inputs)

    return way


def compiled(setting: Setting) -> Mapping[str, Callable[[], Way]]:
    key = random.key(0, device=setting.device)
    return {
        "torch.rand": _compiled(lambda key: torch.rand(SIDE, SIDE, device=key.device).sum(), key),
        "purestep.random.uniform": _compiled(lambda key: random.uniform(key, (SIDE, SIDE)).sum(), key),
    }


def dropout(setting: Setting) -> Mapping[str, Callable[[], Way]]:
    key = random.key(0, device=setting.device)
    x = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(setting.device)

    def ours(x: Tensor, key: Tensor) -> Tensor:
        return x * at_least(key, x.shape, threshold=round(0.1 * 2**32)).to(x.dtype) * (1 / 0.9)

    return {
        "F.dropout": _compiled(lambda x, key: F.dropout(x, 0.1), x, key),
        "by purestep.random, as in a step": _compiled(ours, x, key),
    }


BENCHES = (
    Bench("random_uniform", f"{MANY:,} uniform float32 numbers", uniform, {"numbers": MANY}),
    Bench("random_normal", f"{MANY:,} normal float32 numbers", normal, {"numbers": MANY}),
    Bench("random_small", f"{FEW:,} uniform float32 numbers", small, {"numbers": FEW}),
    Bench("random_compiled", f"{SIDE} x {SIDE} uniform numbers, compiled", compiled, {"numbers": SIDE * SIDE}),
    Bench("random_dropout", f"dropout of {SIDE} x {SIDE}, compiled", dropout, {"numbers": SIDE * SIDE}),
)

if __name__ == "__main__":
    main(__doc__, BENCHES)
