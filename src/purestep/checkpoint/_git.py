"""The revision of the code that runs, where git knows one."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from typing import Any

# Nothing of the repository's own is run: no hook, no watcher of files. Nothing is fetched, and nothing is locked.
_STATUS = (
    *("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}"),
    *("status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all"),
)
_PATIENCE = 5.0  # seconds, once in a process


def revision() -> dict[str, Any] | None:
    """Return ``{"revision": hash, "dirty": bool}`` of the folder the process is in, or ``None`` where there is none.

    ``dirty`` is whether a file that git keeps was changed. It is looked up once: what runs is what was read then.
    """
    try:
        return _revision(os.getcwd())
    except OSError:  # the folder was removed
        return None


@functools.cache
def _revision(folder: str) -> dict[str, Any] | None:
    quiet = {**os.environ, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            _STATUS, cwd=folder, env=quiet, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    found = [match[1] for line in lines if (match := re.fullmatch(r"# branch\.oid ([0-9a-f]{40,64})", line))]
    return {"revision": found[0], "dirty": any(not line.startswith("#") for line in lines)} if found else None
