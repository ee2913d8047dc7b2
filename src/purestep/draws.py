"""Random operations inside a module, drawn from a key instead of the global generator.

A :class:`Draws` mode stands around the forward and replaces each random operation by one that is a function of
``(key, calls, call site, index)``. A call site is the ordinal of the draw in the forward. In the dropout family the
index is that of the example in the *whole* batch, where dimension 0 runs over the examples, so cutting a batch into
micro-batches changes no mask. What it does not know how to draw it refuses by name: from a list, and in eager mode by
comparing the global generator's state.
"""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from purestep import random


class UnkeyedDrawError(RuntimeError):
    """A pure step met a random operation that would draw from the global generator."""


class Place(NamedTuple):
    """A call site of a forward, and what its draws are a function of."""

    key: Tensor
    calls: Tensor
    first: int | Tensor
    examples: int
    site: int
    watch: bool


class Draws(TorchFunctionMode):
    """Draw every random operation under this mode from ``key``.

    Args:
        key: int64, ``(2,)``: the state's key.
        calls: int64, 0-d: the steps attempted so far; each draws anew.
        first: index, in the whole batch, of the first example of this micro-batch; an int or an int64 0-d tensor.
        count: examples in this micro-batch; 0 where the batch is whole.
        watch: compare the global generator around every call, to name the one that reads it.
    """

    def __init__(
        self, key: Tensor, calls: Tensor, *, first: int | Tensor = 0, count: int = 0, watch: bool = False
    ) -> None:
        super().__init__()
        self._watch = watch
        self._key, self._calls, self._first, self._count, self._site = key, calls, first, count, 0
        self._began = 0

    def place(self) -> Place:
        """Return where the next draw is, so that :meth:`at` can make the draws that follow once more."""
        return Place(self._key, self._calls, self._first, self._count, self._site, self._watch)

    @classmethod
    def at(cls, place: Place) -> Draws:
        """Return a mode whose first draw is the one at ``place``."""
        draws = cls(place.key, place.calls, first=place.first, count=place.examples, watch=place.watch)
        draws._site = draws._began = place.site
        return draws

    @property
    def used(self) -> int:
        """The number of draws made."""
        return self._site - self._began

    def advance(self, draws: int) -> None:
        """Pass over call sites whose draws were made elsewhere."""
        self._site += draws

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            _refuse_checkpointing()
        if func is Tensor.unflatten:
            # No draw: torch's own has a `super()` that Dynamo cannot trace under a mode. (A method is not found in a
            # dict either, where Dynamo traces a gradient.)
            return torch.unflatten(*args, **kwargs)
        draw = _DRAWN.get(func)
        if draw is not None:
            return draw(self, func, *args, **kwargs)
        if func in _REFUSED:
            raise _refusal(func)
        if not self._watch:
            return func(*args, **kwargs)
        before = torch.default_generator.get_state()
        result = func(*args, **kwargs)
        if not torch.equal(before, torch.default_generator.get_state()):
            raise _refusal(func)
        return result

    def follows_examples(self, shape: Any) -> bool:
        """Whether a draw of this shape, by ``torch.rand`` and its like, is one for each example of a micro-batch: as
        long as it along dimension 0. (``torch.rand(1)`` beside a micro-batch of one example is taken for shared.)"""
        return bool(shape) and shape[0] == self._count and (len(shape) > 1 or self._count > 1)

    def uniform(self, shape: Any, *, by_example: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the next call site's uniform numbers; ``by_example``: dimension 0 runs over the examples."""
        key = random.site_key(self._key, self._calls, self._site)
        self._site += 1
        start: int | Tensor = 0
        if by_example and self._count and shape and shape[0] % self._count == 0:
            start = self._first * (shape[0] // self._count) * math.prod(shape[1:])
        return random.uniform(key, shape, dtype=dtype, start=start)


class Undrawn(Draws):
    """Refuse every draw: where a block runs twice and there is no key, the second run would draw anew."""

    def __init__(self) -> None:
        nothing = torch.empty(0)
        super().__init__(nothing, nothing)

    def uniform(self, shape: Any, *, by_example: bool, dtype: torch.dtype = torch.float32) -> Tensor:
        raise UnkeyedDrawError(
            "a rematerialised block draws outside a pure step, where there is no key to draw the same again when it "
            "runs again: call it inside one, or put the model into evaluation mode"
        )


def current_draws() -> Draws | None:
    """Return the innermost mode that draws here, or ``None`` outside a forward of a step."""
    modes = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, Draws)]
    return modes[-1] if modes else None


