"""Python functions of torch that draw inside: they hand themselves to the mode as one call, and are opened."""

from __future__ import annotations

import math
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import init

from purestep.draws._mode import Draws, draws
from purestep.random._examples import BY_SHAPE


def opened(function: Any, **replaced: Any) -> Any:
    """Return ``function`` blind to modes at its own door, so that what it calls inside comes to the mode: a copy whose
    ``has_torch_function`` says no."""
    doors = dict.fromkeys(
        ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"), lambda *_: False
    )
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **doors, **replaced},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _projections(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    """The three input projections of attention. Torch's own calls ``Tensor.unflatten``, whose ``super()`` Dynamo
    cannot trace under a mode."""
    if q is k and k is v:
        return tuple(part.contiguous() for part in F.linear(q, weight, bias).chunk(3, dim=-1))
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip((q, k, v), weight.chunk(3), biases, strict=True))


_attention = opened(F.multi_head_attention_forward, _in_projection_packed=_projections)
_gumbel_softmax = opened(F.gumbel_softmax)
_pool2d = opened(F.fractional_max_pool2d_with_indices)
_pool3d = opened(F.fractional_max_pool3d_with_indices)


@draws(F.multi_head_attention_forward)
def _multi_head_attention(mode: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    # Inside, the examples run over dimension 0 of the weights, whichever they run over outside.
    said, mode.examples_dim = mode.examples_dim, BY_SHAPE
    try:
        with mode:
            return _attention(*args, **kwargs)
    finally:
        mode.examples_dim = said


@draws(F.gumbel_softmax)
def _open_gumbel_softmax(mode: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return _gumbel_softmax(*args, **kwargs)


@draws(F.fractional_max_pool2d, F.fractional_max_pool3d)
def _pool(mode: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    with_indices = kwargs.pop("return_indices", False)
    with mode:
        result = (_pool2d if func is F.fractional_max_pool2d else _pool3d)(*args, **kwargs)
    return result if with_indices else result[0]


@draws(F.fractional_max_pool2d_with_indices, F.fractional_max_pool3d_with_indices)
def _pool_with_indices(mode: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    with mode:
        return (_pool2d if func is F.fractional_max_pool2d_with_indices else _pool3d)(*args, **kwargs)


# The door of these asks `torch.overrides`, so they are opened by hand.
@draws(init.uniform_)
def _init_uniform_(
    mode: Draws, func: Any, tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Any = None
) -> Tensor:
    with mode, torch.no_grad():
        return tensor.uniform_(a, b, generator=generator)


@draws(init.normal_)
def _init_normal_(
    mode: Draws, func: Any, tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Any = None
) -> Tensor:
    with mode, torch.no_grad():
        return tensor.normal_(mean, std, generator=generator)


@draws(init.kaiming_uniform_)
def _init_kaiming_uniform_(
    mode: Draws,
    func: Any,
    /,
    tensor: Tensor,
    a: float = 0.0,
    nonlinearity: Any = "leaky_relu",
    generator: Any = None,
    **named: Any,
) -> Tensor:
    """Uniform within ``±gain · √(3 / fan)`` (He et al. 2015)."""
    if 0 in tensor.shape:
        return tensor
    fan = init._calculate_correct_fan(tensor, named.get("mode", "fan_in"))
    bound = init.calculate_gain(nonlinearity, a) * math.sqrt(3.0 / fan)
    with mode, torch.no_grad():
        return tensor.uniform_(-bound, bound, generator=generator)
