"""Gamma, Poisson and binomial numbers: by rejection, of a fixed number of candidates that are drawn together.

A loop until something is accepted would read values and take another time for each entry; so each entry has as many
candidates as make it improbable (below 10^-10) that none is accepted, and the first that is counts. Where none is, the
most probable value stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from purestep import _checks
from purestep.random._philox import SITE_BITS
from purestep.random.distributions import normal
from purestep.random.words import check_place, float_dtype, uniform

# (generate, how many for each entry) -> float64 numbers of the entries' shape and one dimension more.
Source = Callable[[Callable[..., Tensor], int], Tensor]

_CANDIDATES = 16
_GAMMA_CANDIDATES = 8
# Below this mean a Poisson or binomial number is found by adding up probabilities, of as many values as can occur.
_SMALL_MEAN, _SMALL_VALUES = 10.0, 64


def gamma(
    key: Tensor,
    shape: Sequence[int],
    *,
    concentration: float | Tensor,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return gamma numbers of rate 1, of ``shape``, differentiable by their concentration.

    .. math:: p(x) = x^{\alpha - 1} e^{-x} / \Gamma(\alpha)

    Source: Marsaglia and Tsang, "A simple method for generating gamma variables" (2000); of eight candidates, each
    accepted with probability 0.95 or more. The derivative is the implicit one: Figurnov, Mohamed and Mnih, "Implicit
    reparameterization gradients" (2018), https://arxiv.org/abs/1805.08498, of first order.

    Args:
        key, start, site: as for :func:`purestep.random.bits`; ``start`` counts entries.
        shape: of the result.
        concentration: above 0; a number, or a tensor that broadcasts to ``shape`` (whose values are not checked).
        dtype: of the result; torch's default where it is not given.
    """
    dtype = float_dtype(dtype)
    source = _source(key, shape, start, site)
    return gamma_from(source, _parameter("concentration", concentration, shape, key, above=0)).to(dtype)


def gamma_from(source: Source, concentration: Tensor) -> Tensor:
    """Return gamma numbers from a source; ``concentration`` in float64, of the entries' shape."""
    alpha = concentration.detach()
    sample = torch.exp(log_gamma_from(source, alpha)).clamp(min=torch.finfo(torch.float64).tiny)
    slope = torch._standard_gamma_grad(alpha, sample)
    return sample + slope * (concentration - alpha)


def log_gamma_from(source: Source, alpha: Tensor) -> Tensor:
    """Return the logarithms of gamma numbers: for a small concentration the numbers themselves are 0 in any dtype."""
    # A number of concentration α + 1 times U^(1/α) is one of concentration α.
    above = torch.where(alpha < 1, alpha + 1, alpha)
    d = (above - 1 / 3).unsqueeze(-1)
    x, u = source(normal, _GAMMA_CANDIDATES), source(_positive_uniform, _GAMMA_CANDIDATES + 1)
    v = (1 + x / (3 * d.sqrt())) ** 3
    log_v = v.clamp(min=torch.finfo(torch.float64).tiny).log()
    accepted = (v > 0) & (u[..., 1:].log() < x.square() / 2 + d * (1 - v + log_v))
    chosen = _first(accepted, d * v, d.squeeze(-1))
    return chosen.log() + torch.where(alpha < 1, u[..., 0].log() / alpha, 0.0)


