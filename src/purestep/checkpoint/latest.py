"""The newest checkpoint of a folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

from purestep.checkpoint import _manifest, _paths
from purestep.checkpoint._errors import CheckpointError
from purestep.checkpoint._manifest import Manifest
from purestep.checkpoint.reading import read_manifest, verify


def latest(folder: str | os.PathLike[str]) -> Path | None:
    """Return the newest whole checkpoint among the folders in ``folder``, or ``folder`` itself where it is one.

    The newest is that of the most calls, then of the most updates, then the one saved last. Its files are read and
    their hashes compared, so it can be loaded. Those that are damaged are passed over, and one warning names each and
    says why. Folders that hold no checkpoint, and those whose names begin with a dot, are not looked at.

    Returns:
        The checkpoint, or ``None`` where there is no whole one, or no folder.

    Raises:
        CheckpointError: ``folder`` is a file, or is a checkpoint itself and damaged.
        TypeError, ValueError: ``folder`` names none.
    """
    top = _paths.check_name(folder)
    if not top.is_dir():
        return None
    if _looks_like_one(top):
        verify(top)
        return top
    damaged: list[str] = []
    newest = _newest(top, damaged)
    if damaged:
        what = f"took {os.fspath(newest)!r}" if newest else "there is no whole one"
        warnings.warn(f"passed over what is no whole checkpoint, {what}: {'; '.join(damaged)}", stacklevel=2)
    return newest


def _newest(top: Path, damaged: list[str]) -> Path | None:
    """Return the newest whole one, and say of each that is damaged why."""
    paths = _candidates(top)
    while True:
        del damaged[:]
        found = []
        for path in paths:
            manifest = _whole(read_manifest, path, damaged)
            if manifest is not None:
                found.append(((manifest.calls, manifest.step, manifest.saved), path))
        for _, path in sorted(found, reverse=True):
            if _whole(verify, path, damaged) is not None:
                return path
        # A writer may have taken away what was listed, after putting a newer one there.
        before, paths = paths, _candidates(top)
        if paths == before:
            return None


def _whole(read: Callable[[Path], Manifest], path: Path, damaged: list[str]) -> Manifest | None:
    try:
        return read(path)
    except FileNotFoundError:
        return None  # removed since
    except (CheckpointError, OSError) as error:
        damaged.append(str(error))
        return None


def _candidates(top: Path) -> list[Path]:
    with os.scandir(top) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return [top / name for name in names if _looks_like_one(top / name)]


def _looks_like_one(folder: Path) -> bool:
    """Whether there is a manifest, or a file of tensors that lacks one."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # reading it says what is wrong
    return any(name == _manifest.NAME or _manifest.DATA_FILE.fullmatch(name) for name in names)
