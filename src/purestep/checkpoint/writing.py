"""Writing a checkpoint, so that the old one is there until the new one is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from purestep import _checks
from purestep.checkpoint import _files, _git, _manifest, _paths
from purestep.checkpoint._manifest import METRICS, Manifest
from purestep.checkpoint._renaming import form
from purestep.state import TrainState, check_optimizer


def save(
    path: str | os.PathLike[str],
    state: TrainState,
    *,
    data: Any = None,
    optimizer: Any = None,
    metrics: Any = None,
    extra: Any = None,
) -> Path:
    """Write a state into a folder, so that a reader sees the old checkpoint or the new one and nothing between.

    The folder gets ``manifest.json`` and one safetensors file that is named by its SHA-256. Each is written under
    another name, flushed to the disk and renamed, the manifest last; the folder is flushed as well. Then the files of
    the old checkpoint are removed. Folders on the way to ``path`` are made.

    Args:
        path: the folder, ``"runs/digits"``. A checkpoint that is there already is replaced.
        state: any state, on any device, or an ensemble. Entries that share storage are written apart.
        data: the place in the data: a pipeline or a loader with a ``state_dict()``, or what that returned.
            :func:`load_data` returns it.
        optimizer: the optimizer, whose settings are then in the manifest for people to read. Nothing is built from it.
        metrics: tensors by name, nested at will, such as the running averages of a loop. :func:`load_metrics` returns
            them.
        extra: what else should be found again, made of dicts with string keys, lists, strings, numbers, bools and None.
            :func:`load_extra` returns it.

    Returns:
        The folder.

    Raises:
        TypeError: ``state`` is no :class:`TrainState`; an entry that is no plain tensor, or of a dtype that cannot be
            kept (quantised, less than a byte); something in ``data`` or ``extra`` that JSON would not give back as it
            was; ``optimizer`` is none.
        ValueError: the folder holds something, but no checkpoint; a state on ``meta``, which has no values; ``data`` or
            ``extra`` of more than 64 levels.
        CheckpointError: ``path`` is a file.
        CheckpointLockedError: somebody else is writing there.
        OSError: the disk is full, the folder may not be written; the old checkpoint is still whole.
        DonatedStateError: the state was donated to a compiled step.
    """
    target = _paths.check_target(path)
    return write(target, contents(state, data=data, optimizer=optimizer, metrics=metrics, extra=extra))


@dataclass(frozen=True)
class Contents:
    """What is going to be written, checked.

    Attributes:
        tensors: by their paths, where the state has them: not copied, on any device.
        fields: those of the manifest, but for ``files`` and ``saved``.
    """

    tensors: dict[str, Tensor]
    fields: dict[str, Any]


def contents(
    state: TrainState,
    *,
    data: Any = None,
    optimizer: Any = None,
    metrics: Any = None,
    extra: Any = None,
    scores: Mapping[str, float] | None = None,
) -> Contents:
    """Return what :func:`save` would write, or raise what it would; ``scores`` are numbers by name, kept beside it."""
    tensors = _paths.leaves(state, "state")
    if metrics is not None:
        kept = _paths.nested_leaves(metrics, "metrics")
        tensors |= {METRICS + name: leaf for name, leaf in kept.items()}
    if on_meta := [name for name, leaf in tensors.items() if leaf.is_meta]:
        raise ValueError(f"state must have values, got {_checks.listed(on_meta)} on the meta device")
    _manifest.check_json(extra, "extra")
    fields = {
        "format": _manifest.FORMAT,
        **_manifest.versions(),
        "step": _largest(state.step),
        "calls": _largest(state.calls),
        "tensors": {name: form(leaf) for name, leaf in tensors.items()},
        "optimizer": _settings(optimizer),
        "data": _place(data),
        "extra": extra,
        "git": _git.revision(),
        "scores": None if scores is None else {name: float(score) for name, score in scores.items()},
    }
    return Contents(tensors, fields)


def write(target: Path, what: Contents) -> Path:
    """Write a checkpoint; ``target`` is what :func:`_paths.check_target` returned.

    Raises:
        CheckpointLockedError, OSError, ValueError: as :func:`save`.
    """
    tensors = _paths.apart(what.tensors)
    fresh = _files.make_folder(target)
    try:
        with _files.locked(target):
            try:
                _replace(target, tensors, what.fields)
            except BaseException:
                if fresh:  # while the lock is held: who waits for it finds it gone, and does not get it
                    _files.remove_empty(target)
                raise
    except BaseException:
        if fresh:
            with suppress(OSError):  # somebody else's lock, or a file, is in it
                target.rmdir()
        raise
    return target


def _replace(target: Path, tensors: dict[str, Tensor], fields: dict[str, Any]) -> None:
    temporary, about = _files.write_tensors(target, tensors)
    name = _manifest.data_file(about.sha256)
    new = not (target / name).exists()
    try:
        os.replace(temporary, target / name)
        _files.flush_folder(target)
        manifest = Manifest(**fields, files={name: about}, saved=_manifest.now())
        _files.replace(target / _manifest.NAME, _manifest.written(manifest))
    except BaseException:
        temporary.unlink(missing_ok=True)
        # The new manifest may have got its name before an error or an interrupt: then it is the checkpoint.
        if new and not _names(target / _manifest.NAME, name):
            (target / name).unlink(missing_ok=True)
        raise
    _files.clean(target, manifest.files, _manifest.DATA_FILE)


def _names(manifest: Path, name: str) -> bool:
    """Whether a manifest that is there names a file."""
    try:
        return f'"{name}"'.encode() in manifest.read_bytes()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # nobody knows: a file too many is better than one too few


def _largest(count: Tensor) -> int:
    """Return a count of a state; of an ensemble, the largest."""
    return int(count.max()) if count.numel() else 0


def _settings(optimizer: Any) -> dict[str, Any] | None:
    """Return the call that made an optimizer, or its ``repr`` where nobody wrote it down."""
    if optimizer is None:
        return None
    check_optimizer(optimizer)
    config = optimizer.config
    # Through JSON, so that what is read back is the same: a number of NumPy's, or of an enumeration, is a plain one.
    return json.loads(json.dumps({"written": repr(optimizer)} if config is None else config.as_json()))


def _place(data: Any) -> dict[str, Any] | None:
    if data is None:
        return None
    place = data.state_dict() if callable(getattr(data, "state_dict", None)) else data
    if not isinstance(place, Mapping):
        raise TypeError(
            f"data must be a pipeline or a loader with a state_dict(), or the dict that it returned, got {data!r} of "
            f"type {type(data).__name__}"
        )
    place = dict(place)
    _manifest.check_json(place, "data")
    return place
