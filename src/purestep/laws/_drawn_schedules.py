"""A strategy that draws schedules over the whole algebra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

import purestep.schedules as ps
from purestep.schedules import Schedule


def schedules(*, max_leaves: int = 4) -> st.SearchStrategy[Schedule]:
    """Draw schedules: every constructor, and sums, products, joins and the rest of up to ``max_leaves`` of them."""
    return st.recursive(st.one_of(*BASIC.values()), _combined, max_leaves=max_leaves)


def _numbers(smallest: float, largest: float) -> st.SearchStrategy[float]:
    # Hundredths: what people write, and none of them subnormal.
    return st.integers(0, 100).map(lambda n: smallest + (largest - smallest) * n / 100)


def _or_tensor(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return numbers | numbers.map(lambda n: torch.tensor(n, dtype=torch.float64))


_rates = _or_tensor(_numbers(1e-4, 1.0))
_shares = _numbers(0.0, 1.0)
_counts = st.integers(1, 40) | st.sampled_from([100, 1000, 12_345])
_lengths = st.just(0) | _counts  # of a phase that may be missing
_exponents = st.sampled_from([0.25, 0.5, 1.0, 2.0])
_decays = _or_tensor(_numbers(0.05, 1.0))
_eases: st.SearchStrategy[Any] = st.sampled_from(["cosine", "linear"])


def _boundaries(smallest: int, largest: int) -> st.SearchStrategy[list[int]]:
    """Steps that increase, from ``smallest`` to ``largest`` of them."""
    gaps = st.lists(_counts, min_size=smallest, max_size=largest)
    return gaps.map(lambda each: [sum(each[: n + 1]) for n in range(len(each))])


def _built(constructor: Callable[..., Schedule], **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Schedule]:
    """Draw hyperparameters, where ``initial``, ``floor``, ``final`` and ``warm`` are drawn as shares of ``peak``."""

    def build(**drawn: Any) -> Schedule:
        for name in ("initial", "floor", "final", "warm"):
            if drawn.get(name) is not None:
                drawn[name] = drawn["peak"] * drawn[name]
        return constructor(**drawn)

    return st.builds(build, **strategies)


@st.composite
def _within(draw: st.DrawFn, constructor: Callable[..., Schedule], **others: st.SearchStrategy[Any]) -> Schedule:
    """A schedule whose ``warmup_steps`` are a part of its ``total_steps``."""
    warmup = draw(_lengths)
    return draw(_built(constructor, warmup_steps=st.just(warmup), total_steps=_counts.map(warmup.__add__), **others))


@st.composite
def _pieces(draw: st.DrawFn, constructor: Callable[..., Schedule], **others: st.SearchStrategy[Any]) -> Schedule:
    boundaries = draw(_boundaries(1, 3))
    values = draw(st.lists(_or_tensor(_numbers(-1.0, 1.0)), min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
    return constructor(values, boundaries, **{name: draw(strategy) for name, strategy in others.items()})


@st.composite
def _warm_restarts(draw: st.DrawFn) -> Schedule:
    multiplier = draw(st.sampled_from([1.0, 1.5, 2, 3, 10]))
    # Cycle i of equal cycles begins i * (i - 1) / 2 periods later for each unit of the multiplier: with many cycles, no
    # difference is small enough to tell the derivative.
    periods = st.sampled_from([1000, 12_345]) if multiplier == 1 else _counts
    return draw(
        _built(
            ps.warm_restarts,
            peak=_rates,
            period=periods,
            multiplier=_or_tensor(st.just(multiplier)),
            decay=_decays,
            floor=_shares,
            cycles=st.none() | st.integers(1, 4),
        )
    )


@st.composite
def _swa_anneals(draw: st.DrawFn) -> Schedule:
    inner = draw(_rates | st.builds(ps.cosine, _rates, _counts))
    return ps.swa_anneal(inner, draw(_rates), draw(_lengths), draw(_lengths), kind=draw(_eases))


@st.composite
def _warmups(draw: st.DrawFn) -> Schedule:
    kind: Any = draw(st.sampled_from(["linear", "exponential", "constant", "cosine"]))
    initial = draw(_rates if kind == "exponential" else _or_tensor(_numbers(-1.0, 1.0)))
    return ps.warmup(draw(_inner), draw(_lengths), initial=initial, kind=kind)


def _inverse_time(step: Tensor) -> Tensor:
    return 0.5 / (1 + step / 10)


# Some that begin above 0, to be built upon.
_inner = st.one_of(
    st.builds(ps.constant, _rates),
    st.builds(ps.cosine, _rates, _counts),
    st.builds(ps.linear, _rates, _rates, _counts),
    st.builds(ps.noam, _counts, _lengths),
)
_noises = st.sampled_from(["normal", "uniform"])
_modes = st.sampled_from(["triangular", "triangular2", "exp_range"])
_turns = {
    "total_steps": st.sampled_from([10, 25, 100, 12_345]),
    "warmup_fraction": _or_tensor(st.sampled_from([0.1, 0.3, 0.42])),
    "anneal": _eases,
    "three_phase": st.booleans(),
}
_waves = {
    "low": _or_tensor(_numbers(0.0, 0.5)),
    "high": _or_tensor(_numbers(0.5, 1.0)),
    "up_steps": _counts,
    "down_steps": st.none() | _counts,
    "mode": _modes,
    "gamma": st.sampled_from([1.0, 0.999, 0.9]),
}

# A strategy for each constructor by its name; our tests see to it that none is missing.
BASIC: dict[str, st.SearchStrategy[Schedule]] = {
    "constant": st.builds(ps.constant, _rates),
    "cosine": _built(ps.cosine, peak=_rates, total_steps=_counts, floor=_shares, power=_exponents),
    "cyclic": st.builds(ps.cyclic, **_waves),
    "cyclic_momentum": st.builds(ps.cyclic_momentum, **_waves),
    "exponential": _built(
        ps.exponential,
        peak=_rates,
        rate=_decays,
        every=_counts,
        staircase=st.booleans(),
        floor=st.none() | _shares,
    ),
    "function": st.just(ps.function(_inverse_time)),
    "inverse_sqrt": st.builds(ps.inverse_sqrt, _rates, _lengths, timescale=st.none() | _counts),
    "join": st.builds(lambda a, b, c, at: ps.join([a, b, c], at=at), _inner, _inner, _inner, _boundaries(2, 2)),
    "linear": st.builds(ps.linear, _or_tensor(_numbers(-1.0, 1.0)), _rates, _counts),
    "maximum": st.builds(ps.maximum, _inner, _inner, _rates),
    "minimum": st.builds(ps.minimum, _inner, _inner, _rates),
    "multi_step": st.builds(ps.multi_step, _rates, _boundaries(1, 4), rate=_decays),
    "multiplicative": st.builds(ps.multiplicative, _rates, st.lists(_rates, min_size=1, max_size=5)),
    "noam": st.builds(ps.noam, _counts, _lengths, factor=_rates),
    "noise": st.builds(
        ps.noise,
        _inner,
        st.integers(0, 2**20),  # beyond, the smallest difference that the law makes is another seed
        scale=_numbers(0.0, 0.9),
        spread=_numbers(0.1, 2.0),
        kind=_noises,
        start=st.integers(0, 5),
        stop=st.none() | st.integers(6, 100),
    ),
    "one_cycle": st.builds(
        ps.one_cycle, _rates, start_divisor=st.sampled_from([2.0, 25.0]), end_divisor=st.just(1e4), **_turns
    ),
    "one_cycle_momentum": st.builds(ps.one_cycle_momentum, st.just(0.85), _or_tensor(st.just(0.95)), **_turns),
    "one_minus_sqrt": _built(ps.one_minus_sqrt, peak=_rates, total_steps=_counts, floor=_shares),
    "piecewise_constant": _pieces(ps.piecewise_constant),
    "piecewise_interpolate": _pieces(ps.piecewise_interpolate, kind=_eases),
    "polynomial": _built(
        ps.polynomial, peak=_rates, total_steps=_counts, floor=_shares, power=_exponents, k_decay=_exponents
    ),
    "resnet_warmup": _built(ps.resnet_warmup, peak=_rates, warmup_steps=_lengths, warm=_shares),
    "sigmoid_decay": _built(
        ps.sigmoid_decay,
        peak=_rates,
        total_steps=_counts,
        floor=_shares,
        steepness=_or_tensor(_numbers(0.5, 40.0)),
        midpoint=_shares,
    ),
    "step_decay": st.builds(ps.step_decay, _rates, _counts, rate=_decays),
    "swa_anneal": _swa_anneals(),
    "tanh_decay": _built(
        ps.tanh_decay,
        peak=_rates,
        total_steps=_counts,
        floor=_shares,
        lower=_or_tensor(_numbers(-7.0, -1.0)),
        upper=_numbers(0.0, 3.0),
    ),
    "tri_stage": _built(
        ps.tri_stage,
        peak=_rates,
        warmup_steps=_lengths,
        hold_steps=_lengths,
        decay_steps=_counts,
        initial=st.none() | _shares,
        final=st.none() | _numbers(0.01, 1.0),
    ),
    "warm_restarts": _warm_restarts(),
    "warmup": _warmups(),
    "warmup_constant": _built(ps.warmup_constant, peak=_rates, warmup_steps=_lengths, initial=_shares),
    "warmup_cosine": _within(
        ps.warmup_cosine, peak=_numbers(1e-3, 1.0), initial=_shares, floor=_shares, power=_exponents
    ),
    "warmup_exponential": _built(
        ps.warmup_exponential,
        peak=_rates,
        warmup_steps=_lengths,
        rate=_decays,
        initial=_shares,
        every=_counts,
        staircase=st.booleans(),
        floor=st.none() | _shares,
    ),
    "warmup_linear": _within(ps.warmup_linear, peak=_rates, initial=_shares, floor=_shares),
    "wsd": _built(
        ps.wsd,
        peak=_rates,
        warmup_steps=_lengths,
        stable_steps=_lengths,
        decay_steps=_counts,
        initial=_shares,
        floor=_shares,
        decay=st.sampled_from(["linear", "cosine", "one_minus_sqrt"]),
    ),
}


def _combined(inner: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    return st.one_of(
        st.builds(lambda a, b: a * b, inner, inner | _rates),
        st.builds(lambda a, b: b * a, inner, _rates.filter(lambda r: not isinstance(r, Tensor))),
        st.builds(lambda a, b: a + b, inner, inner | _rates),
        st.builds(lambda a, b: a - b, inner, inner | _rates),
        st.builds(lambda a, b: a / b, inner, _rates),
        st.builds(lambda a, b, n: a.then(b, at=n), inner, inner, _lengths),
        st.builds(lambda a, b, n: ps.join([a, b], at=[n]), inner, inner, _lengths),
        st.builds(ps.maximum, inner, inner | _rates),
        st.builds(ps.minimum, inner, inner | _rates),
        st.builds(lambda a, n: a.shift(n), inner, st.integers(-40, 40)),
        st.builds(lambda a, low, width: a.clamp(min=low, max=low + width), inner, _rates, _rates),
        st.builds(lambda a, low: a.clamp(min=low), inner, _rates),
        st.builds(lambda a, n, decay: a.repeat(every=n, decay=decay), inner, _counts, st.just(1.0) | _decays),
    )