def poisson(
    key: Tensor,
    shape: Sequence[int],
    *,
    rate: float | Tensor,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return Poisson numbers of ``shape``.

    .. math:: P(k) = \lambda^k e^{-\lambda} / k!

    Source: Hörmann, "The transformed rejection method for generating Poisson random variables" (1993), for a rate of 10
    or more, with sixteen candidates; below, the inverse of the distribution function.

    Args:
        key, start, site: as for :func:`purestep.random.bits`; ``start`` counts entries.
        shape: of the result.
        rate: at least 0; a number, or a tensor that broadcasts to ``shape`` (whose values are not checked).
        dtype: of the result; torch's default where it is not given.
    """
    source = _source(key, shape, start, site)
    return poisson_from(source, _parameter("rate", rate, shape, key, minimum=0)).to(dtype or torch.get_default_dtype())


def poisson_from(source: Source, rate: Tensor) -> Tensor:
    """Return Poisson numbers from a source; ``rate`` in float64, of the entries' shape."""
    u, v = _two_uniforms(source)
    large = rate.clamp(min=_SMALL_MEAN).unsqueeze(-1)
    b = 0.931 + 2.53 * large.sqrt()
    a = 0.02483 * b - 0.059
    near = 0.5 - u.abs()
    k = torch.floor((2 * a / near + b) * u + large + 0.43)
    held = k.clamp(min=0.0)
    log_ratio = held * large.log() - large - torch.lgamma(held + 1)
    hat = torch.log(v * (1.1239 + 1.1328 / (b - 3.4)) / (a / near.square() + b))
    quick = (near >= 0.07) & (v <= 0.9277 - 3.6224 / (b - 2))
    accepted = (k >= 0) & (quick | (~((near < 0.013) & (v > near)) & (hat <= log_ratio)))
    by_rejection = _first(accepted, k, large.squeeze(-1).floor())
    values = torch.arange(_SMALL_VALUES, dtype=torch.float64, device=rate.device)
    small = rate.clamp(max=_SMALL_MEAN).unsqueeze(-1)
    probabilities = torch.exp(torch.special.xlogy(values, small) - small - torch.lgamma(values + 1))
    return torch.where(rate < _SMALL_MEAN, _inverted(probabilities, u[..., 0] + 0.5), by_rejection)


def binomial(
    key: Tensor,
    shape: Sequence[int],
    *,
    count: int | Tensor,
    p: float | Tensor,
    dtype: torch.dtype | None = None,
    start: int | Tensor = 0,
    site: int = 0,
) -> Tensor:
    r"""Return binomial numbers of ``shape``: successes among ``count`` trials.

    .. math:: P(k) = \binom{n}{k} p^k (1 - p)^{n - k}

    Source: Hörmann, "The generation of binomial random variates" (1993), for a mean of 10 or more, with sixteen
    candidates; below, the inverse of the distribution function.

    Args:
        key, start, site: as for :func:`purestep.random.bits`; ``start`` counts entries.
        shape: of the result.
        count: an int of at least 0, or a tensor that broadcasts to ``shape`` (whose values are not checked).
        p: from 0 to 1; a number, or a tensor that broadcasts to ``shape`` (whose values are not checked).
        dtype: of the result; torch's default where it is not given.
    """
    source = _source(key, shape, start, site)
    if not isinstance(count, Tensor):
        _checks.integer("count", count, minimum=0)
    n = _parameter("count", count, shape, key)
    p = _parameter("p", p, shape, key, minimum=0, maximum=1)
    return binomial_from(source, n, p).to(dtype or torch.get_default_dtype())


def binomial_from(source: Source, count: Tensor, p: Tensor) -> Tensor:
    """Return binomial numbers from a source; ``count`` and ``p`` in float64, of the entries' shape."""
    u, v = _two_uniforms(source)
    rarer = torch.minimum(p, 1 - p)
    small = count * rarer < _SMALL_MEAN
    # Where the sums are taken, the other branch computes with numbers that are good for it.
    n, q = torch.where(small, 40.0, count).unsqueeze(-1), torch.where(small, 0.5, rarer).unsqueeze(-1)
    spread = torch.sqrt(n * q * (1 - q))
    b = 1.15 + 2.53 * spread
    a = 0.0248 * b + 0.01 * q - 0.0873
    mode = torch.floor((n + 1) * q)
    near = 0.5 - u.abs()
    k = torch.floor((2 * a / near + b) * u + n * q + 0.5)
    inside = (k >= 0) & (k <= n)
    held = torch.where(inside, k, mode)
    log_ratio = _log_choose(n, held) - _log_choose(n, mode) + (held - mode) * torch.log(q / (1 - q))
    hat = torch.log(v * (2.83 + 5.1 / b) * spread / (a / near.square() + b))
    accepted = inside & (((near >= 0.07) & (v <= 0.92 - 4.2 / b)) | (hat <= log_ratio))
    by_rejection = _first(accepted, k, mode.squeeze(-1))
    values = torch.arange(_SMALL_VALUES, dtype=torch.float64, device=p.device)
    total, rare = count.unsqueeze(-1), torch.where(small, rarer, 0.0).unsqueeze(-1)
    possible = values <= total
    among = torch.where(possible, values, 0.0)
    logs = _log_choose(total, among) + torch.special.xlogy(among, rare) + torch.special.xlog1py(total - among, -rare)
    by_sums = _inverted(torch.where(possible, logs.exp(), 0.0), u[..., 0] + 0.5).minimum(count)
    successes = torch.where(small, by_sums, by_rejection)
    return torch.where(p <= 0.5, successes, count - successes)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _first(accepted: Tensor, candidates: Tensor, otherwise: Tensor) -> Tensor:
    """Return the first accepted of the candidates in the last dimension."""
    chosen = candidates.gather(-1, accepted.to(torch.int8).argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(accepted.any(-1), chosen, otherwise)


def _inverted(probabilities: Tensor, u: Tensor) -> Tensor:
    """Return the first value up to which the probabilities in the last dimension add up to more than ``u``."""
    sums = probabilities.cumsum(-1)
    return (sums <= u.unsqueeze(-1)).sum(-1).clamp(max=_SMALL_VALUES - 1).to(torch.float64)


def _two_uniforms(source: Source) -> tuple[Tensor, Tensor]:
    """Uniform numbers for each candidate: in (-1/2, 1/2), and in (0, 1)."""
    both = source(_positive_uniform, 2 * _CANDIDATES)
    return both[..., :_CANDIDATES] - 0.5, both[..., _CANDIDATES:]


def _positive_uniform(key: Tensor, shape: Sequence[int], **place: int | Tensor | torch.dtype) -> Tensor:
    """Uniform float64 numbers between 0 and 1, neither of them among these."""
    return uniform(key, shape, **place) + 2.0**-33  # type: ignore[arg-type]


def _source(key: Tensor, shape: Sequence[int], start: int | Tensor, site: int) -> Source:
    check_place(shape, start, site)
    sites = iter((site, (site + (1 << SITE_BITS - 1)) % (1 << SITE_BITS)))

    def source(generate: Callable[..., Tensor], count: int) -> Tensor:
        return generate(key, (*shape, count), dtype=torch.float64, start=start * count, site=next(sites))

    return source


def _parameter(name: str, value: float | Tensor, shape: Sequence[int], key: Tensor, **bounds: float) -> Tensor:
    if not isinstance(value, Tensor):
        _checks.number(name, value, **bounds)
        return torch.full(tuple(shape), float(value), dtype=torch.float64, device=key.device)
    try:
        return value.to(torch.float64).expand(tuple(shape))
    except RuntimeError:
        raise ValueError(f"{name} must broadcast to {tuple(shape)}, got shape {tuple(value.shape)}") from None
