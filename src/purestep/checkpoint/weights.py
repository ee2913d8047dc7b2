"""Weights without a run: into a module and out of it, as a ``state_dict``, and from safetensors files of others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from purestep import _tree, functional
from purestep.checkpoint._renaming import Form, Rename, form, renamed, take
from purestep.checkpoint._safetensors import Files
from purestep.functional import load_into as load_into
from purestep.state import TrainState


def state_dict(state: TrainState, *, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Return a state's parameters and buffers by name, as ``module.load_state_dict`` takes them.

    They are the state's own tensors, not copies: clone what must outlive a step that donates the state.

    Args:
        state: of one model.
        model: whose ``state_dict`` it shall look like. Tied weights then have all their names, and buffers that are not
            saved (``persistent=False``) are left out; without it each tensor has one name, and every buffer is there.
            The model is only read.

    Raises:
        TypeError: no state, or no module.
        ValueError: the state is of another model, or the model's ``state_dict`` has something that is neither parameter
            nor buffer, which a state does not have.
    """
    _check_state(state)
    values = {**_tree.as_dict(state.params), **_tree.as_dict(state.buffers)}
    if model is None:
        return values
    functional.check_module(model)
    own = _canonical(model)
    functional.check_same_names("state", values, "model", dict.fromkeys(own.values()))
    found = {}
    for name in _saved(model):
        if name not in own:
            raise ValueError(
                f"model must keep nothing in its state_dict but parameters and buffers, which a state has, got {name!r}"
            )
        found[name] = values[own[name]]
    return found


def from_state_dict(
    state: TrainState,
    weights: Mapping[str, Tensor],
    *,
    model: nn.Module | None = None,
    strict: bool = True,
    rename: Rename = None,
    cast: bool = False,
) -> TrainState:
    """Return a state with the values of a ``state_dict`` as its parameters and buffers; the rest stays what it was.

    An optimizer that keeps parameters in its state (an average, the slow ones of a lookahead) keeps those it had:
    begin it anew where these shall not count, ``state.replace(opt_state=optimizer.init(state.params))``.

    Args:
        state: gives the names, the shapes and dtypes, and the device.
        weights: tensors by name, such as ``module.state_dict()``. They are copied.
        model: the module that the state is of, where names alone do not tell: its tied weights are found by any of
            their names, and buffers that are not saved (``persistent=False``) are not asked for. It is only read.
        strict: whether the names, shapes and dtypes must all be the same. Otherwise what is missing or does not fit
            keeps the state's values, what is too much is not read, and one warning names all of it.
        rename: ``{name there: name here}``: whole names or prefixes up to a ``.``, of which the longest counts; an
            empty name there puts the one here before every name.
        cast: whether floating-point values of another dtype are converted, rather than refused.

    Raises:
        TypeError: no state, a mapping that is none or holds something else than tensors, another argument of a wrong
            type.
        ValueError: a name, shape or dtype that does not fit, each named; ``rename`` with an entry that fits nothing or
            two names that become one; several names of a tied weight with different values.
    """
    _check_state(state)
    if not isinstance(weights, Mapping):
        raise TypeError(f"weights must be a dict of tensors by name, got {weights!r} of type {type(weights).__name__}")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise TypeError(f"weights must be a dict of tensors by name, got {name!r}: a {type(value).__name__}")
    return _replaced(state, weights, "weights", model, strict, rename, cast)


def load_weights(
    path: str | os.PathLike[str],
    state: TrainState,
    *,
    model: nn.Module | None = None,
    strict: bool = True,
    rename: Rename = None,
    cast: bool = False,
) -> TrainState:
    """Return a state with the weights of a safetensors file, or of a folder of Hugging Face's, tensor by tensor.

    .. code-block:: python

        state = ps.init_state(model, optimizer, seed=0)
        state = ps.checkpoint.load_weights("models/bert-base-uncased", state, model=model)

    Pickled weights are refused without being read: to read them is to run whatever they say.

    Args:
        path: a ``.safetensors`` file; or a folder with ``model.safetensors``, or with ``model.safetensors.index.json``
            and the files that it names, as ``save_pretrained`` writes them.
        state, model, strict, rename, cast: as in :func:`from_state_dict`.

    Raises:
        FileNotFoundError: nothing is at ``path``.
        CheckpointError: it is no such file or folder, a file of it is missing or damaged, or the index names one that
            is not in the folder.
        TypeError, ValueError: as :func:`from_state_dict`.
    """
    _check_state(state)
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be that of a .safetensors file or of a folder, got {path!r}")
    with ExitStack() as opened:
        tensors = Files(Path(path), opened)
        return _replaced(state, tensors, repr(str(path)), model, strict, rename, cast)


