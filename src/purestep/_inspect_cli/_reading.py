"""The tensors of a checkpoint that was verified, one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from purestep.checkpoint import CheckpointError, Manifest

Read = Callable[[str], Tensor]


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Read]:
    """Give the function that reads a tensor by its path. The file is mapped, and the tensor a view of it."""
    file = path / next(iter(manifest.files))
    try:
        with safe_open(file, framework="pt", device="cpu") as held:

            def read(name: str) -> Tensor:
                tensor, dtype = held.get_tensor(name), dtype_of(manifest, name)
                if tensor.dtype == dtype:
                    return tensor
                # What safetensors lacks lies there as pairs of real numbers, or as bytes.
                return torch.view_as_complex(tensor) if dtype.is_complex else tensor.view(dtype)

            yield read
    except SafetensorError as error:
        raise CheckpointError(f"{str(file)!r} is damaged or no safetensors file: {error}") from error


def dtype_of(manifest: Manifest, name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, manifest.tensors[name].dtype)
    return dtype


def bytes_of(manifest: Manifest, name: str) -> int:
    return prod(manifest.tensors[name].shape) * dtype_of(manifest, name).itemsize
