"""Sources of what other libraries hold: Parquet files, and Hugging Face's datasets."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep._checks import listed, near_misses
from purestep.data._images import require
from purestep.data.sources import DecodeError, Source
from purestep.data.tables import check_inputs, dataframe, is_alone


def parquet(
    path: str | os.PathLike[str],
    *,
    inputs: Mapping[str, Any],
    label: str | None = None,
    classes: Sequence[Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    mode: str = "RGB",
    transform: Callable[..., Tensor] | None = None,
) -> Source:
    """Return a source of the rows of a Parquet file: :func:`dataframe` of the columns that are named, and of no others.

    The columns are read into memory (images stay in their files); for more than memory holds,
    ``cache(source, folder=...)`` writes what :func:`memory_mapped` reads.

    Args:
        path: the file, or a folder of such files.
        inputs, label, classes, folder, mode, transform: those of :func:`dataframe`.

    Raises:
        ImportError: pandas or pyarrow is not installed.
        TypeError: ``inputs`` do not map names to columns.
        FileNotFoundError: there is nothing at ``path``.
        ValueError: it is no Parquet file, or lacks a column; and what :func:`dataframe` raises.
    """
    check_inputs(inputs)
    pandas = require("pandas", "parquet")
    require("pyarrow", "parquet")
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"path must be a Parquet file, and there is none at {path!r}")
    wanted = [] if label is None else [label]
    for columns in inputs.values():
        wanted += [columns] if is_alone(columns) else columns
    known = _columns(path)
    for name in wanted:
        if name not in known:
            raise ValueError(f"inputs and label must be columns of {path!r}, got {name!r}{near_misses(name, known)}; "
                             f"its columns are {listed(known)}")  # fmt: skip
    table = pandas.read_parquet(path, columns=list(dict.fromkeys(wanted)), engine="pyarrow")
    try:
        return dataframe(
            table, inputs=inputs, label=label, classes=classes, folder=folder, mode=mode, transform=transform
        )
    except Exception as error:
        error.add_note(f"in the Parquet file {path!r}")
        raise


def _columns(path: str) -> list[str]:
    """Return the names of the columns, without reading them."""
    dataset = require("pyarrow.dataset", "parquet")
    try:
        return list(dataset.dataset(path, format="parquet").schema.names)
    except Exception as error:
        raise ValueError(f"path must be a Parquet file, and {path!r} is not: {error}") from error


def huggingface(dataset: Any, *, columns: Sequence[str] | None = None) -> Source:
    """Return a source of a Hugging Face ``datasets.Dataset``, which is memory-mapped: rows are read when fetched.

    Columns of numbers, and of lists of numbers of one length, become tensors: integers int64, floating ones float32.

    Args:
        dataset: a dataset with rows, a split of a ``DatasetDict``.
        columns: which columns; None: all.

    Raises:
        ImportError: ``datasets`` is not installed.
        TypeError: ``dataset`` is none.
        ValueError: it has no rows, or lacks a column; while fetching, :class:`DecodeError` for a row that holds
            something else.
    """
    library = require("datasets", "huggingface")
    if not isinstance(dataset, library.Dataset):
        hint = f": take one of its splits {list(dataset)}" if isinstance(dataset, Mapping) else ""
        raise TypeError(f"dataset must be a datasets.Dataset, got {type(dataset).__name__}{hint}")
    known = list(dataset.column_names)
    for name in columns or ():
        if name not in known:
            raise ValueError(f"columns must be of the dataset, got {name!r}{near_misses(name, known)}; it has {known}")
    if len(dataset) == 0:
        raise ValueError("dataset must have at least one row, got none")
    return _HuggingFace(dataset.with_format(None), list(columns or known))


class _HuggingFace:
    def __init__(self, dataset: Any, columns: list[str]) -> None:
        self.dataset = dataset.select_columns(columns)
        self.columns = columns

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, indices: Tensor) -> TensorDictBase:
        rows = indices.tolist()
        read = self.dataset[rows]
        fetched = {name: _column(name, read[name], rows) for name in self.columns}
        return TensorDict(fetched, batch_size=indices.shape)


def _column(name: str, values: Sequence[Any], rows: list[int]) -> Tensor:
    """Return the values of a column at some rows as one tensor; what does not fit is named with its row."""
    tensors: list[Tensor] = []
    for row, value in zip(rows, values, strict=True):
        try:
            tensor = torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DecodeError(
                f"column {name!r} of the dataset must hold numbers or lists of numbers of one length, got {value!r} in "
                f"row {row}: encode it with dataset.map, or leave it out of columns"
            ) from error
        if tensors and tensor.shape != tensors[0].shape:
            raise ValueError(
                f"column {name!r} of the dataset must hold lists of one length, and has {tuple(tensors[0].shape)} in "
                f"row {rows[0]} but {tuple(tensor.shape)} in row {row}: pad them with dataset.map"
            )
        tensors.append(tensor.float() if tensor.is_floating_point() else tensor)
    return torch.stack(tensors)
