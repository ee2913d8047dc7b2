"""A small set of parameters and gradients for the laws of update rules: of 0 to 4 dimensions, and an empty one."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from purestep import random
from purestep.updates import UpdateContext


def wave(shape: tuple[int, ...], phase: float, dtype: torch.dtype) -> Tensor:
    """Smooth numbers in (-1, 1) without a zero: the laws need neither chance nor a seed."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return (0.9 * torch.sin(1.7 * index + phase)).reshape(shape).to(dtype)


SHAPES = {"scalar": (), "bias": (3,), "weight": (4, 3), "kernel": (2, 2, 1, 3), "empty": (0, 2)}


def make_params(dtype: torch.dtype) -> TensorDict:
    return TensorDict({name: wave(shape, 0.4 + i, dtype) for i, (name, shape) in enumerate(SHAPES.items())})


def make_grads(dtype: torch.dtype) -> TensorDict:
    return TensorDict({name: wave(shape, 2.3 - i, dtype) for i, (name, shape) in enumerate(SHAPES.items())})


def context_at(step: int, loss: float = 1.0) -> UpdateContext:
    return UpdateContext(torch.tensor(step), random.key(0), torch.tensor(loss, dtype=torch.float64))
