"""Plain draws: ``rand*``, ``normal``, ``bernoulli``, ``multinomial`` and their like, and tensors filled in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from purestep import random
from purestep.draws._mode import Draws, draws
from purestep.draws._refusals import UnkeyedDrawError, expect, name_of, refuse_generator

_PLACING = {"device", "requires_grad", "pin_memory", "layout", "memory_format", "out", "generator"}


def _wide(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype to draw numbers of ``dtype`` in."""
    wide = (torch.float64, torch.complex128)
    return torch.float64 if (dtype or torch.get_default_dtype()) in wide else torch.float32


def _continuous(mode: Draws, func: Any, generate: Any, shape: Any, dtype: torch.dtype | None) -> Tensor:
    """Draw uniform, normal or exponential numbers in the dtype to draw numbers of ``dtype`` in; of a complex one both
    parts, which have half of the variance each where they are normal."""
    dtype = dtype or torch.get_default_dtype()
    complex_too = dtype.is_complex and generate is not random.exponential
    expect(dtype.is_floating_point or complex_too, func, "the dtype", "floating", dtype)
    numbers = mode.draw(generate, shape, dtype=_wide(dtype))
    if not dtype.is_complex:
        return numbers
    both = torch.complex(numbers, mode.draw(generate, shape, dtype=_wide(dtype)))
    return both * math.sqrt(0.5) if generate is random.normal else both


