"""Permutations of 0, ..., n - 1 under a key: any place of one in constant time and memory, at any n."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from purestep.data.orders._keyed import Keys

# Over 4000 epochs at n = 1025, 4 rounds are 50 standard errors off in the serial correlation at lag b, 6 rounds 7
# off in the differences at lag b; 8 cannot be told from randperm. Below about 1000 that takes ever more rounds,
# while sorting costs nothing.
ROUNDS = 8
SORTED_UP_TO = 1024

_MULTIPLIERS = (0x21F0AAAD, 0x735A2D97)

_FEW = 16
"""Up to so many numbers, Python's integers take less time than that many small tensors."""

# Within groups nothing is sorted, so small ones need the rounds: over all permutations of 5, chi-square is off by 260
# standard deviations with 8 rounds, by 20 with 12, and cannot be told from randperm with 20.
GROUP_ROUNDS = 20


def permute(n: int, keys: Keys, positions: Tensor, *, rounds: int = ROUNDS, sorted_up_to: int = SORTED_UP_TO) -> Tensor:
    """Return the images of ``positions`` (from 0 to n - 1, of any shape) under the permutation of the keys.

    Args:
        keys: 16 words of 32 bits, into which ``n`` has gone: else those of n and n + 1 were nearly the same.
        rounds: an even number.
        sorted_up_to: up to this ``n`` a keyed hash is sorted; above, the network serves.
    """
    if n <= sorted_up_to:
        everything = torch.arange(n, device=positions.device)
        # Two keys, since one of 32 bits would reach only 2^32 permutations. Neither hash ties.
        once = _hash(everything ^ keys[0]) & 0xFFFFFFFF
        return torch.argsort(_hash(once ^ keys[1]))[positions]
    a, b = _radices(n)
    if positions.numel() <= _FEW:
        few = [_walked(x, n, a, b, keys, rounds) for x in positions.reshape(-1).tolist()]
        return torch.tensor(few, dtype=torch.int64, device=positions.device).view(positions.shape)
    indices = _network(positions.reshape(-1), a, b, keys, rounds)
    outside = (indices >= n).nonzero().reshape(-1)
    while len(outside) > _FEW:  # seldom: less than 2/√n of the positions begin outside
        indices[outside] = _network(indices[outside], a, b, keys, rounds)
        outside = outside[indices[outside] >= n]
    if len(outside):
        last = [_walked(x, n, a, b, keys, rounds) for x in indices[outside].tolist()]
        indices[outside] = torch.tensor(last, dtype=torch.int64, device=indices.device)
    return indices.view(positions.shape)


def permute_groups(sizes: Tensor, groups: Tensor, keys: Keys, places: Tensor, *, rounds: int = GROUP_ROUNDS) -> Tensor:
    """Return the images of ``places``, each under the permutation of its own group.

    Args:
        sizes: of all groups, each at least 1; shape (groups,).
        groups: the group of each place, below 2^32; of the shape of ``places``.
        keys: at least ``rounds + 2`` words of 32 bits.
        places: from 0 to ``sizes[group] - 1``.
    """
    a = (sizes - 1).double().sqrt().floor().long() + 1  # ⌈√n⌉
    b = (sizes + a - 1).div(a, rounding_mode="floor")
    b = b + (a & b & 1)
    shape, groups, places = places.shape, groups.reshape(-1), places.reshape(-1)
    # Two words for each group: by one of 32 bits, some of many groups would lie near each other.
    words = [_hash(_hash(groups ^ keys[i]) & 0xFFFFFFFF) & 0xFFFFFFFF for i in (0, 1)]

    def network(at: Tensor | slice, x: Tensor) -> Tensor:
        group, own = groups[at], [word[at] for word in words]
        return _network(x, a[group], b[group], [own[i % 2] ^ keys[2 + i] for i in range(rounds)], rounds)

    limits = sizes[groups]
    indices = network(slice(None), places)
    outside = indices >= limits
    while outside.any():
        indices[outside] = network(outside, indices[outside])
        outside = indices >= limits
    return indices.view(shape)


def _radices(n: int) -> tuple[int, int]:
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    # Turning an odd circle is an even permutation: were both odd, no odd one would ever come out.
    return a, b + (a & b & 1)


def _network(x: Tensor, a: int | Tensor, b: int | Tensor, keys: Keys | list[Tensor], rounds: int) -> Tensor:
    left = torch.div(x, b, rounding_mode="trunc")
    right = x - left * b
    for i in range(rounds):
        # The half that changes is always called left here: they trade places after each round.
        turned = _turned(left, _hash(right ^ keys[i]), b if i % 2 else a)
        left, right = right, turned
    return left.mul_(b).add_(right)  # after an even number of rounds each half is at home again


def _walked(x: int, n: int, a: int, b: int, keys: Keys, rounds: int) -> int:
    """Apply the network to one number until it is below ``n``: once at least. Python's integers have the same bits."""
    while True:
        left, right = divmod(x, b)
        for i in range(rounds):
            mixed = (right ^ keys[i]) * _MULTIPLIERS[0] & 0xFFFFFFFF
            mixed = (mixed ^ mixed >> 15) * _MULTIPLIERS[1]
            left, right = right, ((mixed >> 20) + left) % (b if i % 2 else a)
        x = left * b + right
        if x < n:
            return x


def _turned(left: Tensor, by: Tensor, modulus: int | Tensor) -> Tensor:
    """Return ``left + by`` modulo ``modulus``; ``by`` is a hash, whose low bits are the weak ones, and overwritten."""
    if isinstance(modulus, int):
        return by.bitwise_right_shift_(20).add_(left).remainder_(modulus)
    # Integers are divided by a tensor ten times more slowly than multiplied. Of 32 bits of a product the high ones are
    # the strong ones, of 63 they are not: those hardly mix.
    turned = by.bitwise_and_(0xFFFFFFFF).mul_(modulus).bitwise_right_shift_(32).add_(left)
    return turned.sub_(modulus * (turned >= modulus))


def _hash(x: Tensor) -> Tensor:
    """Hash numbers of 32 bits to 63 bits, in place; distinct ones stay distinct, modulo 2^32 too.

    ``_MULTIPLIERS`` are those of the best two-round function of C. Wellons' hash-prospector; both are below 2^31, so no
    product leaves int64. Its outer shifts are left out, since the inputs are keyed and the high bits are what is used.
    """
    x.mul_(_MULTIPLIERS[0]).bitwise_and_(0xFFFFFFFF)
    return x.bitwise_xor_(x >> 15).mul_(_MULTIPLIERS[1])
