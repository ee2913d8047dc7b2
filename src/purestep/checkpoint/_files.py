"""Files that are there whole or not at all: locks, flushes, renames, and reading nothing but regular files."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from purestep.checkpoint._errors import CheckpointError, CheckpointLockedError
from purestep.checkpoint._manifest import File

LOCK = ".lock"
_TEMPORARY = ".tmp"  # safetensors' own temporary files begin so too
_BLOCK = 1 << 22
_NO_FOLLOWING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, and say in it who does.

    Raises:
        CheckpointLockedError: another process, or another thread of this one, holds it.
        OSError: the lock's file cannot be made.
    """
    # Whoever closes a manager may be another thread than the one that opened it.
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointLockedError(
            f"{os.fspath(folder)!r} is being written by {_holder(folder)}: two writers need two paths"
        ) from None
    try:
        with suppress(OSError):  # what a message will say; the lock is the kernel's
            (folder / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / LOCK).read_text()[:200] or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def temporary(folder: Path) -> Path:
    """Return a name for a file that is not finished; :func:`clean` removes such files."""
    return folder / f"{_TEMPORARY}-{os.getpid()}-{secrets.token_hex(4)}"


def make_folder(folder: Path) -> bool:
    """Make a folder and those on the way to it, for good; return whether it was not there."""
    missing = []
    at = folder
    while not at.exists():
        missing.append(at)
        at = at.parent
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_folder(made.parent)
    return bool(missing)


def write_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Path, File]:
    """Write tensors (on the CPU, contiguous and apart) into a temporary file, flush it, and return what it is."""
    path = temporary(folder)
    try:
        with open(path, "xb") as file:  # for the permissions that a new file gets; safetensors gives it others
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        _save_file(tensors, path)
        os.chmod(path, mode)
        with open(path, "r+b") as file, ThreadPoolExecutor(1) as thread:
            digest = thread.submit(sha256, file)  # from the cache, while the disk is waited for
            os.fsync(file.fileno())
            return path, File(digest.result(), os.fstat(file.fileno()).st_size)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def replace(path: Path, content: bytes) -> None:
    """Write a small file in the place of the one that is there, in one rename, and flush it."""
    new = temporary(path.parent)
    try:
        with open(new, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def clean(folder: Path, keep: Mapping[str, File], ours: re.Pattern[str]) -> None:
    """Remove temporary files and those of our names that are not to be kept. What is no file of ours stays."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    for name in names:
        if name not in keep and (name.startswith(_TEMPORARY) or ours.fullmatch(name)):
            (folder / name).unlink(missing_ok=True)


def remove_empty(folder: Path) -> None:
    """Remove a folder where nothing is left but its lock."""
    with suppress(OSError):
        if os.listdir(folder) == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()


def is_ours(name: str, ours: re.Pattern[str]) -> bool:
    """Whether a file of this name may be left of an unfinished save."""
    return name == LOCK or name.startswith(_TEMPORARY) or ours.fullmatch(name) is not None


def flush_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    if os.name == "nt":  # Windows has no handle of a folder to flush
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(file: BinaryIO) -> str:
    """Return the SHA-256 of an open file as hexadecimal digits, without a copy of its bytes."""
    digest = hashlib.sha256()
    if size := os.fstat(file.fileno()).st_size:
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as content:
            for start in range(0, size, _BLOCK):
                digest.update(content[start : start + _BLOCK])
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading: no symlink is followed, and no pipe is waited for.

    Raises:
        CheckpointError: there is something else.
        OSError: it is not there, or cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | _NO_FOLLOWING | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise CheckpointError(f"{os.fspath(path)!r} must be a regular file, got a link or a socket") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise CheckpointError(f"{os.fspath(path)!r} must be a regular file, got a folder, a pipe or a device")
        return open(handle, "rb", buffering=0)
    except BaseException:
        os.close(handle)
        raise


def _save_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})  # what other readers look for
    except SafetensorError as error:
        # The system's errors come as text; callers need to tell a full disk from a folder that may not be written.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), os.fspath(path)) from error
