"""Gamma, Dirichlet, Poisson and binomial draws, which ``torch.distributions`` makes its samples of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purestep.draws._mode import Draws, draws
from purestep.draws._refusals import expect, refuse_generator
from purestep.random import rejection


def _source(mode: Draws, shape: Any) -> rejection.Source:
    def source(generate: Callable[..., Tensor], count: int) -> Tensor:
        return mode.draw(generate, (*shape, count), dtype=torch.float64)

    return source


@draws(torch._standard_gamma)
def _standard_gamma(mode: Draws, func: Any, concentration: Tensor, generator: Any = None) -> Tensor:
    refuse_generator(func, generator)
    source = _source(mode, concentration.shape)
    return rejection.gamma_from(source, concentration.to(torch.float64)).to(concentration.dtype)


@draws(torch._sample_dirichlet)
def _sample_dirichlet(mode: Draws, func: Any, concentration: Tensor, generator: Any = None) -> Tensor:
    """Gamma numbers divided by their sum."""
    refuse_generator(func, generator)
    logs = rejection.log_gamma_from(_source(mode, concentration.shape), concentration.detach().to(torch.float64))
    return logs.softmax(-1).to(concentration.dtype)


@draws(torch.poisson)
def _poisson(mode: Draws, func: Any, input: Tensor, generator: Any = None) -> Tensor:
    refuse_generator(func, generator)
    expect(input >= 0, func, "input", "at least 0 everywhere", input)
    return rejection.poisson_from(_source(mode, input.shape), input.to(torch.float64)).to(input.dtype)


@draws(torch.binomial)
def _binomial(mode: Draws, func: Any, count: Tensor, prob: Tensor, generator: Any = None) -> Tensor:
    refuse_generator(func, generator)
    source = _source(mode, torch.broadcast_shapes(count.shape, prob.shape))
    n, p = torch.broadcast_tensors(count.to(torch.float64), prob.to(torch.float64))
    return rejection.binomial_from(source, n, p).to(count.dtype)