@contextlib.contextmanager
def unread_generator(again: Callable[[], Any]) -> Iterator[None]:
    """Refuse what draws from torch's global CPU generator within the block without being seen; ``again`` runs it once
    more under a mode that watches, to name it. The generator is put back. While tracing, nothing draws."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        yield
        return
    before = torch.default_generator.get_state()
    yield
    if torch.equal(before, torch.default_generator.get_state()):
        return
    try:
        again()
    finally:
        torch.default_generator.set_state(before)
    raise UnkeyedDrawError(
        "the forward draws from the global generator outside any torch function: draw with purestep.random from "
        "context.key, the third argument of the objective"
    )


def _refuse_checkpointing() -> None:
    """Activation checkpointing runs a block again during the backward pass, when neither values nor draws are bound:
    its gradient would be wrong, and nothing would say so."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and "_checkpoint_hook" in getattr(hooks[0], "__qualname__", ""):
        raise RuntimeError(
            "torch.utils.checkpoint cannot be used inside a pure step, since it runs its block again after the "
            "module's values and random draws are unbound: switch it off, and give the step "
            'ps.remat(model, "layers.*") instead'
        )


def _refusal(func: Any) -> UnkeyedDrawError:
    name = getattr(func, "__name__", str(func))
    return UnkeyedDrawError(
        f"{name} would draw from the global generator inside a pure step, and purestep does not draw it yet: take a "
        "third argument `context` in the objective and draw with purestep.random from context.key, or switch the "
        "random part off"
    )


def _keep_mask(draws: Draws, shape: Any, p: float) -> Tensor:
    return draws.uniform(tuple(shape), by_example=True) >= p


