"""The record of a checkpoint: ``manifest.json``, its fields, its text, and what is checked when it is read.

The text is JSON, one field a line, and ends with the SHA-256 of what stands before it. It is read only where it is,
letter for letter, what would be written for the fields it says.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import prod
from typing import Any, NamedTuple

import torch

from purestep.checkpoint._errors import CheckpointError
from purestep.checkpoint._renaming import Form

FORMAT = 2  # 1 was a single file, never released
NAME = "manifest.json"
LARGEST = 1 << 28  # bytes: a manifest that claims more is not read; some two million tensors
_DEEPEST = 64  # levels of lists and dicts; far below what Python's reader of JSON can do
DATA_FILE = re.compile(r"state-[0-9a-f]{12}\.safetensors")
_HASH = re.compile(r"[0-9a-f]{64}")
_SEAL = '"sha256": "'
METRICS = "metrics/"  # where the tensors of metrics are, among the paths of the state
# Not those of less than a byte and not the quantised ones, which safetensors lacks and torch can hardly copy.
KEPT = frozenset(
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        "float4_e2m1fn_x2",
    )
)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in KEPT}


class File(NamedTuple):
    """A file of a checkpoint.

    Attributes:
        sha256: 64 hexadecimal digits.
        bytes: its size.
    """

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself.

    Attributes:
        format: of the checkpoint, ``2``.
        purestep, torch, python: the versions that wrote it.
        saved: when, in ISO 8601, UTC.
        step: updates applied; the largest of an ensemble's.
        calls: steps attempted; the largest of an ensemble's.
        files: the files with the tensors, by name.
        tensors: the shape and dtype of each tensor by its path (``params/fc1.weight``), in the order of the state;
            those of metrics under ``metrics/``.
        optimizer: what :func:`save` was given, as its name and settings; ``None`` where it was given none.
        data: the place in the data.
        extra: what else was kept.
        git: ``{"revision": ..., "dirty": ...}`` of the folder that the process ran in, or ``None``.
        scores: numbers by name, by which a manager chooses the best.
    """

    format: int
    purestep: str
    torch: str
    python: str
    saved: str
    step: int
    calls: int
    files: dict[str, File]
    tensors: dict[str, Form]
    optimizer: dict[str, Any] | None
    data: dict[str, Any] | None
    extra: Any
    git: dict[str, Any] | None
    scores: dict[str, float] | None

    @property
    def size(self) -> int:
        """The bytes of all files but the manifest."""
        return sum(file.bytes for file in self.files.values())


_FIELDS = tuple(field.name for field in fields(Manifest))


def data_file(sha256: str) -> str:
    """Return the name of a file of tensors, which says what it holds: another content is another file."""
    return f"state-{sha256[:12]}.safetensors"


@functools.cache
def _own_version() -> str:
    try:
        return version("purestep")
    except PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"


def versions() -> dict[str, str]:
    """Return the versions that a manifest records."""
    return {"purestep": _own_version(), "torch": str(torch.__version__), "python": platform.python_version()}


