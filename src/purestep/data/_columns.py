"""The columns of a DataFrame, checked and made into what a source selects from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purestep._checks import listed, near_misses
from purestep.data._images import Images, require

if TYPE_CHECKING:
    import pandas

MODES = ("L", "RGB", "RGBA")
Field = Tensor | Callable[..., Tensor]  # a tensor to select rows of, or a function of (indices, keys)


class Table:
    """The columns of a DataFrame, checked and made into fields."""

    def __init__(
        self,
        table: pandas.DataFrame,
        origin: str,
        folder: Path,
        mode: str,
        transform: Callable[..., Tensor] | None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {listed(MODES)}, got {mode!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of an image or None, got {transform!r}")
        if len(table) == 0:
            raise ValueError(f"{origin} must have at least one row, got none")
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()]
            raise ValueError(f"the columns of {origin} must have distinct names, got {listed(twice)} twice")
        self.table = table
        self.origin = origin
        self.folder = folder
        self.mode = mode
        self.transform = transform

    def column(self, name: Any, argument: str) -> pandas.Series:
        """Return a column that exists and has a value in every row."""
        if name not in self.table.columns:
            known = [str(column) for column in self.table.columns]
            raise ValueError(
                f"{argument} must be a column of {self.origin}, got {name!r}{near_misses(str(name), known)}; "
                f"its columns are {listed(known)}"
            )
        series = self.table[name]
        if series.isna().any():
            rows = series.isna().to_numpy().nonzero()[0].tolist()
            raise ValueError(
                f"{argument} must have a value in every row, and column {name!r} of {self.origin} has none in "
                f"{_rows(rows)}: fill them in, or drop the rows"
            )
        return series

    def matrix(self, names: Iterable[Any], argument: str) -> Tensor:
        """Return columns of numbers side by side, float32 (rows, columns)."""
        if isinstance(names, str) or not (names := list(names)):
            raise ValueError(f"{argument} must be a list of at least one column, got {names!r}")
        columns = []
        for name in names:
            series = self.column(name, argument)
            if not _is_number(series):
                raise TypeError(
                    f"{argument} must name columns of numbers, and {name!r} of {self.origin} holds {series.dtype} such "
                    f"as {series.iloc[0]!r}: encode it, or make it an input of its own"
                )
            columns.append(self._numbers(series, argument).float())
        return torch.stack(columns, dim=1)

    def alone(self, name: Any, argument: str) -> Field:
        """Return what one column holds: numbers, arrays, or images to decode."""
        series = self.column(name, argument)
        if _is_number(series):
            return self._numbers(series, argument)
        if all(isinstance(value, (str, os.PathLike)) for value in series):
            return self.images(name, argument)
        return self._arrays(series, argument)

    def labels(self, name: Any, argument: str, classes: Sequence[Any] | None) -> tuple[Tensor, tuple[Any, ...] | None]:
        """Return the labels, and the classes whose positions they are (None for numbers)."""
        series = self.column(name, argument)
        values = series.tolist()
        if classes is None:
            if _is_number(series):
                labels = self._numbers(series, argument)
                return (labels.long() if labels.dtype == torch.bool else labels), None
            if not all(isinstance(value, str) for value in values):
                return self._arrays(series, argument), None
            classes = sorted(set(values))
        index = {value: i for i, value in enumerate(classes)}
        if len(index) < len(classes):
            raise ValueError(f"classes must be distinct, got {classes!r}")
        for row, value in enumerate(values):
            if value not in index:
                near = near_misses(str(value), [str(known) for known in classes])
                raise ValueError(
                    f"{argument} {name!r} must hold one of the classes {listed(classes)}, "
                    f"got {value!r} in row {row} of {self.origin}{near}"
                )
        return torch.tensor([index[value] for value in values]), tuple(classes)

    def images(self, name: Any, argument: str) -> Images:
        """Return the images that a column of paths names, each of which is there."""
        require("PIL.Image", "decoding images")
        names = [os.fspath(value) for value in self.column(name, argument)]
        paths = [os.path.join(self.folder, value) for value in names]
        if missing := [row for row, path in enumerate(paths) if not os.path.isfile(path)]:
            first = names[missing[0]]
            beside = os.path.dirname(paths[missing[0]])
            known = os.listdir(beside) if os.path.isdir(beside) else []
            raise FileNotFoundError(
                f"{argument} must name image files in {str(self.folder)!r}, and {first!r} in column {name!r} of "
                f"{self.origin} is not there{near_misses(os.path.basename(first), known)}; missing in {_rows(missing)}"
            )
        return Images(paths, self.origin, self.mode, self.transform)

    def _numbers(self, series: pandas.Series, argument: str) -> Tensor:
        kind = series.dtype.kind
        if kind == "u" and series.max() >= 2**63:
            raise ValueError(
                f"{argument} must hold integers below 2^63, and column {series.name!r} of {self.origin} goes up to "
                f"{series.max()}"
            )
        tensor = torch.tensor(series.to_numpy(dtype={"b": "bool", "f": "float64"}.get(kind, "int64")))
        tensor = tensor.float() if kind == "f" else tensor
        self._check_finite(tensor, series.name, argument)
        return tensor

    def _arrays(self, series: pandas.Series, argument: str) -> Tensor:
        tensors: list[Tensor] = []
        for row, value in enumerate(series):
            try:
                tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(
                    f"{argument} must hold numbers, arrays of numbers or paths of image files, "
                    f"got {value!r} in column {series.name!r}, row {row} of {self.origin}"
                ) from error
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            if tensors and (tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype):
                raise ValueError(
                    f"{argument} must hold arrays of one shape and kind, and column {series.name!r} of {self.origin} "
                    f"has {tuple(tensors[0].shape)} {tensors[0].dtype} in row 0 but {tuple(tensor.shape)} "
                    f"{tensor.dtype} in row {row}"
                )
            tensors.append(tensor)
        stacked = torch.stack(tensors)
        self._check_finite(stacked, series.name, argument)
        return stacked

    def _check_finite(self, tensor: Tensor, name: Any, argument: str) -> None:
        finite = torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else torch.isfinite(tensor)
        if not finite.all():
            rows = (~finite).nonzero().flatten().tolist()
            raise ValueError(
                f"{argument} must hold finite numbers (in float32), and column {name!r} of {self.origin} does not in "
                f"{_rows(rows)}"
            )


def _is_number(series: pandas.Series) -> bool:
    return getattr(series.dtype, "kind", "O") in "biuf"


def _rows(rows: list[int], limit: int = 5) -> str:
    rest = len(rows) - limit
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:limit]))}" + (
        f" and {rest} more" if rest > 0 else ""
    )
