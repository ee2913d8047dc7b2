"""Reading a checkpoint. Nothing in it is executed: it is JSON and safetensors, and what it says is checked first."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from purestep import _checks
from purestep.checkpoint import _files, _manifest, _paths
from purestep.checkpoint._errors import CheckpointError
from purestep.checkpoint._manifest import DTYPES, METRICS, File, Manifest
from purestep.checkpoint._renaming import Form, Rename, form, take
from purestep.state import TrainState

R = TypeVar("R")


def load(
    path: str | os.PathLike[str],
    *,
    like: TrainState,
    device: torch.device | str | None = None,
    strict: bool = True,
    rename: Rename = None,
) -> TrainState:
    """Return the state that :func:`save` wrote, bit for bit, in the structure of ``like``.

    Args:
        path: the folder.
        like: a state of the same model and optimizer, as :func:`purestep.init_state` makes it. Its names, shapes and
            dtypes must be the checkpoint's; its order and memory formats are taken over, and its values are not read.
        device: where the state goes; by default each entry goes where it is in ``like``.
        strict: ``False`` takes what fits: an entry that the checkpoint lacks, or has in another shape or dtype, is
            copied from ``like``, what ``like`` lacks is not read, and one warning names all of it.
        rename: ``{name in the checkpoint: name in like}``. A name is a path such as ``"params/fc1.weight"``, or the
            beginning of one up to a ``.`` or ``/``; one without a ``/``, such as ``"fc1"``, is a parameter's or a
            buffer's, and is renamed in every tree. Of several that fit, the one that reaches furthest counts.

    Returns:
        A new state, which shares no storage with ``like``, with the file, or within itself.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: it is damaged, of another format, or no checkpoint of purestep's.
        ValueError: it does not fit ``like``: each name that is missing, too much, or of another shape or dtype is
            there. Or an entry of ``rename`` fits no name or makes two names one. Or ``like`` is on ``meta``, and no
            ``device`` is given, or a value would have to come from there.
        TypeError: ``like`` is no :class:`TrainState`, or ``rename`` no dict of names.
    """
    wanted = _paths.leaves(like, "like")
    if device is None and any(leaf.is_meta for leaf in wanted.values()):
        raise ValueError("device must be given where like is on the meta device, which holds no values, got None")
    forms = {name: form(leaf) for name, leaf in wanted.items()}

    def prepare(manifest: Manifest) -> Callable[[dict[str, Tensor]], TrainState]:
        there = {name: about for name, about in manifest.tensors.items() if not name.startswith(METRICS)}
        taken = take(
            forms,
            there,
            rename=rename,
            strict=strict,
            opening=f"like must be a state of the model and optimizer whose state is in {os.fspath(path)!r}",
            here="like",
            source="the checkpoint",
            paths=True,
            stacklevel=7,
        )
        return lambda tensors: _filled(like, {name: tensors[origin] for name, origin in taken.items()}, device)

    return _read(path, prepare)


def _filled(like: TrainState, values: dict[str, Tensor], device: torch.device | str | None) -> TrainState:
    """Return a state like ``like`` with these values, as they are in the file."""

    def fill(key: str | tuple[str, ...], leaf: Tensor) -> Tensor:
        # A tensor from the file is a view of the whole mapped file: it is copied, into the layout that the state had
        # (channels last stays so, and kernels that depend on it give the same bits).
        new = torch.empty_like(leaf, device=device, requires_grad=False)
        name = _paths.path(key)
        if name in values:
            _paths.as_stored(new).copy_(values[name])
        elif leaf.is_meta and not new.is_meta:
            raise ValueError(f"like must have values for what the checkpoint lacks, got {name!r} on the meta device")
        else:
            new.copy_(leaf.detach())
        return new

    # A TensorDict that knows its device moves what it is given there: it must know the new one.
    known: dict[str, Any] = {} if device is None else {"device": torch.device(device)}
    return like.named_apply(fill, nested_keys=True, filter_empty=False, **known)


def load_data(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the place in the data that :func:`save` was given, for ``load_state_dict``; ``None`` where it was none.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`read_manifest`.
    """
    return read_manifest(path).data


def load_extra(path: str | os.PathLike[str]) -> Any:
    """Return what :func:`save` was given as ``extra``, without reading any tensor.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`read_manifest`.
    """
    return read_manifest(path).extra


