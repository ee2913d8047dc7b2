"""Sources made from tables: a folder of images that a CSV file names, and a pandas DataFrame.

What can be checked is checked when a source is built; what a file holds is known when it is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from purestep.data._columns import Field, Table
from purestep.data._images import Each, require
from purestep.data.sources import Source

if TYPE_CHECKING:
    import pandas


def image_folder(
    folder: str | os.PathLike[str],
    csv: str | os.PathLike[str],
    *,
    image_column: str = "image",
    label_column: str | None = "label",
    columns: Sequence[str] = (),
    classes: Sequence[Any] | None = None,
    mode: str = "RGB",
    transform: Callable[..., Tensor] | None = None,
    target_transform: Callable[..., Any] | None = None,
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
        transform: a function of one image (channels, height, width). One with a parameter ``key`` gets the example's
            key, int64 (2,); one with a parameter ``generator``, a :class:`torch.Generator` that the key seeds.
        target_transform: a function of one label (a number, after the mapping to indices), likewise. Its key is the
            image's, so that the two can be turned alike.

    Raises:
        ImportError: pandas or Pillow is not installed.
        FileNotFoundError: the folder or the CSV file is not there.
        ValueError: the folder is empty, a column or an image file is missing, a label has no value or is not among
            ``classes``. While fetching: images of unlike sizes, and :class:`DecodeError` for a file that cannot be
            decoded, with its row.
    """
    pandas = require("pandas", "image_folder")
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
    rows = Table(table, csv.name, folder, mode, transform)
    fields: dict[str, Field] = {"image": rows.images(image_column, "image_column")}
    if columns:
        fields["tabular"] = rows.matrix(columns, "columns")
    found: tuple[Any, ...] | None = None
    if label_column is not None:
        labels, found = rows.labels(label_column, "label_column", classes)
        fields["label"] = labels if target_transform is None else Each(target_transform, labels, csv.name)
    return FieldSource(fields, len(table), found)


def dataframe(
    df: pandas.DataFrame,
    *,
    inputs: Mapping[str, Any],
    label: str | None = None,
    classes: Sequence[Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
    mode: str = "RGB",
    transform: Callable[..., Tensor] | None = None,
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
        transform: a function of one image (channels, height, width), which may take a ``key`` or a ``generator``; see
            :func:`image_folder`.

    Raises:
        ImportError: pandas (or, for images, Pillow) is not installed.
        TypeError: ``df`` is not a DataFrame, or a column holds something else than the above.
        ValueError: there is no row, a column or a file is missing, a value is missing or not finite, arrays differ in
            shape, an input is called like the label.
    """
    pandas = require("pandas", "dataframe")
    if not isinstance(df, pandas.DataFrame):
        raise TypeError(f"df must be a pandas DataFrame, got {type(df).__name__}")
    check_inputs(inputs)
    if label is not None and "label" in inputs:
        raise ValueError(f"inputs must not use the name 'label', which label={label!r} is delivered as")
    rows = Table(df, "the DataFrame", Path(folder or "."), mode, transform)
    fields: dict[str, Field] = {}
    for name, columns in inputs.items():
        argument = f"inputs[{name!r}]"
        fields[name] = rows.alone(columns, argument) if is_alone(columns) else rows.matrix(columns, argument)
    found: tuple[Any, ...] | None = None
    if label is not None:
        fields["label"], found = rows.labels(label, "label", classes)
    return FieldSource(fields, len(df), found)


def check_inputs(inputs: Any) -> None:
    """Raise where ``inputs`` do not map names to columns."""
    if not isinstance(inputs, Mapping) or not inputs:
        raise TypeError(f"inputs must map names to columns, such as {{'tabular': ['a', 'b']}}, got {inputs!r}")


def is_alone(columns: Any) -> bool:
    """Whether an input is one column, rather than a list of some."""
    return isinstance(columns, str) or not isinstance(columns, Iterable)


class FieldSource:
    """What :func:`image_folder` and :func:`dataframe` return: named fields, each a tensor or a function of indices."""

    def __init__(self, fields: dict[str, Field], count: int, classes: tuple[Any, ...] | None) -> None:
        self.fields = fields
        self.classes = classes
        self.in_memory = all(isinstance(field, Tensor) for field in self.fields.values())
        self.draws = any(getattr(field, "draws", False) for field in self.fields.values())
        self._count = count

    def __len__(self) -> int:
        return self._count

    def fetch(self, indices: Tensor, *, keys: Tensor | None = None) -> TensorDictBase:
        fetched = {
            name: field.index_select(0, indices) if isinstance(field, Tensor) else field(indices, keys)
            for name, field in self.fields.items()
        }
        return TensorDict(fetched, batch_size=indices.shape)
