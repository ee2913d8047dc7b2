"""A state on disk: one safetensors file, whole or not at all.

The file holds each tensor under its path in the state, ``params/fc1.weight`` or ``opt_state/1/exp_avg/fc1.weight``, and
one JSON text of metadata. Nothing in it is executed when it is read: there is no pickle. Paths are escaped as in a JSON
pointer (RFC 6901: ``~`` is ``~0`` and ``/`` is ``~1``), since the name of a module may hold a slash.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tensordict import is_leaf_nontensor
from torch import Tensor

from purestep import _checks
from purestep.state import TrainState

_FORMAT = 1
_KEY = "purestep"  # one key of metadata, for safetensors writes several in no fixed order
_NOT_STORED = (torch.complex32, torch.complex128)  # dtypes that a safetensors file cannot hold


def save(path: str | os.PathLike[str], state: TrainState, *, extra: Any = None) -> None:
    """Write a state into one safetensors file, so that a reader sees the old file or the new one and nothing between.

    The bytes go to a temporary file in the same folder, which is flushed to the disk and takes the name ``path`` in one
    rename; the folder is flushed after it. Folders that are missing on the way to ``path`` are made.

    Args:
        path: the file, ``"runs/digits.safetensors"``; one that is there already is replaced.
        state: any state, on any device. Entries that share storage are written apart.
        extra: what else should be found again (the place of the data, a configuration), made of dicts with string keys,
            lists, strings, numbers, bools and None. :func:`load_extra` returns it.

    Raises:
        TypeError: ``state`` is no :class:`TrainState`; an entry that is no plain tensor, or of a dtype that the format
            lacks; something in ``extra`` that JSON would not give back as it was.
        ValueError: ``path`` is a folder.
        OSError: the file cannot be written; an old one is still whole.
        DonatedStateError: the state was donated to a compiled step.
    """
    target = check_target(path)
    _check_json(extra, "extra")
    tensors = _storable(dict(_leaves(state, "state")))
    about = {"format": _FORMAT, "purestep": _version(), "torch": torch.__version__, "extra": extra}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        save_file(tensors, temporary, metadata={_KEY: json.dumps(about)})
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name != "nt":  # Windows has no handle of a folder to flush
        _flush(target.parent, os.O_RDONLY)


def load(path: str | os.PathLike[str], *, like: TrainState, device: torch.device | str | None = None) -> TrainState:
    """Return the state that :func:`save` wrote, bit for bit, in the structure of ``like``.

    Args:
        path: the file.
        like: a state of the same model and optimizer, as :func:`purestep.init_state` makes it. Its names, shapes and
            dtypes must be the file's; its order and memory formats are taken over, and its values are not read.
        device: where the state goes; by default each entry goes where it is in ``like``.

    Returns:
        A new state, which shares no storage with ``like``, with the file, or within itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short or is no checkpoint of purestep's, or it does not fit ``like``: what is
            missing, what is too much and what has another shape or dtype is named. Or ``like`` is on ``meta``, and no
            ``device`` is given.
        TypeError: ``like`` is no :class:`TrainState`.
    """
    wanted = dict(_leaves(like, "like"))
    if device is None and any(leaf.is_meta for leaf in wanted.values()):
        raise ValueError("device must be given where like is on the meta device, which holds no values, got None")
    with _Reader(path) as reader:
        _check_fits(reader, wanted)

        def read(key: str | tuple[str, ...], leaf: Tensor) -> Tensor:
            # A tensor from the file is a view of the whole mapped file: it is copied, into the layout that the
            # state had (channels last stays so, and kernels that depend on it give the same bits).
            return torch.empty_like(leaf, device=device).copy_(reader.tensor(_path(key)))

        # A TensorDict that knows its device moves what it is given there: it must know the new one.
        known: dict[str, Any] = {} if device is None else {"device": torch.device(device)}
        return like.named_apply(read, nested_keys=True, filter_empty=False, **known)


def load_extra(path: str | os.PathLike[str]) -> Any:
    """Return what :func:`save` was given as ``extra``, without reading any tensor.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short or is no checkpoint of purestep's.
    """
    with _Reader(path) as reader:
        return reader.about["extra"]


def check_target(path: Any) -> Path:
    """Return ``path`` where a checkpoint can be written to, and raise ``TypeError`` or ``ValueError`` where not."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the name of a file, got {path!r} of type {type(path).__name__}")
    target = Path(path)
    if target.is_dir() or not target.name:
        raise ValueError(f"path must be the name of a file, got the folder {os.fspath(path)!r}")
    return target