def _replaced(
    state: TrainState,
    weights: Mapping[str, Tensor],
    source: str,
    model: nn.Module | None,
    strict: bool,
    rename: Rename,
    cast: bool,
) -> TrainState:
    if not isinstance(cast, bool):
        raise TypeError(f"cast must be True or False, got {cast!r}")
    trees = {"params": state.params, "buffers": state.buffers}
    wanted = {name: leaf for tree in trees.values() for name, leaf in _tree.as_dict(tree).items()}
    origins = renamed(weights, rename, paths=False, source=source)
    if model is not None:
        functional.check_module(model)
        ties = _canonical(model)
        functional.check_same_names("state", wanted, "model", dict.fromkeys(ties.values()))
        saved = {ties.get(name) for name in _saved(model)}
    else:
        ties, saved = {} if isinstance(weights, Files) else _sharing(origins, weights, wanted), set(wanted)
    origins = _untied(origins, ties, weights, source)
    forms = {name: form(leaf) for name, leaf in wanted.items() if name in saved or name in origins}
    there = {name: _form_there(weights[old], forms.get(name), cast) for name, old in origins.items()}
    opening = "state must be of the model that the weights are of"
    try:
        # Of the caller's caller, whose call the warning is about.
        taken = take(forms, there, strict=strict, opening=opening, here="the state", source=source, stacklevel=4)
    except ValueError as error:
        raise ValueError(f"{error}{_hints(forms, there, model)}") from None
    # Into the layout that the state had: kernels that depend on it give the same bits.
    new = {
        name: torch.empty_like(wanted[name], requires_grad=False).copy_(weights[origins[name]].detach())
        for name in taken
    }
    return state.replace(
        **{
            field: TensorDict({name: new.get(name, leaf) for name, leaf in tree.items()}, batch_size=tree.batch_size)
            for field, tree in trees.items()
        }
    )


def _canonical(model: nn.Module) -> dict[str, str]:
    """Return, by each name of a parameter or buffer of a module, the one that a state knows it by."""
    first: dict[int, str] = {}
    every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in every}


def _saved(model: nn.Module) -> list[str]:
    """Return the names in a module's ``state_dict``."""
    return list(model.state_dict(keep_vars=True))


def _sharing(origins: Mapping[str, str], weights: Mapping[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return the wanted name for each other name whose tensor lies in the same memory: a tied weight's."""

    def place(tensor: Tensor) -> tuple[Any, ...]:
        return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())

    known = {place(weights[old]): new for new, old in origins.items() if new in wanted and weights[old].numel()}
    others = {new: known.get(place(weights[old])) for new, old in origins.items() if new not in wanted}
    return {new: name for new, name in others.items() if name is not None}


def _untied(
    origins: Mapping[str, str], ties: Mapping[str, str], weights: Mapping[str, Tensor], source: str
) -> dict[str, str]:
    """Return the names of ``origins`` with each tied weight once, by the name that a state knows it by."""
    found: dict[str, str] = {}
    for new, old in origins.items():
        name = ties.get(new, new)
        if name in found and not torch.equal(weights[found[name]], weights[old]):
            raise ValueError(
                f"{source} must have one value for a tied weight, got two for {name!r}: as {found[name]!r} and {old!r}"
            )
        found.setdefault(name, old)
    return found


def _form_there(tensor: Tensor, here: Form | None, cast: bool) -> Form:
    """Return the form of a tensor, with the dtype that it is cast to where it may be."""
    own = form(tensor)
    floats = here is not None and tensor.is_floating_point() and getattr(torch, here.dtype).is_floating_point
    return Form(own.shape, here.dtype) if cast and floats and here is not None else own


def _hints(wanted: Mapping[str, Form], there: Mapping[str, Form], model: nn.Module | None) -> str:
    """Say what may help: names that are near to each other, a cast, and the module."""
    missing, extra = [name for name in wanted if name not in there], [name for name in there if name not in wanted]
    hints = [
        f"{name!r} may be {near[0]!r} there" for name in missing[:3] if (near := get_close_matches(name, extra, 1))
    ]
    if any(name in there and there[name] != form and there[name].shape == form.shape for name, form in wanted.items()):
        hints.append("cast=True converts floating-point values")
    if model is None and (missing or extra):
        hints.append("model= says which weights are tied, and which buffers are not saved")
    return f" ({'; '.join(hints)})" if hints else ""


def _check_state(state: Any) -> None:
    if not isinstance(state, TrainState):
        raise TypeError(f"state must be a TrainState (ps.init_state makes one), got {type(state).__name__}")