def now() -> str:
    """Return the time as a manifest records it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def written(manifest: Manifest) -> bytes:
    """Return the text of a manifest.

    Raises:
        ValueError: it would be larger than can be read back.
    """
    text = _text({name: getattr(manifest, name) for name in _FIELDS}).encode("ascii")
    if len(text) > LARGEST:
        raise ValueError(
            f"extra, data and the names of the state must be at most {LARGEST} bytes as JSON, got {len(text)}: what is "
            "large belongs into tensors"
        )
    return text


def parsed(text: bytes, where: str) -> Manifest:
    """Return the manifest that a text says.

    Args:
        text: the bytes of the file.
        where: the file's name, for messages.

    Raises:
        CheckpointError: it is no manifest, is damaged, is of another format, or a field is not what it must be.
    """
    said = _json(text, where)
    form = said.get("format")
    if type(form) is not int or form < 1:
        raise CheckpointError(f"{where} is no manifest of a checkpoint: its format is {_short(form)}")
    if form != FORMAT:
        writer, ours = _short(said.get("purestep")), versions()["purestep"]
        raise CheckpointError(
            f"{where} is of format {_short(form)}, written by purestep {writer}, and this purestep {ours} reads format "
            f"{FORMAT}"
        )
    said.pop("sha256", None)
    if tuple(said) != _FIELDS or not _is_text_of(text, said):
        raise CheckpointError(f"{where} is damaged: its text is not the one that its SHA-256 was made of")
    _check_fields(said, where)
    said["files"] = {name: File(**about) for name, about in said["files"].items()}
    said["tensors"] = {path: Form(tuple(about["shape"]), about["dtype"]) for path, about in said["tensors"].items()}
    return Manifest(**said)


def check_json(value: Any, path: str) -> None:
    """Raise where JSON would refuse a value, or give another one back (a tuple, a key that is an int).

    Raises:
        TypeError: something that is no dict with string keys, list, string, number, bool or ``None``.
        ValueError: more than 64 levels, or an int of thousands of digits.
    """
    _check_json(value, path, 0)
    try:
        json.dumps(value)
    except ValueError as error:
        raise ValueError(f"{path} must be what JSON can hold: {error}") from None


def _check_json(value: Any, path: str, level: int) -> None:
    if value is None or type(value) in (str, int, float, bool):
        return
    if level == _DEEPEST:
        raise ValueError(f"{path[:80]}... must have at most {_DEEPEST} levels of dicts and lists, got more")
    if type(value) is list:
        for position, inner in enumerate(value):
            _check_json(inner, f"{path}[{position}]", level + 1)
    elif type(value) is dict and all(type(key) is str for key in value):
        for key, inner in value.items():
            _check_json(inner, f"{path}[{key!r}]", level + 1)
    else:
        raise TypeError(
            f"{path} must be made of dicts with string keys, lists, strings, numbers, bools and None, got "
            f"{_short(value)} of type {type(value).__name__}"
        )


def _text(said: Mapping[str, Any]) -> str:
    """Return the text that says these fields: the one way to write them."""
    lines = []
    for name, value in said.items():
        if name in ("files", "tensors") and isinstance(value, Mapping) and value:
            inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(_plain(about))}" for key, about in value.items())
            lines.append(f"{json.dumps(name)}: {{\n{inner}\n}}")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    body = "{\n" + ",\n".join(lines) + ",\n"
    return f'{body}{_SEAL}{hashlib.sha256(body.encode("ascii")).hexdigest()}"\n}}\n'


def _is_text_of(text: bytes, said: Mapping[str, Any]) -> bool:
    try:
        return _text(said).encode("ascii") == text
    except RecursionError:
        return False


def _plain(about: Any) -> Any:
    if isinstance(about, Form):
        return {"shape": list(about.shape), "dtype": about.dtype}
    return about._asdict() if isinstance(about, File) else about


def _json(text: bytes, where: str) -> dict[str, Any]:
    try:
        said = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise CheckpointError(f"{where} is no manifest of a checkpoint: it is nested too deeply") from None
    except ValueError as error:  # of the text, of its encoding, or of an int of thousands of digits
        raise CheckpointError(f"{where} is damaged or no manifest of a checkpoint: {error}") from None
    if not isinstance(said, dict):
        raise CheckpointError(f"{where} is no manifest of a checkpoint: it holds {_short(said)}")
    return said


def _check_fields(said: dict[str, Any], where: str) -> None:
    """Raise where a field is not what a :class:`Manifest` has there. Only a forged manifest comes here and fails."""
    for name in ("purestep", "torch", "python", "saved"):
        if type(said[name]) is not str:
            raise _wrong(where, name, "a string", said[name])
    for name in ("step", "calls"):
        if not _is_count(said[name]):
            raise _wrong(where, name, "an int from 0 to 2^63 - 1", said[name])
    for name in ("optimizer", "data", "git", "scores"):
        if said[name] is not None and type(said[name]) is not dict:
            raise _wrong(where, name, "a dict or null", said[name])
    for name, score in (said["scores"] or {}).items():
        if type(score) is not float:
            raise _wrong(where, f"scores[{name!r}]", "a number with a point", score)
    _check_files(said["files"], where)
    _check_tensors(said["tensors"], where)
    needed = sum(prod(about["shape"]) * DTYPES[about["dtype"]].itemsize for about in said["tensors"].values())
    if needed > sum(about["bytes"] for about in said["files"].values()):
        raise _wrong(where, "tensors", "of no more bytes than the files", f"{needed} bytes")


def _check_files(files: Any, where: str) -> None:
    if type(files) is not dict or len(files) != 1:
        raise _wrong(where, "files", "a dict of one file", files)
    for name, about in files.items():
        if not DATA_FILE.fullmatch(name):
            right = "named 'state-', 12 hexadecimal digits and '.safetensors', in the folder itself"
            raise _wrong(where, "files", right, name)
        if type(about) is not dict or tuple(about) != ("sha256", "bytes") or not _is_count(about["bytes"]):
            raise _wrong(where, f"files[{name!r}]", "a dict of sha256 and bytes, an int", about)
        sha256 = about["sha256"]
        if type(sha256) is not str or not _HASH.fullmatch(sha256) or data_file(sha256) != name:
            raise _wrong(where, f"files[{name!r}]", "of a sha256 that begins as the name says", sha256)


def _check_tensors(tensors: Any, where: str) -> None:
    if type(tensors) is not dict:
        raise _wrong(where, "tensors", "a dict", tensors)
    for name, about in tensors.items():
        right = (
            type(about) is dict
            and tuple(about) == ("shape", "dtype")
            and type(about["shape"]) is list
            and len(about["shape"]) <= 64  # as many as torch has
            and all(_is_count(size) for size in about["shape"])
            and type(about["dtype"]) is str
            and about["dtype"] in DTYPES
        )
        if not right:
            raise _wrong(where, f"tensors[{_short(name)}]", "a shape and the name of a dtype", about)


def _wrong(where: str, name: str, right: str, got: Any) -> CheckpointError:
    return CheckpointError(f"{where} is no manifest of a checkpoint: {name} must be {right}, got {_short(got)}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
