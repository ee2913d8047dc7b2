"""Plain draws: ``rand*``, ``normal``, ``bernoulli``, ``multinomial`` and their like, and tensors filled in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from purestep import _tree, random
from purestep.draws._mode import Draws, draws
from purestep.draws._refusals import UnkeyedDrawError, name_of, refuse_generator

_PLACING = {"device", "requires_grad", "pin_memory", "layout", "memory_format", "out", "generator"}


def _wide(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to draw numbers of ``dtype`` in."""
    return torch.float64 if (dtype or torch.get_default_dtype()) == torch.float64 else torch.float32


def _placed(func: Any, numbers: Tensor, options: dict[str, Any], dtype: torch.dtype | None) -> Tensor:
    """Return the numbers as the options of a factory function want them."""
    refuse_generator(func, options.get("generator"))
    unknown = set(options) - _PLACING
    if unknown:
        raise UnkeyedDrawError(f"{name_of(func)} takes no {sorted(unknown)} inside a pure step")
    numbers = numbers.to(dtype=dtype, device=options.get("device"))
    if options.get("out") is not None:
        return options["out"].resize_(numbers.shape).copy_(numbers)
    return numbers.requires_grad_() if options.get("requires_grad") else numbers


def _shape(size: Any, options: dict[str, Any]) -> tuple[int, ...]:
    """The shape that ``rand(2, 3)``, ``rand((2, 3))`` or ``rand(size=(2, 3))`` means."""
    size = options.pop("size", size)
    return tuple(size[0]) if len(size) == 1 and isinstance(size[0], (tuple, list)) else tuple(size)


@draws(torch.rand, torch.randn)
def _rand(mode: Draws, func: Any, *size: Any, dtype: Any = None, **options: Any) -> Tensor:
    shape, dtype = _shape(size, options), dtype or torch.get_default_dtype()
    generate = random.normal if func is torch.randn else random.uniform
    return _placed(func, mode.draw(generate, shape, dtype=_wide(dtype)), options, dtype)


@draws(torch.rand_like, torch.randn_like)
def _rand_like(mode: Draws, func: Any, input: Tensor, *, dtype: Any = None, **options: Any) -> Tensor:
    options.setdefault("device", input.device)
    generate = random.normal if func is torch.randn_like else random.uniform
    dtype = dtype or input.dtype
    return _placed(func, mode.draw(generate, input.shape, dtype=_wide(dtype)), options, dtype)


