"""The step as users of Lightning Fabric, accelerate and TorchOpt write it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from _report import Setting, Way, needed
from _torch_ways import BETA1, BETA2, DECAY, EPS, backward, scheduled
from _works import Work, losses


def _optimizer(net: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1.0, weight_decay=DECAY, fused=True)


def fabric(work: Work, setting: Setting) -> Way:
    """Lightning Fabric: ``setup`` and ``fabric.backward``; on one device."""
    lightning = needed("lightning_fabric")
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    precision = "bf16-mixed" if setting.precision == "bf16" else "32-true"
    fabric = lightning.Fabric(accelerator=setting.device.type, devices=1, precision=precision)
    net = work.model(setting)
    inner = _optimizer(net)
    scheduler = scheduled(inner, work.rate)
    model, optimizer = fabric.setup(net, inner)
    parts = work.parts(setting)
    plain = Setting(setting.device, setting.threads)  # its own precision is the model's affair

    def advance() -> Tensor:
        optimizer.zero_grad()
        total: Any = 0.0
        for part in parts:
            loss = losses(model, part, plain)
            if len(parts) > 1:
                loss = loss / len(parts)
            fabric.backward(loss)
            total = total + loss.detach() if len(parts) > 1 else loss
        optimizer.step()
        scheduler.step()
        return total

    return advance


def accelerate(work: Work, setting: Setting) -> Way:
    """accelerate: ``prepare``, ``accumulate`` and ``accelerator.backward``; on one device."""
    peer = needed("accelerate")
    accelerator = peer.Accelerator(
        cpu=setting.device.type == "cpu",
        mixed_precision="bf16" if setting.precision == "bf16" else "no",
        gradient_accumulation_steps=work.accumulate,
    )
    net = work.model(setting)
    inner = _optimizer(net)
    model, optimizer, scheduler = accelerator.prepare(net, inner, scheduled(inner, work.rate))
    parts = work.parts(setting)
    plain = Setting(setting.device, setting.threads)

    def advance() -> Tensor:
        total: Any = 0.0
        for part in parts:
            with accelerator.accumulate(model):
                loss = losses(model, part, plain)
                accelerator.backward(loss)  # it divides by the number of micro-batches
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            total = total + loss.detach() / len(parts) if len(parts) > 1 else loss
        return total

    return advance


def torchopt(work: Work, setting: Setting) -> Way:
    """TorchOpt's functional AdamW over ``torch.func.functional_call``; updates in place."""
    peer = needed("torchopt")
    net = work.model(setting)
    params = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}
    values = work.rate(torch.arange(20_000)).to(setting.device, torch.float32)
    # It asks for the rate of each parameter, with a count of its own for each: looking it up is the cheapest answer.
    optimizer = peer.adamw(
        lr=lambda count: values[count % len(values)], betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY
    )
    state = optimizer.init(params)
    parts = work.parts(setting)

    def forward(x: Tensor) -> Tensor:
        return torch.func.functional_call(net, params, (x,))

    def advance() -> Tensor:
        nonlocal state, params
        loss = backward(forward, parts, setting)
        grads = {name: p.grad for name, p in params.items()}
        updates, state = optimizer.update(grads, state, params=params, inplace=True)
        params = peer.apply_updates(params, updates, inplace=True)
        for p in params.values():
            p.grad = None
        return loss

    return advance
