"""An AdamW update of 50 million parameters: purestep's compiled, donated update against torch's fused one.

The update alone, without forward and backward: gradients are given. "scalars inlined" is what inductor makes of the
same step without the pass that stores the schedule's and the bias corrections' scalars (docs/decisions.md).

    python bench/adamw_update.py [--threads 2] [--rounds 9]
"""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps

import _interleaved

LAYERS, WIDTH = 12, 2048
RATE = ps.schedules.warmup_cosine(peak=1e-3, warmup_steps=10, total_steps=1_000)


def pure_update(model: nn.Module, grads: TensorDict, **options: Any) -> _interleaved.Way:
    optimizer = ps.adamw(RATE)
    update = ps.update_step(optimizer)

    def step(state: ps.TrainState, grads: TensorDict) -> Any:
        loss = ps.Mean(torch.ones(()), torch.ones(()))
        return update(state, ps.Gradient((grads,), (), state.buffers, {"loss": loss}))

    compiled = ps.compile(step, donate=True, options=options)
    state = ps.init_state(model, optimizer, seed=0)

    def advance() -> None:
        nonlocal state
        state, _ = compiled(state, grads)

    return advance


def torch_update(model: nn.Module, grads: TensorDict, **options: Any) -> _interleaved.Way:
    parameters = [nn.Parameter(parameter.detach().clone()) for parameter in model.parameters()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = grad
    return torch.optim.AdamW(parameters, lr=1e-3, **options).step


def main() -> None:
    options = _interleaved.parser(__doc__, "adamw_update", rounds=9, calls=3, threads=2).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(0.02 * torch.randn(WIDTH, WIDTH)) for _ in range(LAYERS)])
    grads = TensorDict({name: torch.randn_like(parameter) for name, parameter in model.named_parameters()})
    ways = {
        "torch, fused": torch_update(model, grads, fused=True),
        "torch, foreach": torch_update(model, grads, foreach=True),
        "purestep, compiled, donated": pure_update(model, grads),
        "purestep, scalars inlined": pure_update(model, grads, post_grad_custom_post_pass=None),
    }
    _interleaved.report(
        "adamw_update",
        f"AdamW, {LAYERS * WIDTH * WIDTH / 1e6:.0f}M float32 parameters, {options.threads} thread(s)",
        _interleaved.measure(ways, rounds=options.rounds, calls=options.calls),
        baseline="torch, fused",
        settings={"threads": options.threads, "rounds": options.rounds, "calls": options.calls},
        json_path=options.json,
    )


if __name__ == "__main__":
    main()
