"""The benchmarks that come with purestep: its parts on this machine, each against torch, with no peer to install.

Every one leaves torch's global random state as it is. What is compiled is left out where there is no compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from purestep.data.orders import shuffled
from purestep.execution.compile import compile, compiler_missing
from purestep.gradients import Gradient
from purestep.measure.suite import Functions, benchmark
from purestep.objectives import Mean, mean
from purestep.optimizers import adamw
from purestep.schedules import warmup_cosine
from purestep.state import TrainState, init_state
from purestep.step import train_step, update_step

Step = Callable[..., Any]

_RATE = warmup_cosine(peak=1e-3, warmup_steps=100, total_steps=100_000)
_PARTS = 8


@benchmark("step", title="One step of a three-layer MLP with AdamW and a schedule, batch 32")
def _step(device: torch.device) -> Functions:
    return _steps(device, batch=_batch(32, device), parts=1)


@benchmark("accumulate", title=f"The same step on a batch of 256 in {_PARTS} parts")
def _accumulate(device: torch.device) -> Functions:
    return _steps(device, batch=_batch(32 * _PARTS, device), parts=_PARTS)


@benchmark("update", title="An AdamW update of a million parameters, the gradients given")
def _update(device: torch.device) -> Functions:
    generator = torch.Generator().manual_seed(0)
    model = nn.ParameterList([torch.randn(512, 512, generator=generator).to(device) for _ in range(4)])
    grads = TensorDict(
        {name: torch.randn(512, 512, generator=generator).to(device) for name, _ in model.named_parameters()}
    )
    optimizer = adamw(1e-3)
    update, one = update_step(optimizer), torch.ones((), device=device)

    def given(state: TrainState, grads: TensorDict) -> Any:
        return update(state, Gradient((grads,), (), state.buffers, {"loss": Mean(one, one)}))

    def by_torch(**options: Any) -> Callable[[], Any]:
        parameters = [nn.Parameter(parameter.detach().clone()) for parameter in model]
        for number, parameter in enumerate(parameters):
            parameter.grad = grads[str(number)].clone()
        return torch.optim.AdamW(parameters, lr=1e-3, **options).step

    by_hand = {"torch, fused": by_torch(fused=True), "torch, foreach": by_torch(foreach=True)}
    return by_hand | _eager_and_compiled(device, given, init_state(model, optimizer, seed=0), grads)


@benchmark("schedule", title="A warm-up and a cosine at 100,000 steps at once")
def _schedule(device: torch.device) -> Functions:
    steps = torch.arange(100_000, device=device)

    def by_hand() -> Tensor:
        t = steps.double()
        fall = 0.5e-3 * (1 + torch.cos(math.pi * ((t - 100) / 99_900).clamp(0, 1)))
        return torch.where(t < 100, 1e-3 * t / 100, fall)

    return {"torch, by hand": by_hand, "purestep": lambda: _RATE(steps)}


@benchmark("shuffle", title="The first 4,096 indices of a shuffled epoch of 10 million")
def _shuffle(device: torch.device) -> Functions:
    size, first = 10_000_000, torch.arange(4096, device=device)
    order = shuffled(size, seed=0)
    generator = torch.Generator(device).manual_seed(0)
    return {
        "torch.randperm": lambda: torch.randperm(size, generator=generator, device=device)[:4096],
        "purestep, keyed bijection": lambda: order(0, first),
    }


@benchmark("kernel", title="y = x * sigmoid(1.702 x + 0.5), 8 million float32, against a copy of the same bytes")
def _kernel(device: torch.device) -> Functions:
    x = torch.randn(1 << 23, generator=torch.Generator().manual_seed(0)).to(device)
    y = torch.empty_like(x)

    def gate(x: Tensor, y: Tensor) -> None:
        y.copy_(x * torch.sigmoid(1.702 * x + 0.5))

    def in_place() -> None:
        torch.mul(x, 1.702, out=y).add_(0.5).sigmoid_().mul_(x)

    functions: dict[str, Callable[[], Any]] = {"copy": lambda: y.copy_(x), "torch, op by op": in_place}
    if _compiles(device):
        compiled = torch.compile(gate, fullgraph=True, dynamic=False)
        functions["torch.compile"] = lambda: compiled(x, y)
    return functions


def _steps(device: torch.device, *, batch: dict[str, Tensor], parts: int) -> Functions:
    """The usual torch loop with a fused AdamW and a scheduler, and purestep's step, eager and compiled."""
    model = _net(device)
    rival = torch.optim.AdamW(model.parameters(), lr=1.0, fused=True)
    values = _RATE(torch.arange(20_000)).tolist()  # the loop is not charged for the schedule's mathematics
    scheduler = torch.optim.lr_scheduler.LambdaLR(rival, lambda step: values[step % len(values)])

    def by_hand() -> None:
        rival.zero_grad()
        for x, y in zip(batch["x"].chunk(parts), batch["y"].chunk(parts), strict=True):
            (F.cross_entropy(model(x), y) / parts).backward()
        rival.step()
        scheduler.step()

    optimizer = adamw(_RATE)
    step = train_step(_net(device), _objective, optimizer, accumulate=parts)
    state = init_state(_net(device), optimizer, seed=0)
    return {"torch, eager, fused AdamW": by_hand} | _eager_and_compiled(device, step, state, batch)


def _eager_and_compiled(
    device: torch.device, step: Step, state: TrainState, batch: Any
) -> dict[str, Callable[[], Any]]:
    functions = {"purestep, eager": _driven(step, state.clone(), batch)}
    if _compiles(device):
        functions["purestep, compiled, donated"] = _driven(compile(step, donate=True), state.clone(), batch)
    return functions


def _compiles(device: torch.device) -> bool:
    return device.type == "cuda" or compiler_missing() is None


def _driven(step: Step, state: TrainState, batch: Any) -> Callable[[], None]:
    def advance() -> None:
        nonlocal state
        state, _ = step(state, batch)

    return advance


def _net(device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return nn.Sequential(*layers).to(device)


def _batch(length: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x": torch.randn(length, 64, generator=generator).to(device),
        "y": torch.randint(0, 10, (length,), generator=generator).to(device),
    }


def _objective(model: Any, batch: Any) -> Any:
    return mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))
