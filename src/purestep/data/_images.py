"""Images in files, decoded by Pillow where they are fetched."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from purestep.data.collate import stacked
from purestep.data.sources import DecodeError, parameter_among

_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow cuts their pixels to 8 bits without a word


class Images:
    """Image files, decoded at the rows asked for: (n, channels, height, width), float32 in [0, 1]."""

    def __init__(self, paths: list[str], origin: str, mode: str, transform: Callable[..., Tensor] | None) -> None:
        self.paths = paths
        self.origin = origin
        self.mode = mode
        self.transform = None if transform is None else PerExample(transform)
        self.draws = self.transform is not None and self.transform.takes is not None

    def __call__(self, indices: Tensor, keys: Tensor | None) -> Tensor:
        rows = indices.tolist()
        images = [self._image(row, None if keys is None else keys[i]) for i, row in enumerate(rows)]
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                raise ValueError(
                    f"the images of a batch must have one shape (channels, height, width), and {self._name(rows[0])} "
                    f"has {tuple(images[0].shape)} but {self._name(row)} {tuple(image.shape)}: resize in transform"
                )
        return stacked(images)

    def _image(self, row: int, key: Tensor | None) -> Tensor:
        image = self._decoded(row)
        if self.transform is None:
            return image
        try:
            image = self.transform(image, key)
        except Exception as error:
            error.add_note(f"in transform, for the image {self._name(row)}")
            raise
        if not isinstance(image, Tensor):
            raise TypeError(f"transform must return a tensor, got {type(image).__name__} for {self._name(row)}")
        return image

    def _decoded(self, row: int) -> Tensor:
        from PIL import Image

        try:
            with Image.open(self.paths[row]) as file:
                if file.mode in _DEEP_MODES:
                    raise ValueError(f"its pixels are deeper than 8 bits ({file.mode}), which {self.mode} cannot hold")
                picture = file if file.mode == self.mode else file.convert(self.mode)
                raw = bytearray(picture.tobytes())
        except Exception as error:  # Pillow's decoders raise whatever went wrong inside them
            raise DecodeError(f"image file {self._name(row)} cannot be decoded: {error}") from error
        width, height = picture.size
        pixels = torch.frombuffer(raw, dtype=torch.uint8).view(height, width, -1)
        return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)

    def _name(self, row: int) -> str:
        return f"{self.paths[row]!r} (row {row} of {self.origin})"


class Each:
    """A function of one label, applied where the labels are fetched."""

    def __init__(self, function: Callable[..., Any], labels: Tensor, origin: str) -> None:
        self.transform = PerExample(function)
        self.labels = labels
        self.origin = origin
        self.draws = self.transform.takes is not None

    def __call__(self, indices: Tensor, keys: Tensor | None) -> Tensor:
        return torch.stack(
            [self._one(row, None if keys is None else keys[i]) for i, row in enumerate(indices.tolist())]
        )

    def _one(self, row: int, key: Tensor | None) -> Tensor:
        try:
            return torch.as_tensor(self.transform(self.labels[row].tolist(), key))
        except Exception as error:
            error.add_note(f"in target_transform, for row {row} of {self.origin}")
            raise


class PerExample:
    """A transform of one example, called with the example's key, or with a generator that it seeds, if it takes one."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.takes = parameter_among(function, ("key", "generator"))

    def __call__(self, value: Any, key: Tensor | None) -> Any:
        if self.takes is None or key is None:
            return self.function(value)
        if self.takes == "key":
            return self.function(value, key=key)
        low, high = key.tolist()
        return self.function(value, generator=torch.Generator().manual_seed(low | high << 32))


def require(module: str, user: str) -> Any:
    """Return an optional library; its absence says who needs it and what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        library = {"PIL.Image": "Pillow"}.get(module, module)
        what = "'purestep[data]'" if library in ("Pillow", "pandas") else library
        raise ImportError(f"{user} needs {library}, which is not installed: pip install {what}") from error
