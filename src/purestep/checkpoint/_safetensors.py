"""The tensors of safetensors files that others wrote: a file, or a folder of Hugging Face's, whole or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from purestep import _checks
from purestep.checkpoint._errors import CheckpointError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_LARGEST_INDEX = 1 << 28  # bytes; of a model of a trillion parameters it has some 10 MB
_PICKLED = (
    "which is a pickle by its name and is not read, since that runs whatever it says: save it anew with "
    "safetensors.torch.save_file, or with save_pretrained"
)


class Files(Mapping[str, Tensor]):
    """The tensors of a file or folder by name, each read when it is asked for, while ``opened`` is.

    Raises:
        FileNotFoundError: nothing is at ``path``.
        CheckpointError: it is no safetensors file or folder of them; from an access, a tensor that cannot be read.
    """

    def __init__(self, path: Path, opened: ExitStack) -> None:
        self._homes: dict[str, Any] = {}
        where, index = _found(path)
        for file, names in where.items():
            opener = opened.enter_context(_opened(file))
            held = list(opener.keys())
            if names is not None and set(held) != set(names):
                name = min(set(held) ^ set(names))
                wrong = "is missing from" if name in names else "is not looked for in"
                raise CheckpointError(f"{str(index)!r} does not belong to its files: {name!r} {wrong} {file.name!r}")
            self._homes |= dict.fromkeys(held, opener)

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self._homes[name].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{name!r} cannot be read: {error}") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def _found(path: Path) -> tuple[dict[Path, list[str] | None], Path | None]:
    """Return the files to read, with the names that each must have where an index says so, and the index."""
    if path.is_dir():
        if (path / _WHOLE).exists():
            return {path / _WHOLE: None}, None
        if (path / _INDEX).exists():
            return _shards(path), path / _INDEX
        raise CheckpointError(f"path must be a folder with {_WHOLE} or {_INDEX}, got {str(path)!r}{_what(path)}")
    if not path.exists():
        raise FileNotFoundError(f"path must be a .safetensors file or a folder, and nothing is at {str(path)!r}")
    if path.suffix in _PICKLES:
        raise CheckpointError(f"path must be a .safetensors file, got {str(path)!r}, {_PICKLED}")
    if path.suffix != ".safetensors":
        raise CheckpointError(f"path must be a .safetensors file or a folder with one, got {str(path)!r}")
    return {path: None}, None


def _what(folder: Path) -> str:
    """Say what a folder without weights has instead."""
    names = sorted(each.name for each in folder.iterdir())
    if "manifest.json" in names:
        return ", which is a checkpoint of purestep: ps.checkpoint.load(path, like=state, strict=False) reads it"
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        return f" with {pickles[0]!r}, {_PICKLED}"
    if files := [name for name in names if name.endswith(".safetensors")]:
        return f" with {_checks.listed(files)}: give the file itself"
    return f" with {_checks.listed(names)}" if names else ", which is empty"


def _shards(folder: Path) -> dict[Path, list[str] | None]:
    """Return the files that an index names, and the tensors of each."""
    index = folder / _INDEX
    if index.stat().st_size > _LARGEST_INDEX:
        raise CheckpointError(f"{str(index)!r} must be an index of at most {_LARGEST_INDEX} bytes, and is larger")
    try:
        said = json.loads(index.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(index)!r} must be an index as JSON: {error}") from None
    table = said.get("weight_map") if isinstance(said, dict) else None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{str(index)!r} must have a 'weight_map' from names of tensors to names of files")
    files: dict[Path, list[str]] = {}
    for name, file in table.items():
        # Files of a hub's cache are links out of the folder, so a link is no reason to refuse one.
        if not isinstance(file, str) or not file.endswith(".safetensors") or {"/", "\\", "\0"} & set(file):
            raise CheckpointError(
                f"{str(index)!r} must name .safetensors files in its own folder, got {file!r} for {name!r}"
            )
        files.setdefault(folder / file, []).append(name)
    for home, names in files.items():
        if not home.exists():
            raise CheckpointError(
                f"{str(index)!r} says that {_checks.listed(names, 3)} is in {home.name!r}, which is missing"
            )
    return dict(files)


def _opened(file: Path) -> Any:
    if not file.is_file():
        raise CheckpointError(f"{str(file)!r} must be a regular file")
    try:
        return safe_open(str(file), framework="pt", device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{str(file)!r} is damaged or no safetensors file: {error}") from error
