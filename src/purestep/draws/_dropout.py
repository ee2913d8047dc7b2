"""The dropout family, and leaky units of a random slope."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from purestep import random
from purestep.draws._mode import Draws, draws
from purestep.draws._refusals import expect
from purestep.random.words import at_least

# The value that SELU saturates at, -λα, which alpha dropout puts in place of what it drops (Klambauer et al. 2017).
_SATURATION = -1.7580993408473766


def keep_mask(mode: Draws, shape: Any, p: float, along: int = 0) -> Tensor:
    """Return a bool tensor, each entry false with probability ``p`` (to 2^-32); the examples run along a dimension."""
    return mode.draw(at_least, shape, along=along, threshold=round(p * 2**32))


def masked(
    mode: Draws, input: Tensor, shape: Any, p: float, training: bool, inplace: bool, *, along: int = 0
) -> Tensor:
    """Inverted dropout, ``x · keep / (1 - p)``, of a mask of ``shape`` (Srivastava et al. 2014)."""
    _check_p(p)
    if not training or p == 0:
        return input
    scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
    factor = keep_mask(mode, shape, p, along).to(input.dtype) * scale
    return input.mul_(factor) if inplace else input * factor


def _check_p(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


@draws(F.dropout)
def _dropout(
    mode: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return masked(mode, input, input.shape, p, training, inplace)


@draws(torch.dropout, torch.dropout_)
def _torch_dropout(mode: Draws, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    return masked(mode, input, input.shape, p, train, func is torch.dropout_)


@draws(torch.native_dropout)
def _native_dropout(mode: Draws, func: Any, input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False or p == 0:
        return input, torch.ones_like(input, dtype=torch.bool)
    _check_p(p)
    keep = keep_mask(mode, input.shape, p)
    return input * (keep.to(input.dtype) * (0.0 if p == 1 else 1.0 / (1.0 - p))), keep


# How many dimensions a batch has where torch takes an input of fewer for one example; else dimension 0 is the batch's.
_OF_A_BATCH = {F.dropout1d: 3, F.dropout3d: 5}


def _channels(func: Any, input: Tensor) -> tuple[int, ...]:
    """The shape of one draw for each (example, channel), or for each channel of one example."""
    dims = input.dim()
    if func is F.dropout1d:
        expect(dims in (2, 3), func, "input", "of 2 or 3 dimensions", tuple(input.shape))
    expect(dims >= 2, func, "input", "of 2 dimensions or more", tuple(input.shape))
    leading = 2 if dims == _OF_A_BATCH.get(func, dims) else 1
    return (*input.shape[:leading], *[1] * (dims - leading))


@draws(F.dropout1d, F.dropout2d, F.dropout3d)
def _feature_dropout(
    mode: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Dropout of whole channels (Tompson et al. 2015)."""
    return masked(mode, input, _channels(func, input), p, training, inplace)


@draws(torch.feature_dropout, torch.feature_dropout_)
def _torch_feature_dropout(mode: Draws, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    return masked(mode, input, _channels(func, input), p, train, func is torch.feature_dropout_)


@draws(F.alpha_dropout, F.feature_alpha_dropout)
def _alpha_dropout(
    mode: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    shape = _channels(func, input) if func is F.feature_alpha_dropout else input.shape
    return _saturated(mode, input, shape, p, training, inplace)


@draws(torch.alpha_dropout, torch.alpha_dropout_, torch.feature_alpha_dropout, torch.feature_alpha_dropout_)
def _torch_alpha_dropout(mode: Draws, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    of_features = func in (torch.feature_alpha_dropout, torch.feature_alpha_dropout_)
    shape = _channels(func, input) if of_features else input.shape
    return _saturated(mode, input, shape, p, train, func in (torch.alpha_dropout_, torch.feature_alpha_dropout_))


def _saturated(mode: Draws, input: Tensor, shape: Any, p: float, training: bool, inplace: bool) -> Tensor:
    """Dropout that keeps the mean and variance of SELU activations (Klambauer et al. 2017)."""
    _check_p(p)
    if not training or p == 0:
        return input
    if p == 1:
        return input.mul_(0) if inplace else input * 0
    keep = keep_mask(mode, shape, p)
    scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * _SATURATION**2))
    dropped = torch.where(keep, input, torch.full((), _SATURATION, dtype=input.dtype, device=input.device))
    result = dropped * scale - scale * p * _SATURATION
    return input.copy_(result) if inplace else result


@draws(F.rrelu, torch.rrelu, torch.rrelu_)
def _rrelu(
    mode: Draws,
    func: Any,
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """``x`` where it is positive, else ``a x`` with ``a`` uniform between the bounds (Xu et al. 2015)."""
    if not training:
        return func(input, lower, upper, training) if func is not F.rrelu else F.leaky_relu(input, (lower + upper) / 2)
    expect(lower <= upper, func, "lower", f"at most upper, which is {upper}", lower)
    dtype = input.dtype if input.dtype == torch.float64 else torch.float32
    slopes = mode.draw(random.uniform, input.shape, along=0, dtype=dtype) * (upper - lower) + lower
    result = torch.where(input > 0, input, input * slopes.to(input.dtype))
    return input.copy_(result) if inplace or func is torch.rrelu_ else result