def _check_p(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")


def _dropout(
    draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    """Inverted dropout: ``x · keep / (1 - p)`` (Srivastava et al. 2014)."""
    return _masked(draws, input, input.shape, p, training, inplace)


def _torch_dropout(draws: Draws, func: Any, input: Tensor, p: float, train: bool) -> Tensor:
    return _masked(draws, input, input.shape, p, train, func is torch.dropout_)


def _feature_dropout(channels_from_the_end: int) -> Callable[..., Tensor]:
    def drop(
        draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """Dropout of whole channels: one draw for each (example, channel)."""
        spatial = min(channels_from_the_end, input.dim() - 1)
        shape = (*input.shape[: input.dim() - spatial], *([1] * spatial))
        return _masked(draws, input, shape, p, training, inplace)

    return drop


def _masked(draws: Draws, input: Tensor, shape: Any, p: float, training: bool, inplace: bool) -> Tensor:
    _check_p(p)
    if not training or p == 0:
        return input
    scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
    factor = _keep_mask(draws, shape, p).to(input.dtype) * scale
    return input.mul_(factor) if inplace else input * factor


# The value that SELU saturates at, -λα, which alpha dropout puts in place of what it drops (Klambauer et al. 2017).
_SATURATION = -1.7580993408473766


def _alpha_dropout(of_features: bool) -> Callable[..., Tensor]:
    def drop(
        draws: Draws, func: Any, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
    ) -> Tensor:
        """Dropout that keeps the mean and variance of SELU activations."""
        _check_p(p)
        if not training or p == 0:
            return input
        if p == 1:
            return input.mul_(0) if inplace else input * 0
        shape = (*input.shape[:2], *([1] * (input.dim() - 2))) if of_features else input.shape
        keep = _keep_mask(draws, shape, p)
        scale = 1.0 / math.sqrt((1.0 - p) * (1.0 + p * _SATURATION**2))
        dropped = torch.where(keep, input, torch.full((), _SATURATION, dtype=input.dtype, device=input.device))
        result = dropped * scale - scale * p * _SATURATION
        return input.copy_(result) if inplace else result

    return drop


def _attention(
    draws: Draws,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``dropout(softmax(q kᵀ · scale + mask)) v``, written out where it has dropout (a fused kernel draws unseen)."""
    if dropout_p == 0:
        return func(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    scores = query @ key.transpose(-2, -1) * (scale if scale is not None else query.shape[-1] ** -0.5)
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = _masked(draws, torch.ops.aten._safe_softmax.default(scores, -1), scores.shape, dropout_p, True, False)
    return weights @ value


def _projections(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    """The three input projections of attention. Torch's own calls ``Tensor.unflatten``, whose ``super()`` Dynamo
    cannot trace under a mode."""
    if q is k and k is v:
        return tuple(part.contiguous() for part in F.linear(q, weight, bias).chunk(3, dim=-1))
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return tuple(F.linear(x, w, b) for x, w, b in zip((q, k, v), weight.chunk(3), biases, strict=True))


def _opened(function: Any, **replaced: Any) -> Any:
    """Return ``function`` blind to modes at its own door, so that what it calls inside comes to the mode.

    A composite function hands itself to the mode as one call; its copy, whose ``has_torch_function`` says no, runs
    its body under the mode instead.
    """
    namespace = {**function.__globals__, "has_torch_function": lambda *_: False, **replaced}
    copy = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_multi_head_attention = _opened(F.multi_head_attention_forward, _in_projection_packed=_projections)


def _open_attention(draws: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    with draws:
        return _multi_head_attention(*args, **kwargs)


def _recurrent(draws: Draws, func: Any, *args: Any, **kwargs: Any) -> Any:
    """An RNN's kernel is one opaque call: it passes where it has no dropout, and is refused where it has."""
    # (input, hx, weights, has_biases, layers, dropout, train, ...), or with batch sizes before the hidden state.
    numbers = [a for a in args if isinstance(a, float)]
    training = [a for a in args if isinstance(a, bool)]
    if numbers and numbers[0] > 0 and training[1]:
        raise _refusal(func)
    return func(*args, **kwargs)


def _rand(draws: Draws, func: Any, *size: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
    return _fill(draws, _shape(size, kwargs), dtype, kwargs, func is torch.randn)


def _rand_like(draws: Draws, func: Any, input: Tensor, *, dtype: Any = None, **kwargs: Any) -> Tensor:
    kwargs.setdefault("device", input.device)
    return _fill(draws, tuple(input.shape), dtype or input.dtype, kwargs, func is torch.randn_like)


def _shape(size: Any, kwargs: dict[str, Any]) -> tuple[int, ...]:
    size = kwargs.pop("size", size)
    return tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else tuple(size)


def _fill(draws: Draws, shape: Any, dtype: Any, kwargs: dict[str, Any], gaussian: bool) -> Tensor:
    unknown = set(kwargs) - {"device", "requires_grad", "pin_memory", "layout", "memory_format"}
    if unknown:
        raise UnkeyedDrawError(
            f"a draw inside a pure step takes no {sorted(unknown)}: its randomness is the state's key"
        )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    by_example = draws.follows_examples(shape)
    numbers = draws.uniform((*shape, 2) if gaussian else shape, by_example=by_example, dtype=wide)
    if gaussian:  # Box-Muller; 1 - u is never 0
        numbers = torch.sqrt(-2 * torch.log(1 - numbers[..., 0])) * torch.cos(2 * math.pi * numbers[..., 1])
    return numbers.to(dtype=dtype or torch.get_default_dtype(), device=kwargs.get("device"))


def _bernoulli(draws: Draws, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if kwargs or args:
        raise _refusal(func)
    shape = tuple(input.shape)
    return (draws.uniform(shape, by_example=draws.follows_examples(shape)) < input).to(input.dtype)


_DRAWN: dict[Any, Callable[..., Any]] = {
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    torch.dropout_: _torch_dropout,
    F.dropout1d: _feature_dropout(1),
    F.dropout2d: _feature_dropout(2),
    F.dropout3d: _feature_dropout(3),
    F.alpha_dropout: _alpha_dropout(False),
    F.feature_alpha_dropout: _alpha_dropout(True),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _open_attention,
    torch.lstm: _recurrent,
    torch.gru: _recurrent,
    torch.rnn_tanh: _recurrent,
    torch.rnn_relu: _recurrent,
    torch.rand: _rand,
    torch.randn: _rand,
    torch.rand_like: _rand_like,
    torch.randn_like: _rand_like,
    torch.bernoulli: _bernoulli,
}

_REFUSED = {
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.normal,
    torch.multinomial,
    torch.poisson,
    torch.binomial,
    torch.rrelu,
    torch.rrelu_,
    torch.alpha_dropout,
    torch.alpha_dropout_,
    torch.feature_dropout,
    torch.feature_dropout_,
    torch.feature_alpha_dropout,
    torch.feature_alpha_dropout_,
    torch.native_dropout,
    F.rrelu,
    F.gumbel_softmax,
    F.fractional_max_pool2d,
    F.fractional_max_pool3d,
    F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d_with_indices,
    torch._standard_gamma,
    torch._sample_dirichlet,
    *(
        getattr(Tensor, name)
        for name in (
            "bernoulli",
            "bernoulli_",
            "cauchy_",
            "exponential_",
            "geometric_",
            "log_normal_",
            "multinomial",
            "normal_",
            "random_",
            "uniform_",
        )
    ),
}
