"""The tensors of a state by their paths, and folders that can be a checkpoint."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import is_leaf_nontensor
from torch import Tensor

from purestep.checkpoint import _files, _manifest
from purestep.checkpoint._errors import CheckpointError
from purestep.checkpoint._renaming import Form
from purestep.state import TrainState

_PAIRS = {torch.complex32: "float16", torch.complex128: "float64"}
WHAT_IT_IS = "a checkpoint is a folder with manifest.json and state-....safetensors"


def leaves(state: Any, argument: str) -> dict[str, Tensor]:
    """Return the tensors of a state by their paths, ``opt_state/1/exp_avg/fc1.weight``.

    Paths are escaped as in a JSON pointer (RFC 6901: ``~`` is ``~0`` and ``/`` is ``~1``), since the name of a module
    may hold a slash.

    Raises:
        TypeError: it is no :class:`TrainState`, or an entry is no plain dense tensor of a dtype that can be kept.
        DonatedStateError: it was donated to a compiled step.
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"{argument} must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
    items = state.items(include_nested=True, leaves_only=True, is_leaf=is_leaf_nontensor)
    return {path(key): plain_tensor(leaf, path(key), argument) for key, leaf in items}


def nested_leaves(tree: Any, argument: str) -> dict[str, Tensor]:
    """Return the tensors of nested mappings by their paths.

    Raises:
        TypeError: a key that is no string, or a leaf that is no plain dense tensor.
    """

    def walk(inner: Any, parts: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(inner, Tensor) and callable(getattr(inner, "items", None)):
            for key, value in inner.items():
                if not isinstance(key, str):
                    raise TypeError(f"{argument} must have strings as keys, got {key!r}")
                yield from walk(value, (*parts, key))
        else:
            yield path(parts), plain_tensor(inner, path(parts), argument)

    if isinstance(tree, Tensor) or not callable(getattr(tree, "items", None)):
        raise TypeError(f"{argument} must be a dict of tensors or of such dicts, or None, got {type(tree).__name__}")
    return dict(walk(tree, ()))


def plain_tensor(leaf: Any, name: str, argument: str) -> Tensor:
    """Return a tensor without its graph, or raise ``TypeError`` where its values cannot be kept."""
    leaf = leaf.detach() if isinstance(leaf, Tensor) else leaf
    if type(leaf) is not Tensor or leaf.layout != torch.strided:
        kind = f"{leaf.layout} tensor" if type(leaf) is Tensor else type(leaf).__name__
        raise TypeError(f"{argument} must hold plain dense tensors, got a {kind} as {name!r}")
    if leaf.dtype not in _manifest.KEPT:
        raise TypeError(f"{argument} must hold dtypes that a safetensors file can keep, got {leaf.dtype} as {name!r}")
    return leaf


def path(key: str | tuple[str, ...]) -> str:
    """Return a key of a state as a path."""
    parts = (key,) if isinstance(key, str) else key
    return "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)


def as_stored(tensor: Tensor) -> Tensor:
    """Return what the file has for a tensor, over the same storage: itself, but for dtypes that safetensors lacks
    (complex numbers as pairs of real ones), or counts otherwise than torch."""
    if tensor.dtype in _PAIRS:
        return torch.view_as_real(tensor)
    return tensor.view(torch.uint8) if tensor.dtype == torch.float4_e2m1fn_x2 else tensor


def stored_form(about: Form) -> Form:
    """Return the form of what the file has for a tensor of this form."""
    dtype = _manifest.DTYPES[about.dtype]
    if dtype in _PAIRS:
        return Form((*about.shape, 2), _PAIRS[dtype])
    return Form(about.shape, "uint8") if dtype == torch.float4_e2m1fn_x2 else about


def check_name(path: Any) -> Path:
    """Return ``path`` as one, and raise where it can name no folder of a checkpoint.

    Raises:
        TypeError: it is no path.
        ValueError: it is empty, or holds a zero.
        CheckpointError: there is a file.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"path must be the name of a folder, got {path!r} of type {type(path).__name__}")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ValueError(f"path must be the name of a folder, got {os.fspath(path)!r}")
    folder = Path(path)
    try:  # asked once: a folder may be removed meanwhile
        mode = os.stat(folder).st_mode
    except OSError:
        return folder  # who opens it is told why
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"path must be the name of a folder, got the file {os.fspath(path)!r}: {WHAT_IT_IS}")
    return folder


def check_target(path: Any) -> Path:
    """Return ``path`` where a checkpoint can be written to, and raise where not.

    Raises:
        TypeError, ValueError: as :func:`check_name`; or the folder is there and is no checkpoint, but holds something.
    """
    folder = check_name(path)
    if folder.is_dir() and not (folder / _manifest.NAME).exists():
        others = sorted(name for name in os.listdir(folder) if not _files.is_ours(name, _manifest.DATA_FILE))
        if others:
            raise ValueError(
                f"path must be a new or empty folder, or a checkpoint to replace, got {os.fspath(folder)!r}, which is "
                f"none and holds {others[0]!r}: {WHAT_IT_IS}"
            )
    return folder


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as the file has them: on the CPU, contiguous, and no two over the same bytes.

    What is so already is not copied.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # A conjugated view is a flag on bytes that are not conjugated.
        stored[name] = as_stored(tensor.cpu().resolve_conj().resolve_neg().contiguous())
    places = sorted((leaf.data_ptr(), leaf.data_ptr() + leaf.nbytes, name) for name, leaf in stored.items())
    reached = 0
    for start, end, name in places:
        if start < reached and end > start:
            stored[name] = stored[name].clone()
        else:
            reached = max(reached, end)
    return stored