def load_metrics(path: str | os.PathLike[str]) -> dict[str, Tensor] | None:
    """Return the tensors that :func:`save` was given as ``metrics``, on the CPU, by their paths (``"train/loss"``).

    ``None`` where it was given none.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`load`.
    """

    def prepare(manifest: Manifest) -> Callable[[dict[str, Tensor]], dict[str, Tensor] | None]:
        names = [name for name in manifest.tensors if name.startswith(METRICS)]

        def read(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
            return {name.removeprefix(METRICS): _new(manifest.tensors[name], tensors[name]) for name in names} or None

        return read

    return _read(path, prepare)


def _new(about: Form, stored: Tensor) -> Tensor:
    new = torch.empty(about.shape, dtype=DTYPES[about.dtype])
    _paths.as_stored(new).copy_(stored)
    return new


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Return what a checkpoint says of itself. All of it is checked but the hashes of the files, which are not read.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        CheckpointError: the manifest is damaged, of another format, or none; a file that it names is missing, of
            another size, or no regular file in the folder.
        TypeError, ValueError: ``path`` names no folder.
    """
    return _with_manifest(path, lambda folder, manifest: manifest)


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Read every byte of a checkpoint, compare it with the manifest, and return that.

    Raises:
        FileNotFoundError, CheckpointError, TypeError, ValueError: as :func:`read_manifest`; and ``CheckpointError``
            where a file's hash is not the manifest's, or its tensors are not.
    """
    return _read(path, lambda manifest: lambda tensors: manifest)


def _read(path: Any, prepare: Callable[[Manifest], Callable[[dict[str, Tensor]], R]]) -> R:
    """Return what ``prepare(manifest)`` makes of the tensors of the mapped file, all of it checked."""

    def opened(folder: Path, manifest: Manifest) -> R:
        use = prepare(manifest)  # what it refuses is refused before the file is read
        name, about = next(iter(manifest.files.items()))
        with _files.open_regular(folder / name) as file, ThreadPoolExecutor(1) as thread:
            digest = thread.submit(_files.sha256, file)  # while the tensors are copied
            try:
                with _tensors(folder / name, manifest) as tensors:
                    result = use(tensors)
            except CheckpointError:
                _check_hash(folder / name, digest.result(), about)  # the hash says more, where it is wrong
                raise
            _check_hash(folder / name, digest.result(), about)
            return result

    return _with_manifest(path, opened)


def _check_hash(file: Path, digest: str, about: File) -> None:
    if digest != about.sha256:
        raise CheckpointError(
            f"{os.fspath(file)!r} is damaged: its SHA-256 must be {about.sha256}, got {digest} (one bit is enough)"
        )


@contextmanager
def _tensors(file: Path, manifest: Manifest) -> Iterator[dict[str, Tensor]]:
    """Give the tensors of a mapped file by name. Its header must say what the manifest says."""
    with ExitStack() as stack:
        try:
            tensors = _checked(stack.enter_context(safe_open(file, framework="pt", device="cpu")), file, manifest)
        except (SafetensorError, RuntimeError, OverflowError) as error:
            # safetensors opens a file and lets torch open it again: a newer save may have removed it in between.
            if not file.exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(file)) from error
            raise CheckpointError(f"{os.fspath(file)!r} is damaged or no safetensors file: {error}") from error
        yield tensors


def _checked(opened: Any, file: Path, manifest: Manifest) -> dict[str, Tensor]:
    names = set(opened.keys())
    if names != set(manifest.tensors):
        other = min(names ^ set(manifest.tensors))
        raise CheckpointError(f"{os.fspath(file)!r} must have the tensors of its manifest, got another {other!r}")
    tensors = {name: opened.get_tensor(name) for name in manifest.tensors}
    for name, about in manifest.tensors.items():
        if form(tensors[name]) != _paths.stored_form(about):
            raise CheckpointError(
                f"{os.fspath(file)!r} must have the tensors of its manifest, got {form(tensors[name])} as {name!r}, "
                f"which is {about} there"
            )
    return tensors


def _with_manifest(path: Any, use: Callable[[Path, Manifest], R]) -> R:
    """Return what ``use`` makes of a folder and its manifest. It starts again where a newer save takes the files."""
    folder = _paths.check_name(path)
    text = _text(folder)
    while True:
        manifest = _manifest.parsed(text, repr(os.fspath(folder / _manifest.NAME)))
        try:
            _check_files(folder, manifest)
            return use(folder, manifest)
        except FileNotFoundError as error:
            text, before = _text(folder), text
            if text == before:
                raise CheckpointError(
                    f"{os.fspath(folder)!r} is damaged: its manifest names {_checks.listed(manifest.files)}, which is "
                    "not there"
                ) from error


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name, about in manifest.files.items():
        found = os.lstat(folder / name)
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(f"{os.fspath(folder / name)!r} must be a regular file, got a link or a folder")
        if found.st_size != about.bytes:
            raise CheckpointError(
                f"{os.fspath(folder / name)!r} is damaged: it must have {about.bytes} bytes, got {found.st_size}"
            )


def _text(folder: Path) -> bytes:
    """Return the bytes of a folder's manifest."""
    name = folder / _manifest.NAME
    try:
        with _files.open_regular(name) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _manifest.LARGEST:
                raise CheckpointError(
                    f"{os.fspath(name)!r} must have at most {_manifest.LARGEST} bytes, got {size}: it is no manifest"
                )
            return file.read(_manifest.LARGEST + 1)
    except FileNotFoundError:
        if folder.is_dir() and any(_manifest.DATA_FILE.fullmatch(found) for found in os.listdir(folder)):
            raise CheckpointError(f"{os.fspath(folder)!r} is damaged: its manifest.json is not there") from None
        raise