def _integers(mode: Draws, func: Any, shape: Any, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """Draw integers from ``low`` to ``high - 1``, which a dtype of integers must hold."""
    if not (dtype.is_floating_point or dtype.is_complex):
        least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        expect(least <= low and high - 1 <= most, func, "low and high", f"within what {dtype} holds", (low, high))
    return mode.draw(random.randint, shape, low=low, high=high)


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
    return _placed(func, _continuous(mode, func, generate, shape, dtype), options, dtype)


@draws(torch.rand_like, torch.randn_like)
def _rand_like(mode: Draws, func: Any, input: Tensor, *, dtype: Any = None, **options: Any) -> Tensor:
    options.setdefault("device", input.device)
    generate = random.normal if func is torch.randn_like else random.uniform
    dtype = dtype or input.dtype
    return _placed(func, _continuous(mode, func, generate, input.shape, dtype), options, dtype)


@draws(torch.randint)
def _randint(mode: Draws, func: Any, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
    """``randint(high, size)`` or ``randint(low, high, size)``."""
    names = (
        ("low", "high", "size") if len(args) + len({"low", "high", "size"} & set(options)) == 3 else ("high", "size")
    )
    given = dict(zip(names, args, strict=False)) | {name: options.pop(name) for name in names if name in options}
    dtype = dtype or torch.int64
    numbers = _integers(mode, func, given["size"], given.get("low", 0), given["high"], dtype)
    return _placed(func, numbers, options, dtype)


@draws(torch.randint_like)
def _randint_like(mode: Draws, func: Any, input: Tensor, *bounds: Any, dtype: Any = None, **options: Any) -> Tensor:
    """``randint_like(input, high)`` or ``randint_like(input, low, high)``."""
    bounds = (*bounds, *(options.pop(name) for name in ("low", "high") if name in options))
    low, high = bounds if len(bounds) == 2 else (0, *bounds)
    options.setdefault("device", input.device)
    dtype = dtype or input.dtype
    return _placed(func, _integers(mode, func, input.shape, low, high, dtype), options, dtype)


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
    dtype = dtype or torch.get_default_dtype()
    expect(std >= 0, func, "std", "at least 0", std)
    numbers = _continuous(mode, func, random.normal, shape, dtype).to(dtype=dtype, device=options.get("device"))
    mean = mean if isinstance(mean, Tensor) else _both(mean, numbers)
    return _placed(func, mean + std * numbers, options, dtype)


@draws(torch.bernoulli, "bernoulli")
def _bernoulli(
    mode: Draws, func: Any, input: Tensor, p: Any = None, *, generator: Any = None, **options: Any
) -> Tensor:
    """1 with probability ``input``, or ``p`` where it is given, else 0."""
    probability = input if p is None else p
    expect((probability >= 0) & (probability <= 1), func, "p", "from 0 to 1", probability)
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
    expect((weights >= 0) & weights.isfinite(), func, "input", "finite and at least 0", input)
    expect(weights.sum(-1) > 0, func, "input", "above 0 somewhere in each row", input)
    if replacement:
        sums = weights.cumsum(-1)
        numbers = mode.draw(random.uniform, (*input.shape[:-1], num_samples), dtype=torch.float64)
        chosen = torch.searchsorted(sums, numbers * sums[..., -1:], right=True)
        return _placed(func, chosen.clamp(max=input.shape[-1] - 1), options, torch.int64)
    right = "at most the number of weights above 0 where replacement=False"
    expect(num_samples <= input.shape[-1], func, "num_samples", right, num_samples)
    expect((input > 0).sum(-1) >= num_samples, func, "num_samples", right, num_samples)
    scores = weights.log() + mode.draw(random.gumbel, input.shape, dtype=torch.float64)
    return _placed(func, scores.topk(num_samples, -1).indices, options, torch.int64)


def _filled(func: Any, tensor: Tensor, values: Tensor, generator: Any) -> Tensor:
    refuse_generator(func, generator)
    return tensor.copy_(values)


@draws("uniform_")
def _uniform_(mode: Draws, func: Any, tensor: Tensor, *bounds: float, generator: Any = None, **named: float) -> Tensor:
    low, high = _two(("from", "to"), bounds, named, (0.0, 1.0))
    expect(low <= high, func, "from", f"at most to, which is {high}", low)
    numbers = _continuous(mode, func, random.uniform, tensor.shape, tensor.dtype)
    return _filled(func, tensor, _both(low, tensor) + (high - low) * numbers, generator)


@draws("normal_")
def _normal_(mode: Draws, func: Any, tensor: Tensor, *given: float, generator: Any = None, **named: float) -> Tensor:
    mean, std = _two(("mean", "std"), given, named, (0.0, 1.0))
    expect(std >= 0, func, "std", "at least 0", std)
    numbers = _continuous(mode, func, random.normal, tensor.shape, tensor.dtype)
    return _filled(func, tensor, _both(mean, tensor) + std * numbers, generator)


@draws("log_normal_")
def _log_normal_(
    mode: Draws, func: Any, tensor: Tensor, *given: float, generator: Any = None, **named: float
) -> Tensor:
    mean, std = _two(("mean", "std"), given, named, (1.0, 2.0))
    expect(std > 0, func, "std", "above 0", std)
    numbers = _continuous(mode, func, random.normal, tensor.shape, tensor.dtype)
    return _filled(func, tensor, torch.exp(mean + std * numbers), generator)


@draws("exponential_")
def _exponential_(mode: Draws, func: Any, tensor: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    expect(lambd > 0, func, "lambd", "above 0", lambd)
    numbers = _continuous(mode, func, random.exponential, tensor.shape, tensor.dtype)
    return _filled(func, tensor, numbers / lambd, generator)


@draws("geometric_")
def _geometric_(mode: Draws, func: Any, tensor: Tensor, p: float, *, generator: Any = None) -> Tensor:
    """The number of trials up to the first success: ``⌈E / -log(1 - p)⌉`` of an exponential ``E``, at least 1."""
    expect(0 < p < 1, func, "p", "above 0 and below 1", p)
    numbers = mode.draw(random.exponential, tensor.shape, dtype=torch.float64)
    return _filled(func, tensor, torch.ceil(numbers / -math.log1p(-p)).clamp(min=1.0), generator)


@draws("cauchy_")
def _cauchy_(mode: Draws, func: Any, tensor: Tensor, *given: float, generator: Any = None, **named: float) -> Tensor:
    median, sigma = _two(("median", "sigma"), given, named, (0.0, 1.0))
    expect(sigma > 0, func, "sigma", "above 0", sigma)
    expect(tensor.is_floating_point(), func, "the dtype", "floating", tensor.dtype)
    numbers = mode.draw(random.uniform, tensor.shape, dtype=torch.float64) + 2.0**-33
    return _filled(func, tensor, median + sigma * torch.tan(math.pi * (numbers - 0.5)), generator)


@draws("bernoulli_")
def _bernoulli_(mode: Draws, func: Any, tensor: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    expect((p >= 0) & (p <= 1), func, "p", "from 0 to 1", p)
    numbers = mode.draw(random.uniform, tensor.shape, dtype=torch.float32)
    return _filled(func, tensor, numbers < p, generator)


@draws("random_")
def _random_(mode: Draws, func: Any, tensor: Tensor, *bounds: int, generator: Any = None, **named: int) -> Tensor:
    """Integers from 0 to the largest up to which the dtype holds all of them, or between bounds."""
    names = ("from", "to") if len(bounds) + len(named) == 2 else ("to",)
    given = dict(zip(names, bounds, strict=False)) | named
    low, high = given.get("from", 0), given.get("to")
    dtype = tensor.dtype
    if high is None and dtype.is_floating_point:
        high = round(2 / torch.finfo(dtype).eps) + 1
    elif high is None:
        high = 2 if dtype == torch.bool else torch.iinfo(dtype).max + 1
    return _filled(func, tensor, _integers(mode, func, tensor.shape, low, high, dtype), generator)


def _both(number: float, tensor: Tensor) -> float | complex:
    """The number in both parts of a complex tensor, as torch means it."""
    return complex(number, number) if tensor.is_complex() else number


def _two(names: tuple[str, str], given: Any, named: dict[str, Any], default: tuple[float, float]) -> Any:
    values = dict(zip(names, default, strict=True)) | dict(zip(names, given, strict=False)) | named
    return values[names[0]], values[names[1]]
