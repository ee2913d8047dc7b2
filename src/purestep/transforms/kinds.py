"""What a parameter is: a weight, a bias, the gain of a norm, an embedding; and which of its dimensions make a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from purestep import _checks, functional

_KINDS = ("norms", "embeddings", "biases", "weights")  # in their precedence
Axes = Callable[[str, Tensor], tuple[int, ...]]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
# Of a weight (inputs, outputs, ...) a unit lies in dimension 1.
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class ByName:
    """A function ``(name, parameter) -> value`` that was read off a model, and knows its parameters' names.

    Attributes:
        table: the values by the parameters' names.
    """

    def __init__(self, written: str, table: Mapping[str, object]) -> None:
        self.table, self._written = dict(table), written

    def __call__(self, name: str, parameter: Tensor) -> object:
        if name not in self.table:
            raise ValueError(f"{self._written} knows no parameter {name!r}{_checks.near_misses(name, self.table)}")
        return self.table[name]

    def __repr__(self) -> str:
        return self._written


def by_kind(model: nn.Module) -> ByName:
    """Return the labels of a model's parameters by their kind, for :func:`partition`.

    - ``"norms"``: what belongs to a BatchNorm, InstanceNorm, LayerNorm, GroupNorm or RMSNorm, or to a module whose
      class is called so (``...Norm``, as in other libraries), gains and shifts both;
    - ``"embeddings"``: what belongs to an ``nn.Embedding`` or ``nn.EmbeddingBag``;
    - ``"biases"``: other parameters whose own name has ``bias`` in it (``bias``, ``in_proj_bias``, ``bias_ih_l0``);
    - ``"weights"``: all others.

    A weight tied between modules has the first of these kinds that one of them gives it. The model is only read.

    Returns:
        A function ``(name, parameter) -> label``; its ``table`` is a dict of all of them.

    Raises:
        TypeError, ValueError: ``model`` is no plain module with parameters.
    """
    functional.check_module(model)
    kinds: dict[int, str] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        found = _kind(*_owner(model, path))
        kinds[id(parameter)] = min(found, kinds.get(id(parameter), found), key=_KINDS.index)
    table = {name: kinds[id(parameter)] for name, parameter in model.named_parameters()}
    return ByName(f"by_kind({type(model).__name__})", table)


def unit_axes(name: str, parameter: Tensor) -> tuple[int, ...]:
    """Return the dimensions of one unit: all but the first of a weight, ``(outputs, inputs, ...)`` as torch keeps it
    for linear layers, convolutions and embeddings; all of a vector."""
    return tuple(range(1 if parameter.dim() > 1 else 0, parameter.dim()))


def unit_axes_of(model: nn.Module) -> ByName:
    """Return :func:`unit_axes` for a model with transposed convolutions, whose weights are ``(inputs, outputs, ...)``.

    Returns:
        A function ``(name, parameter) -> dimensions``.

    Raises:
        TypeError, ValueError: ``model`` is no plain module with parameters.
    """
    functional.check_module(model)
    table: dict[str, object] = {}
    for path, parameter in model.named_parameters():
        axes = unit_axes(path, parameter)
        transposed = isinstance(_owner(model, path)[0], _TRANSPOSED) and parameter.dim() > 1
        table[path] = (0, *axes[1:]) if transposed else axes
    return ByName(f"unit_axes_of({type(model).__name__})", table)


def _kind(owner: nn.Module, name: str) -> str:
    if isinstance(owner, _NORMS) or type(owner).__name__.endswith("Norm"):
        return "norms"
    if isinstance(owner, _EMBEDDINGS):
        return "embeddings"
    return "biases" if "bias" in name else "weights"


def _owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that a parameter belongs to and its name there; a parametrized one's own name and module."""
    if ".parametrizations." in f".{path}":  # as torch.nn.utils.parametrize names them
        before, _, after = f".{path}".rpartition(".parametrizations.")
        return model.get_submodule(before.removeprefix(".")), after.split(".")[0]
    before, _, name = path.rpartition(".")
    return model.get_submodule(before), name
