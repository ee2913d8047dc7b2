"""Keys: int64 tensors of shape ``(2,)`` that hold two unsigned 32-bit words, and what is derived from them."""

from __future__ import annotations

import torch
from torch import Tensor

from purestep import _checks, _tree
from purestep.random import _graph  # noqa: F401 (it defines the operation purestep::philox)
from purestep.random._philox import FOR_CALL, FOR_FOLD, FOR_SPLIT, MASK, philox
from purestep.random._stream import derive, traced


def key(seed: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the key of a seed: int64, shape ``(2,)``, its low and high 32-bit words.

    Raises:
        TypeError, ValueError: ``seed`` is not an int from 0 to 2^64 - 1.
    """
    _checks.integer("seed", seed, minimum=0)
    if seed >= 1 << 64:
        raise ValueError(f"seed must be below 2**64, got {seed}")
    return torch.tensor([seed & MASK, seed >> 32], dtype=torch.int64, device=device)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Return the key that belongs to ``(key, data)``; different data give unrelated keys.

    Args:
        key: shape ``(2,)``.
        data: an int from 0 to 2^63 - 1, or an int64 tensor of any shape ``s``.

    Returns:
        int64, shape ``s + (2,)``.
    """
    return _derived(checked(key), "data", data, FOR_FOLD)


def split(key: Tensor, count: int = 2) -> Tensor:
    """Return ``count`` unrelated keys, int64 of shape ``(count, 2)``, unlike any that :func:`fold_in` gives."""
    _checks.integer("count", count, minimum=1)
    return _derived(checked(key), "count", torch.arange(count, dtype=torch.int64, device=key.device), FOR_SPLIT)


def call_key(key: Tensor, calls: int | Tensor) -> Tensor:
    """Return the key of one call of a step, unlike any that :func:`fold_in` or :func:`split` gives.

    Args:
        key: shape ``(2,)``: a state's.
        calls: an int from 0 to 2^63 - 1, or an int64 tensor of any shape ``s``: a state's.

    Returns:
        int64, shape ``s + (2,)``.
    """
    return _derived(checked(key), "calls", calls, FOR_CALL)


def checked(key: Tensor) -> Tensor:
    """Return ``key`` if it is one; raise otherwise."""
    if not isinstance(key, Tensor):
        raise TypeError(f"key must be an int64 tensor of shape (2,), as key(seed) gives, got {key!r}")
    if key.dtype != torch.int64 or key.shape != (2,):
        raise ValueError(
            f"key must be an int64 tensor of shape (2,), as key(seed) gives, got {key.dtype} of shape "
            f"{tuple(key.shape)} (many keys: under torch.vmap, or one at a time)"
        )
    return key


def _derived(key: Tensor, name: str, data: int | Tensor, purpose: int) -> Tensor:
    """Return the key of ``(key, data)`` for a purpose."""
    if not isinstance(data, Tensor):
        _checks.integer(name, data, minimum=0)
        if data >= 1 << 63:
            raise ValueError(f"{name} must be below 2**63, got {data}")
    elif data.dtype != torch.int64:
        raise TypeError(f"{name} must be an int or an int64 tensor, got a tensor of {data.dtype}")
    if isinstance(data, int) or data.dim() == 0:
        if not (traced() or _tree.is_transformed()) and type(data) in (int, Tensor) and key.device.type == "cpu":
            # One key, readable: Python's integers take a tenth of the time of that many small tensors.
            number, (k0, k1) = int(data), key.tolist()
            words = philox(k0, k1, number & MASK, (number >> 32) & MASK, 0, purpose)
            return torch.tensor(words[:2], dtype=torch.int64)
        data = torch.as_tensor(data, dtype=torch.int64, device=key.device)
    if traced():
        return torch.ops.purestep.philox(key.expand(*data.shape, 2), data, 0, 2, 0, purpose, 0, None)
    return derive(key, data, (0, purpose))
