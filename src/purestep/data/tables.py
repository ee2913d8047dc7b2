"""Sources made from tables: a folder of images that a CSV file names, and a pandas DataFrame.

What can be checked is checked when a source is built; what a file holds is known when it is decoded.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep._checks import listed, near_misses
from purestep.data.sources import Source

if TYPE_CHECKING:
    import pandas

MODES = ("L", "RGB", "RGBA")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow cuts their pixels to 8 bits without a word
_Field = Tensor | Callable[[Tensor], Tensor]  # a tensor to select rows of, or a function of the indices


def image_folder(
    folder: str | os.PathLike[str],
    csv: str | os.PathLike[str],
    *,
    image_column: str = "image",
    label_column: str | None = "label",
    columns: Sequence[str] = (),
    classes: Sequence[Any] | None = None,
    mode: str = "RGB",
    transform: Callable[[Tensor], Tensor] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
) -> Source:
    """Return a source of the images of a folder that a CSV file names, a row each, with their labels.

    A batch of n holds ``image`` (n, channels, height, width), float32 in [0, 1]; ``label`` (n,), if there is a
    ``label_column``; ``tabular`` (n, len(columns)), float32, if there are ``columns``.

    Args:
        folder: what the names in the CSV are relative to.
        csv: a file with a header. Rows are counted from 0 in messages, the header not included.
        image_column: the column of file names.
        label_column: the column of labels, or None. Text becomes an index into the sorted labels, which are
            ``source.classes``; integers stay as they are (int64), other numbers become float32.
        columns: columns of numbers to deliver as ``tabular``.
        classes: the labels in the order of their indices, in place of sorting. Held-out data takes its training
            data's ``source.classes``, since a label that does not occur in it would shift the others.
        mode: ``"L"`` (1 channel), ``"RGB"`` (3) or ``"RGBA"`` (4); images are converted.
        transform: a function of one image (channels, height, width).
        target_transform: a function of one label (a number, after the mapping to indices).

    Raises:
        ImportError: pandas or Pillow is not installed.
        FileNotFoundError: the folder or the CSV file is not there.
        ValueError: the folder is empty, a column or an image file is missing, a label has no value or is not among
            ``classes``. While fetching: a file that cannot be decoded (with its row), images of unlike sizes.
    """
    pandas = _require("pandas", "image_folder")
    folder, csv = Path(folder), Path(csv)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must be a folder of images, and there is none at {str(folder)!r}")
    if not any(folder.iterdir()):
        raise ValueError(f"folder must hold images, and {str(folder)!r} is empty")
    if not csv.is_file():
        raise FileNotFoundError(f"csv must be a CSV file, and there is none at {str(csv)!r}")
    # Names are read as text, or a file called 0012 would be sought as 12; and a label called NA is a label.
    try:
        table = pandas.read_csv(csv, dtype={image_column: str}, keep_default_na=False, na_values=[""])
    except ValueError as error:  # pandas' own errors and a wrong encoding are ValueErrors that do not name the file
        raise ValueError(f"csv must be a table in UTF-8 with a header, and {str(csv)!r} is not: {error}") from error
    rows = _Table(table, csv.name, folder, mode, transform)
    fields: dict[str, _Field] = {"image": rows.images(image_column, "image_column")}
    if columns:
        fields["tabular"] = rows.matrix(columns, "columns")
    found: tuple[Any, ...] | None = None
    if label_column is not None:
        labels, found = rows.labels(label_column, "label_column", classes)
        fields["label"] = labels if target_transform is None else _Each(target_transform, labels)
    return FieldSource(fields, len(table), found)


def dataframe(
    df: pandas.DataFrame,
    *,
    inputs: Mapping[str, Any],
    label: str | None = None,
    classes: Sequence[Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    mode: str = "RGB",
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Source:
    """Return a source of the rows of a pandas DataFrame, its columns grouped into named inputs.

    ``inputs`` maps the name of each input to its columns:

    - a list of columns of numbers gives a matrix (n, len(list)), float32;
    - one column, named alone, gives what it holds: integers int64 (n,), bools (n,), other numbers float32 (n,); arrays
      of one shape (n, *shape), floating ones as float32; paths of image files (n, channels, height, width), float32
      in [0, 1], decoded when fetched.

    >>> dataframe(df, inputs={"tabular": ["age", "income"], "city": "city_id", "photo": "path"}, label="bought")

    Args:
        df: the data. Rows are counted from 0 in messages, whatever the index.
        inputs: name of the input -> column, or list of columns.
        label: the column of labels, which is delivered as ``label``. Text becomes an index into the sorted labels,
            which are ``source.classes``; integers stay as they are, other numbers become float32.
        classes: the labels in the order of their indices, in place of sorting; see :func:`image_folder`.
        folder: what image paths are relative to; None is the current folder.
        mode: of images: ``"L"``, ``"RGB"`` or ``"RGBA"``.
        transform: a function of one image (channels, height, width).

    Raises:
        ImportError: pandas (or, for images, Pillow) is not installed.
        TypeError: ``df`` is not a DataFrame, or a column holds something else than the above.
        ValueError: there is no row, a column or a file is missing, a value is missing or not finite, arrays differ in
            shape, an input is called like the label.
    """
    pandas = _require("pandas", "dataframe")
    if not isinstance(df, pandas.DataFrame):
        raise TypeError(f"df must be a pandas DataFrame, got {type(df).__name__}")
    if not isinstance(inputs, Mapping) or not inputs:
        raise TypeError(f"inputs must map names to columns, such as {{'tabular': ['a', 'b']}}, got {inputs!r}")
    if label is not None and "label" in inputs:
        raise ValueError(f"inputs must not use the name 'label', which label={label!r} is delivered as")
    rows = _Table(df, "the DataFrame", Path(folder or "."), mode, transform)
    fields: dict[str, _Field] = {}
    for name, columns in inputs.items():
        argument = f"inputs[{name!r}]"
        alone = isinstance(columns, str) or not isinstance(columns, Iterable)
        fields[name] = rows.alone(columns, argument) if alone else rows.matrix(columns, argument)
    found: tuple[Any, ...] | None = None
    if label is not None:
        fields["label"], found = rows.labels(label, "label", classes)
    return FieldSource(fields, len(df), found)


class FieldSource:
    """What :func:`image_folder` and :func:`dataframe` return: named fields, each a tensor or a function of indices."""

    def __init__(self, fields: dict[str, _Field], count: int, classes: tuple[Any, ...] | None) -> None:
        self.fields = fields
        self.classes = classes
        self.in_memory = all(isinstance(field, Tensor) for field in self.fields.values())
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor) -> TensorDictBase:
        fetched = {
            name: field.index_select(0, indices) if isinstance(field, Tensor) else field(indices)
            for name, field in self.fields.items()
        }
        return TensorDict(fetched, batch_size=indices.shape)


class _Table:
    """The columns of a DataFrame, checked and made into fields."""

    def __init__(
        self,
        table: pandas.DataFrame,
        origin: str,
        folder: Path,
        mode: str,
        transform: Callable[[Tensor], Tensor] | None,
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

    def alone(self, name: Any, argument: str) -> _Field:
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

    def images(self, name: Any, argument: str) -> _Images:
        """Return the images that a column of paths names, each of which is there."""
        _require("PIL.Image", "decoding images")
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
        return _Images(paths, self.origin, self.mode, self.transform)

    def _numbers(self, series: pandas.Series, argument: str) -> Tensor:
        kind = series.dtype.kind
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


class _Images:
    """Image files, decoded at the rows asked for: (n, channels, height, width), float32 in [0, 1]."""

    def __init__(self, paths: list[str], origin: str, mode: str, transform: Callable[[Tensor], Tensor] | None) -> None:
        self.paths = paths
        self.origin = origin
        self.mode = mode
        self.transform = transform

    def __call__(self, indices: Tensor) -> Tensor:
        rows = indices.tolist()
        images = [self._image(row) for row in rows]
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"the images of a batch must have one shape (channels, height, width), and {self._name(rows[0])} "
                    f"has {tuple(images[0].shape)} but {self._name(row)} {tuple(image.shape)}: resize in transform"
                )
        return torch.stack(images)

    def _image(self, row: int) -> Tensor:
        from PIL import Image

        try:
            with Image.open(self.paths[row]) as file:
                if file.mode in _DEEP_MODES:
                    raise ValueError(f"its pixels are deeper than 8 bits ({file.mode}), which {self.mode} cannot hold")
                picture = file.convert(self.mode)
        except Exception as error:  # Pillow's decoders raise whatever went wrong inside them
            raise ValueError(f"image file {self._name(row)} cannot be decoded: {error}") from error
        width, height = picture.size
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, width, -1)
        image = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self.transform is None:
            return image
        try:
            image = self.transform(image)
        except Exception as error:
            error.add_note(f"in transform, for the image {self._name(row)}")
            raise
        if not isinstance(image, Tensor):
            raise TypeError(f"transform must return a tensor, got {type(image).__name__} for {self._name(row)}")
        return image

    def _name(self, row: int) -> str:
        return f"{self.paths[row]!r} (row {row} of {self.origin})"


class _Each:
    """A function of one label, applied where the labels are fetched."""

    def __init__(self, function: Callable[[Any], Any], labels: Tensor) -> None:
        self.function = function
        self.labels = labels

    def __call__(self, indices: Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(self.function(label)) for label in self.labels[indices].tolist()])


def _require(module: str, user: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = {"PIL.Image": "Pillow"}.get(module, module)
        raise ImportError(f"{user} needs {library}, which is not installed: pip install 'purestep[data]'") from error


def _is_number(series: pandas.Series) -> bool:
    return getattr(series.dtype, "kind", "O") in "biuf"


def _rows(rows: list[int], limit: int = 5) -> str:
    rest = len(rows) - limit
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:limit]))}" + (
        f" and {rest} more" if rest > 0 else ""
    )