class _Reader:
    """An open checkpoint. What is wrong with the file is raised as a ``ValueError`` that names it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(check_target(path))
        try:
            self._file = safe_open(self.name, framework="pt", device="cpu")
            self._file.__enter__()
        except SafetensorError as error:
            raise ValueError(
                f"path must be a checkpoint that ps.checkpoint.save wrote, got {self.name!r}, which is cut short or of "
                f"another kind: {error}"
            ) from error
        self.about = self._about()
        self.names = tuple(self._file.keys())

    def _about(self) -> dict[str, Any]:
        text = (self._file.metadata() or {}).get(_KEY)
        if text is None:
            raise ValueError(
                f"path must be a checkpoint that ps.checkpoint.save wrote, got {self.name!r}, a safetensors file of "
                "other origin"
            )
        about = json.loads(text)
        if about["format"] != _FORMAT:
            raise ValueError(
                f"path must be a checkpoint of format {_FORMAT}, which this purestep {_version()} reads, got "
                f"{self.name!r} of format {about['format']!r}, written by purestep {about['purestep']}"
            )
        return about

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def _leaves(state: Any, argument: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the path and the tensor of each entry of a state."""
    if not isinstance(state, TrainState):
        raise TypeError(f"{argument} must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
    for key, leaf in state.items(include_nested=True, leaves_only=True, is_leaf=is_leaf_nontensor):
        path = _path(key)
        leaf = leaf.detach() if isinstance(leaf, Tensor) else leaf
        if type(leaf) is not Tensor or leaf.layout != torch.strided:
            kind = f"{leaf.layout} tensor" if type(leaf) is Tensor else type(leaf).__name__
            raise TypeError(f"{argument} must hold plain dense tensors, got a {kind} as {path!r}")
        yield path, leaf


def _path(key: str | tuple[str, ...]) -> str:
    parts = (key,) if isinstance(key, str) else key
    return "/".join(part.replace("~", "~0").replace("/", "~1") for part in parts)


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous and each with storage of its own, as safetensors needs them."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        if tensor.dtype in _NOT_STORED:
            raise TypeError(f"state must have dtypes that safetensors can hold, got {tensor.dtype} as {name!r}")
        # A conjugated view is a flag on bytes that are not conjugated.
        tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return stored


def _check_fits(reader: _Reader, wanted: dict[str, Tensor]) -> None:
    there_are = set(reader.names)
    missing = [name for name in wanted if name not in there_are]
    extra = [name for name in reader.names if name not in wanted]
    other = []
    for name, here in wanted.items():
        if name in there_are:
            there = reader.tensor(name)
            if there.shape != here.shape or there.dtype != here.dtype:
                other.append(f"{name!r} is {_form(there)} in the file and {_form(here)} in like")
    parts = [f"the file lacks {_checks.listed(missing)}"] * bool(missing)
    parts += [f"the file has {_checks.listed(extra)}, which like has not"] * bool(extra)
    parts += other[:6] + [f"{len(other) - 6} more differ"] * (len(other) > 6)
    if parts:
        raise ValueError(
            f"like must be a state of the model and optimizer whose state is in {reader.name!r}: {'; '.join(parts)}"
        )


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check_json(value: Any, path: str) -> None:
    """Raise ``TypeError`` where JSON would refuse a value, or give another one back (a tuple, a key that is an int)."""
    if value is None or type(value) in (str, int, float, bool):
        return
    if type(value) is list:
        for position, inner in enumerate(value):
            _check_json(inner, f"{path}[{position}]")
    elif type(value) is dict and all(type(key) is str for key in value):
        for key, inner in value.items():
            _check_json(inner, f"{path}[{key!r}]")
    else:
        raise TypeError(
            f"{path} must be made of dicts with string keys, lists, strings, numbers, bools and None, got {value!r} of "
            f"type {type(value).__name__}"
        )


def _flush(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("purestep")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"
