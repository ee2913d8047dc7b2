"""Which tensor of a source goes where: names changed on the way in, and what does not fit named.

Used for a checkpoint, whose names are paths (``params/fc1.weight``), and for weights, whose names are a module's own
(``fc1.weight``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from purestep import _checks

Rename = Mapping[str, str] | None
_BOUNDARIES = (".", "/")


class Form(NamedTuple):
    """What a tensor is without its values.

    Attributes:
        shape: its sizes.
        dtype: the name of its dtype without the module, ``"float32"``.
    """

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}"


def form(tensor: Tensor) -> Form:
    """Return the form of a tensor."""
    return Form(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def take(
    wanted: Mapping[str, Form],
    there: Mapping[str, Form],
    *,
    rename: Rename = None,
    strict: bool = True,
    opening: str,
    here: str,
    source: str,
    paths: bool = False,
    stacklevel: int = 3,
) -> dict[str, str]:
    """Return, for each wanted name that the source has in the wanted form, the name that it has in the source.

    Args:
        wanted: what is wanted, by the names here.
        there: what the source has, by the names there.
        rename: ``{old: new}``, from names in the source to names here. An entry is a whole name or a prefix of one that
            ends at a ``.`` or ``/``; of several that fit, the one that reaches furthest counts. An empty ``new`` takes
            the prefix away; an empty ``old`` puts one before every name (not with ``paths``).
        strict: whether all names must be the same, and their forms too. Otherwise what does not fit is left out, and
            one warning names it.
        opening: what the message begins with, ``"like must be the state of a model whose state is in 'run'"``.
        here, source: what the two sides are called in it, ``"like"`` and ``"the checkpoint"``.
        paths: whether names are paths of a state. An entry of ``rename`` without a ``/`` is then looked for in the last
            part of each path, so that a parameter is renamed in every tree.
        stacklevel: of the warning: 3 blames the caller of the function that calls this one.

    Raises:
        TypeError: ``rename`` is no mapping of strings to strings, or ``strict`` no bool.
        ValueError: an entry of ``rename`` fits no name; two names become one; something does not fit and ``strict``
            holds, or nothing at all fits.
    """
    if not isinstance(strict, bool):
        raise TypeError(f"strict must be True or False, got {strict!r}")
    origins = renamed(there, rename, paths=paths, source=source)
    misfits = _misfits(wanted, there, origins, here, source)
    taken = {name: origins[name] for name, form in wanted.items() if name in origins and there[origins[name]] == form}
    if misfits and (strict or (wanted and not taken)):
        raise ValueError(f"{opening}: {'; '.join(misfits)}{_hint(misfits, rename)}")
    if misfits:
        what = f"what {here} had is kept for what is missing or differs, and the rest is not read"
        warnings.warn(f"{source} does not fit {here} in all: {'; '.join(misfits)}; {what}", stacklevel=stacklevel)
    return taken


def renamed(there: Any, rename: Rename, *, paths: bool, source: str) -> dict[str, str]:
    """Return the names of a source by their new names; arguments and errors are those of :func:`take`."""
    entries = _checked(rename, paths)
    unused = set(entries)
    origins: dict[str, str] = {}
    for name in there:
        fits = [entry for entry in (_fit(name, old, new, paths) for old, new in entries.items()) if entry]
        unused -= {entry.old for entry in fits}
        new = max(fits).name if fits else name
        if not new:
            raise ValueError(
                f"rename must leave a name for each of {source}, got {dict(entries)!r}, by which {name!r} has none"
            )
        if new in origins:
            raise ValueError(
                f"rename must keep names apart, got {dict(entries)!r}, by which {origins[new]!r} and {name!r} of "
                f"{source} both become {new!r}"
            )
        origins[new] = name
    if unused:
        first = min(unused)
        raise ValueError(
            f"rename must have names of {source}, whole or up to a '.' or '/', as its keys, got "
            f"{_checks.listed(sorted(unused))}, which fits none{_checks.near_misses(first, there)}"
        )
    return origins


class _Fit(NamedTuple):
    """An entry of ``rename`` that fits a name; the greatest of several counts."""

    end: int  # where the part that it replaces ends
    length: int
    old: str
    name: str  # the whole name after it


def _checked(rename: Any, paths: bool) -> Mapping[str, str]:
    right = "rename must be a dict of names in the file to names here, {'encoder': 'body.encoder'}"
    if rename is None:
        return {}
    if not isinstance(rename, Mapping):
        raise TypeError(f"{right}, got {rename!r} of type {type(rename).__name__}")
    for old, new in rename.items():
        if not isinstance(old, str) or not isinstance(new, str):
            raise TypeError(f"{right}, got {old!r}: {new!r}")
        if paths and not old:
            raise ValueError(f"{right}, got the empty name for {new!r}")
        if paths and "/" not in old and "/" in new:
            raise ValueError(
                f"{right}, or of paths to paths, got {old!r}: {new!r}, of which only the second is a path: a name is "
                "renamed in every tree, and 'params/' before both renames it in params alone"
            )
    return rename


def _fit(name: str, old: str, new: str, paths: bool) -> _Fit | None:
    """Return what an entry makes of a name, or ``None`` where it does not fit."""
    start = name.rfind("/") + 1 if paths and "/" not in old else 0
    part = name[start:]
    if not part.startswith(old):
        return None
    rest = part[len(old) :]
    if not old:
        joined = new + ("." if new and not new.endswith(_BOUNDARIES) else "") + rest
    elif not rest or old.endswith(_BOUNDARIES) or rest.startswith(_BOUNDARIES):
        joined = new + rest if new else rest.removeprefix(rest[:1] if rest.startswith(_BOUNDARIES) else "")
    else:
        return None
    return _Fit(start + len(old), len(old), old, name[:start] + joined)


def _misfits(
    wanted: Mapping[str, Form], there: Mapping[str, Form], origins: Mapping[str, str], here: str, source: str
) -> list[str]:
    """Say everything that two sides disagree in, as parts of a sentence."""
    said = {new: repr(new) if new == old else f"{new!r} ({old!r} there)" for new, old in origins.items()}
    missing = [repr(name) for name in wanted if name not in origins]
    extra = [said[name] for name in origins if name not in wanted]
    parts = [f"{source} lacks {', '.join(missing)}"] * bool(missing)
    parts += [f"{source} has {', '.join(extra)}, which {here} has not"] * bool(extra)
    for name, form in wanted.items():
        if name in origins and there[origins[name]] != form:
            parts.append(f"{said[name]} is {there[origins[name]]} in {source} and {form} in {here}")
    return parts


def _hint(misfits: list[str], rename: Rename) -> str:
    both = len(misfits) > 1 and " lacks " in misfits[0] and misfits[1].endswith(" has not")
    return " (rename={name there: name here} maps names)" if both and not rename else ""
