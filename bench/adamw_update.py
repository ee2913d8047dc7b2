"""An AdamW update of 100 million parameters: purestep's compiled, donated update against torch's fused one.

The update alone, without forward and backward: gradients are given. purestep's looks first whether they are finite, for
which "gradients checked" does the same in torch; the others do not look. "scalars inlined" is what inductor makes of
the same step without the pass that stores the schedule's and the bias corrections' scalars (docs/decisions.md).

    python bench/adamw_update.py [--threads all] [--only torch purestep]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import _jax_ways
import _pure_ways
import _torch_ways
import purestep as ps
from _report import Bench, Setting, Way, main

LAYERS, WIDTH = 24, 2048
RATE = ps.schedules.warmup_cosine(peak=1e-6, warmup_steps=10, total_steps=100_000)


def benches(layers: int = LAYERS, width: int = WIDTH) -> list[Bench]:
    title = f"An AdamW update of {layers * width * width / 1e6:.0f}M float32 parameters"
    return [Bench("adamw_update", title, partial(ways, layers, width), {"layers": layers, "width": width})]


def ways(layers: int, width: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    generator = torch.Generator(setting.device).manual_seed(0)

    def drawn() -> Tensor:
        return 0.02 * torch.randn(width, width, generator=generator, device=setting.device)

    names = [f"{layer:03d}" for layer in range(layers)]
    values = {name: drawn() for name in names}
    grads = {name: drawn() for name in names}
    return {
        "torch, fused": lambda: torch_update(values, grads, fused=True),
        "torch, fused, gradients checked": lambda: checked(torch_update(values, grads, fused=True), grads),
        "torch, foreach": lambda: torch_update(values, grads, foreach=True),
        "torch, one graph by hand": lambda: graph_update(values, grads),
        "jax.jit + Optax, donated": lambda: jax_update(values, grads, setting),
        "purestep, compiled, donated": lambda: _pure_ways.update(ps.adamw(RATE), values, grads),
        "purestep, scalars inlined": lambda: _pure_ways.update(
            ps.adamw(RATE), values, grads, post_grad_custom_post_pass=None
        ),
    }


def torch_update(values: dict[str, Tensor], grads: dict[str, Tensor], **options: Any) -> Way:
    parameters = [nn.Parameter(value.clone()) for value in values.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = grad
    return torch.optim.AdamW(parameters, lr=1e-6, **options).step


def checked(update: Way, grads: dict[str, Tensor]) -> Way:
    """An update that refuses gradients that are not finite, as purestep's does."""

    def advance() -> None:
        if not torch.nn.utils.get_total_norm(list(grads.values())).isfinite():
            raise ArithmeticError("the gradients are not finite")
        update()

    return advance


def graph_update(values: dict[str, Tensor], grads: dict[str, Tensor]) -> Way:
    params, given = [value.clone() for value in values.values()], list(grads.values())
    update = _torch_ways.AdamW(params, RATE)
    return _torch_ways.one_graph(lambda: update(params, given))


def jax_update(values: dict[str, Tensor], grads: dict[str, Tensor], setting: Setting) -> Way:
    jax, optax = _jax_ways.setup(setting)
    return _jax_ways.update(jax, optax, _jax_ways.adamw(optax, RATE), values, grads)


if __name__ == "__main__":
    main(__doc__, benches(), max_time=10.0)
