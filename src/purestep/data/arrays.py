"""Sources of NumPy arrays, in memory or mapped from a file, and windows of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep._checks import integer
from purestep.data.sources import Source, TensorSource, same

if TYPE_CHECKING:
    import numpy


def from_arrays(arrays: Mapping[str, numpy.ndarray]) -> Source:
    """Return a source of NumPy arrays, examples along dimension 0.

    Arrays in memory are held, not copied. An array that is mapped from a file (``numpy.load(path, mmap_mode="r")``,
    ``numpy.memmap``) stays there: the rows of a batch are read when they are fetched.

    Raises:
        TypeError: a value is not an array, or its numbers are of a kind that torch does not have.
        ValueError: there is no array, one has no dimension, or they disagree about the number of examples.
    """
    import numpy

    if not isinstance(arrays, Mapping) or not arrays:
        raise TypeError(f"arrays must map names to NumPy arrays, such as {{'x': x, 'y': y}}, got {arrays!r}")
    for name, array in arrays.items():
        if not isinstance(array, numpy.ndarray):
            raise TypeError(f"arrays[{name!r}] must be a NumPy array, got {type(array).__name__}")
        if array.ndim == 0:
            raise ValueError(f"arrays[{name!r}] must have its examples along dimension 0, got an array without any")
        try:
            torch.from_numpy(numpy.empty(1, dtype=array.dtype.newbyteorder("=")))
        except TypeError as error:
            raise TypeError(
                f"arrays[{name!r}] must hold numbers that torch has, got {array.dtype}; data.dataframe takes text"
            ) from error
    same("number of examples", {name: len(array) for name, array in arrays.items()})
    if any(_mapped(array) for array in arrays.values()):
        return _ArraySource(dict(arrays))
    return TensorSource({name: _tensor(array) for name, array in arrays.items()})


class _ArraySource:
    """Arrays of which one at least is in a file."""

    in_memory = False

    def __init__(self, arrays: dict[str, numpy.ndarray]) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def fetch(self, indices: Tensor) -> TensorDictBase:
        rows = indices.numpy()
        fetched = {name: _tensor(array[rows]) for name, array in self.arrays.items()}
        return TensorDict(fetched, batch_size=indices.shape)


def token_windows(
    tokens: str | Tensor | numpy.ndarray,
    *,
    length: int,
    stride: int | None = None,
    encode: Callable[[str], Any] | None = None,
) -> Source:
    """Return a source of windows of a text: what a language model reads, and what it should say next.

    Example i holds ``input``, the tokens i·stride to i·stride + length - 1, and ``target``, those one further on, each
    int64 (n, length). There are ⌊(count - length - 1) / stride⌋ + 1 of them.

    Args:
        tokens: integers of one dimension (a tensor, an array, one mapped from a file); or a text.
        length: tokens that are read in a window.
        stride: from the start of one window to that of the next; None is ``length``, so that no window overlaps.
        encode: what makes tokens of a text; None takes the bytes of its UTF-8, of which there are 256.

    Raises:
        TypeError: ``tokens`` are of another kind, or a number is no int.
        ValueError: ``tokens`` are not of one dimension, or fewer than ``length + 1``; a number is below 1.
    """
    import numpy

    integer("length", length, minimum=1)
    stride = length if stride is None else integer("stride", stride, minimum=1)
    if isinstance(tokens, str):
        made = numpy.frombuffer(tokens.encode(), dtype=numpy.uint8) if encode is None else encode(tokens)
        tokens = made if isinstance(made, (Tensor, numpy.ndarray)) else numpy.asarray(made)
    elif encode is not None:
        raise TypeError(f"encode must be None where tokens are not a text, got {encode!r} with {type(tokens).__name__}")
    if isinstance(tokens, Tensor):
        tokens = tokens.detach().cpu().numpy()
    if not isinstance(tokens, numpy.ndarray) or tokens.dtype.kind not in "iu":
        found = f"an array of {tokens.dtype}" if isinstance(tokens, numpy.ndarray) else type(tokens).__name__
        raise TypeError(f"tokens must be a text, or integers in a tensor or an array, got {found}")
    if tokens.ndim != 1:
        raise ValueError(f"tokens must be of one dimension, got the shape {tokens.shape}")
    if len(tokens) < length + 1:
        raise ValueError(f"tokens must be at least {length + 1}, for one window of length={length}, got {len(tokens)}")
    return _Windows(tokens, length, stride)


class _Windows:
    def __init__(self, tokens: numpy.ndarray, length: int, stride: int) -> None:
        self.tokens = tokens
        self.length = length
        self.stride = stride
        self.in_memory = not _mapped(tokens)

    def __len__(self) -> int:
        return (len(self.tokens) - self.length - 1) // self.stride + 1

    def fetch(self, indices: Tensor) -> TensorDictBase:
        places = (indices[:, None] * self.stride + torch.arange(self.length + 1)).numpy()
        window = _tensor(self.tokens[places].astype("int64", copy=False))
        # A copy, so that who masks the input in place does not change the target.
        return TensorDict({"input": window[:, :-1].clone(), "target": window[:, 1:]}, batch_size=indices.shape)


def _mapped(array: Any) -> bool:
    """Whether an array, or one that it is a view of, is mapped from a file."""
    import numpy

    while array is not None:
        if isinstance(array, numpy.memmap):
            return True
        array = getattr(array, "base", None)
    return False


def _tensor(array: numpy.ndarray) -> Tensor:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    # torch cannot promise not to write into what it shares.
    return torch.from_numpy(native if native.flags.writeable and min(native.strides, default=0) >= 0 else native.copy())
