"""A training step written by hand in torch: the usual loop, compiled in parts, captured, and one functional graph."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from _report import Setting, Way
from _works import Work, losses

BETA1, BETA2, EPS, DECAY = 0.9, 0.999, 1e-8, 0.01


def scheduled(optimizer: torch.optim.Optimizer, rate: Any) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a scheduler that sets the rate; the loop is not charged for the schedule's mathematics."""
    values = rate(torch.arange(20_000)).tolist()
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: values[step % len(values)])


def loop(
    work: Work,
    setting: Setting,
    *,
    compile_model: bool = False,
    compile_optimizer: bool = False,
    mode: str | None = None,
    seed: int = 0,
) -> Way:
    """``zero_grad``, forward, backward, ``step``, and the scheduler's ``step``; with fused AdamW, or a compiled one."""
    net = work.model(setting, seed)
    rate: Any = torch.tensor(1.0, device=setting.device) if compile_optimizer else 1.0
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=DECAY, fused=not compile_optimizer)
    scheduler = scheduled(optimizer, work.rate)
    forward = torch.compile(net, mode=mode) if compile_model else net
    update = torch.compile(optimizer.step, mode=mode) if compile_optimizer else optimizer.step
    parts = work.parts(setting)

    def advance() -> Tensor:
        if mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        loss = backward(forward, parts, setting)
        update()
        scheduler.step()
        return loss

    return advance


def backward(forward: Any, parts: list[dict[str, Tensor]], setting: Setting) -> Tensor:
    """Add the gradient of the mean loss to the parameters', and return that loss."""
    if len(parts) == 1:
        loss = losses(forward, parts[0], setting)
        loss.backward()
        return loss
    total: Any = 0.0
    for part in parts:
        loss = losses(forward, part, setting) / len(parts)
        loss.backward()
        total = total + loss.detach()
    return total


def captured_loop(work: Work, setting: Setting) -> Way:
    """The loop as a CUDA graph captured by hand; the scheduler writes the rate that the graph reads."""
    net = work.model(setting)
    rate = torch.tensor(1.0, device=setting.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=DECAY, fused=True, capturable=True)
    scheduler = scheduled(optimizer, work.rate)
    parts = work.parts(setting)

    def step() -> Tensor:
        loss = backward(net, parts, setting)
        optimizer.step()
        return loss

    def whole() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        return step()

    warmed_up(whole)
    optimizer.zero_grad(set_to_none=True)  # so that the graph's own pool holds the gradients
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def advance() -> Tensor:
        graph.replay()
        scheduler.step()
        return loss

    return advance


def captured(way: Way) -> Way:
    """A way that changes its state in place, as a CUDA graph captured by hand."""
    warmed_up(way)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = way()

    def advance() -> Any:
        graph.replay()
        return result

    return advance


def warmed_up(way: Way) -> None:
    """Call a way on a side stream, where libraries set up what a capture may not."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            way()
    torch.cuda.current_stream().wait_stream(stream)


# --- one graph --------------------------------------------------------------------------------------------------------


def functional(work: Work, setting: Setting, *, members: int = 0, compiled: bool = True) -> Way:
    """Forward, ``torch.func.grad``, schedule and AdamW over lists of plain tensors, as one graph with ``cpp_wrapper``.

    New values are written over the old ones at the end of the graph. It is as far as torch goes here: nothing is
    general, nothing is checked. With ``members``, that many models of different seeds, under ``torch.func.vmap``.
    """
    net = work.model(setting)
    names = [name for name, _ in net.named_parameters()]
    models = [work.model(setting, seed) for seed in range(members)] or [net]
    values = [[p.detach().clone() for p in model.parameters()] for model in models]
    params = [torch.stack(each) for each in zip(*values, strict=True)] if members else values[0]
    update = AdamW(params, work.rate)
    parts = work.parts(setting)

    def loss_of(params: list[Tensor], part: dict[str, Tensor]) -> Tensor:
        bound = dict(zip(names, params, strict=True))
        return losses(lambda x: torch.func.functional_call(net, bound, (x,)), part, setting)

    gradient = torch.func.grad_and_value(loss_of)
    if members:
        gradient = torch.func.vmap(gradient, in_dims=(0, None))

    def step(parts: list[dict[str, Tensor]]) -> Tensor:
        grads, loss = gradient(params, parts[0])
        for part in parts[1:]:
            more, another = gradient(params, part)
            grads, loss = [a + b for a, b in zip(grads, more, strict=True)], loss + another
        if len(parts) > 1:
            grads, loss = [g / len(parts) for g in grads], loss / len(parts)
        update(params, grads)
        return loss

    run = one_graph(step, cpp_wrapper=True) if compiled else step
    return lambda: run(parts)


def one_graph(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function whose closure and arguments never change, so that no call has to check them."""
    # Without guards, functions of the same code would be taken for each other: each gets code of its own.
    own = types.FunctionType(fn.__code__.replace(), fn.__globals__, fn.__name__, fn.__defaults__, fn.__closure__)
    options["guard_filter_fn"] = lambda guards: [False] * len(guards)
    return torch.compile(own, fullgraph=True, options=options)


class AdamW:
    """An update in place, with a schedule, for a graph of one's own.

    The rate and the bias corrections of a step are computed by the step before it and stored: read from memory, they
    are not computed anew for every entry of every parameter.
    """

    def __init__(self, params: list[Tensor], rate: Any) -> None:
        self.rate = rate
        self.means = [torch.zeros_like(p) for p in params]
        self.squares = [torch.zeros_like(p) for p in params]
        self.count = torch.zeros((), dtype=torch.int64, device=params[0].device)
        self.scalars = [scalar.clone() for scalar in self._scalars(self.count)]

    def _scalars(self, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rate, t = self.rate(count), (count + 1).double()
        values = 1 - rate * DECAY, -rate / (1 - BETA1**t), torch.rsqrt(1 - BETA2**t)
        return tuple(value.float() for value in values)  # type: ignore[return-value]

    def __call__(self, params: list[Tensor], grads: Any) -> None:
        shrink, step_size, correction = self.scalars
        for p, g, m, v in zip(params, grads, self.means, self.squares, strict=True):
            mean = m + (1 - BETA1) * (g - m)
            square = BETA2 * v + (1 - BETA2) * g * g
            p.copy_(p * shrink + step_size * mean / (square.sqrt() * correction + EPS))
            m.copy_(mean)
            v.copy_(square)
        self.count.add_(1)
        for scalar, after in zip(self.scalars, self._scalars(self.count), strict=True):
            scalar.copy_(after)