@draws(torch.randint)
def _randint(mode: Draws, func: Any, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
    """``randint(high, size)`` or ``randint(low, high, size)``."""
    names = (
        ("low", "high", "size") if len(args) + len({"low", "high", "size"} & set(options)) == 3 else ("high", "size")
    )
    given = dict(zip(names, args, strict=False)) | {name: options.pop(name) for name in names if name in options}
    numbers = mode.draw(random.randint, given["size"], low=given.get("low", 0), high=given["high"])
    return _placed(func, numbers, options, dtype or torch.int64)


@draws(torch.randint_like)
def _randint_like(mode: Draws, func: Any, input: Tensor, *bounds: Any, dtype: Any = None, **options: Any) -> Tensor:
    """``randint_like(input, high)`` or ``randint_like(input, low, high)``."""
    bounds = (*bounds, *(options.pop(name) for name in ("low", "high") if name in options))
    low, high = bounds if len(bounds) == 2 else (0, *bounds)
    options.setdefault("device", input.device)
    return _placed(func, mode.draw(random.randint, input.shape, low=low, high=high), options, dtype or input.dtype)


@draws(torch.randperm)
def _randperm(mode: Draws, func: Any, n: int, *, dtype: Any = None, **options: Any) -> Tensor:
    words = mode.draw(random.bits, (n, 2))
    return _placed(func, (words[:, 0] << 31 ^ words[:, 1]).argsort(), options, dtype or torch.int64)


@draws(torch.normal)
def _normal(
    mode: Draws, func: Any, mean: Any = 0.0, std: Any = 1.0, *size: Any, dtype: Any = None, **options: Any
) -> Any:
    """``mean + std · z``: each of the two a number, with a shape, or a tensor."""
    tensors = [each for each in (mean, std) if isinstance(each, Tensor)]
    shape = torch.broadcast_shapes(*(each.shape for each in tensors)) if tensors else _shape(size, options)
    if tensors:
        dtype = dtype or tensors[0].dtype
        options.setdefault("device", tensors[0].device)
    numbers = mode.draw(random.normal, shape, dtype=_wide(dtype))
    return mean + std * _placed(func, numbers, options, dtype or torch.get_default_dtype())


@draws(torch.bernoulli, "bernoulli")
def _bernoulli(
    mode: Draws, func: Any, input: Tensor, p: Any = None, *, generator: Any = None, **options: Any
) -> Tensor:
    """1 with probability ``input``, or ``p`` where it is given, else 0."""
    probability = input if p is None else p
    numbers = mode.draw(random.uniform, input.shape, dtype=_wide(input.dtype))
    return _placed(func, numbers < probability, {**options, "generator": generator}, input.dtype)


@draws(torch.multinomial, "multinomial")
def _multinomial(
    mode: Draws,
    func: Any,
    input: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Any = None,
    **options: Any,
) -> Tensor:
    """Indices drawn in proportion to the weights in the last dimension: with replacement by the inverse of their sums,
    without it the first of ``log w + Gumbel`` (Efraimidis and Spirakis 2006; Kool et al. 2019)."""
    weights, options = input.to(torch.float64), {**options, "generator": generator}
    if replacement:
        sums = weights.cumsum(-1)
        numbers = mode.draw(random.uniform, (*input.shape[:-1], num_samples), dtype=torch.float64)
        chosen = torch.searchsorted(sums, numbers * sums[..., -1:], right=True)
        return _placed(func, chosen.clamp(max=input.shape[-1] - 1), options, torch.int64)
    if num_samples > input.shape[-1] or (_tree.readable(input) and bool(((input > 0).sum(-1) < num_samples).any())):
        raise ValueError(
            f"num_samples must be at most the number of weights above 0 where replacement=False, got {num_samples}"
        )
    scores = weights.log() + mode.draw(random.gumbel, input.shape, dtype=torch.float64)
    return _placed(func, scores.topk(num_samples, -1).indices, options, torch.int64)


def _filled(mode: Draws, name: str, tensor: Tensor, values: Tensor, generator: Any) -> Tensor:
    refuse_generator(name, generator)
    return tensor.copy_(values)


@draws("uniform_")
def _uniform_(mode: Draws, func: Any, tensor: Tensor, *bounds: float, generator: Any = None, **named: float) -> Tensor:
    low, high = _two(("from", "to"), bounds, named, (0.0, 1.0))
    numbers = mode.draw(random.uniform, tensor.shape, dtype=_wide(tensor.dtype))
    return _filled(mode, "uniform_", tensor, low + (high - low) * numbers, generator)


@draws("normal_")
def _normal_(mode: Draws, func: Any, tensor: Tensor, *given: float, generator: Any = None, **named: float) -> Tensor:
    mean, std = _two(("mean", "std"), given, named, (0.0, 1.0))
    numbers = mode.draw(random.normal, tensor.shape, dtype=_wide(tensor.dtype))
    return _filled(mode, "normal_", tensor, mean + std * numbers, generator)


@draws("log_normal_")
def _log_normal_(
    mode: Draws, func: Any, tensor: Tensor, *given: float, generator: Any = None, **named: float
) -> Tensor:
    mean, std = _two(("mean", "std"), given, named, (1.0, 2.0))
    numbers = mode.draw(random.normal, tensor.shape, dtype=_wide(tensor.dtype))
    return _filled(mode, "log_normal_", tensor, torch.exp(mean + std * numbers), generator)


@draws("exponential_")
def _exponential_(mode: Draws, func: Any, tensor: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    numbers = mode.draw(random.exponential, tensor.shape, dtype=_wide(tensor.dtype))
    return _filled(mode, "exponential_", tensor, numbers / lambd, generator)


@draws("geometric_")
def _geometric_(mode: Draws, func: Any, tensor: Tensor, p: float, *, generator: Any = None) -> Tensor:
    """The number of trials up to the first success: ``⌈E / -log(1 - p)⌉`` of an exponential ``E``, at least 1."""
    numbers = mode.draw(random.exponential, tensor.shape, dtype=torch.float64)
    trials = torch.ceil(numbers / -math.log1p(-p)).clamp(min=1.0) if p < 1 else torch.ones_like(numbers)
    return _filled(mode, "geometric_", tensor, trials, generator)


@draws("cauchy_")
def _cauchy_(mode: Draws, func: Any, tensor: Tensor, *given: float, generator: Any = None, **named: float) -> Tensor:
    median, sigma = _two(("median", "sigma"), given, named, (0.0, 1.0))
    numbers = mode.draw(random.uniform, tensor.shape, dtype=torch.float64) + 2.0**-33
    return _filled(mode, "cauchy_", tensor, median + sigma * torch.tan(math.pi * (numbers - 0.5)), generator)


@draws("bernoulli_")
def _bernoulli_(mode: Draws, func: Any, tensor: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    numbers = mode.draw(random.uniform, tensor.shape, dtype=torch.float32)
    return _filled(mode, "bernoulli_", tensor, numbers < p, generator)


@draws("random_")
def _random_(mode: Draws, func: Any, tensor: Tensor, *bounds: int, generator: Any = None, **named: int) -> Tensor:
    """Integers from 0 to the largest that the dtype holds all smaller ones of, or between bounds."""
    bounds = (*bounds, *(named[name] for name in ("from", "to") if named.get(name) is not None))
    if len(bounds) == 2:
        low, high = bounds
    elif bounds:
        low, high = 0, bounds[0]
    elif tensor.dtype.is_floating_point:
        low, high = 0, round(2 / torch.finfo(tensor.dtype).eps) + 1
    else:
        low, high = 0, 2 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max
    return _filled(mode, "random_", tensor, mode.draw(random.randint, tensor.shape, low=low, high=high), generator)


def _two(names: tuple[str, str], given: Any, named: dict[str, Any], default: tuple[float, float]) -> Any:
    values = dict(zip(names, default, strict=True)) | dict(zip(names, given, strict=False)) | named
    return values[names[0]], values[names[1]]
