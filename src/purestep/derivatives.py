"""Derivatives of an objective at a state: its gradient, derivatives along a direction, and of second order.

Each is a pure function of ``(state, batch)`` on the same bound model as a step, with the same random draws, and can be
vmapped, differentiated and compiled like one. Buffers after the forward are dropped; :func:`purestep.grad_step` has
them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from purestep import _flat, _forward, _tree, gradients
from purestep._forward import Forward, Objective
from purestep.functional import Trainable, check_same_names, trainable_names
from purestep.objectives import Loss, Mean
from purestep.state import TrainState

Params = dict[str, Tensor]


def value_and_grad(
    objective: Objective, model: nn.Module, *, trainable: Trainable = None, training: bool = True
) -> Callable[[TrainState, Any], tuple[Tensor, TensorDict]]:
    """Return ``(state, batch) -> (value, grads)``: the loss and its gradient, divided.

    Args:
        objective: ``(model, batch) -> loss`` or ``(model, batch, context) -> loss``, as in :func:`purestep.loss_step`.
        model: any ``nn.Module``; its structure is copied, it is never modified.
        trainable: the parameters to differentiate by, as in :func:`purestep.grad_step`; the others are constants and
            cost no gradient work.
        training: the mode of the forward, as in :class:`purestep.BoundModule`.

    Returns:
        A pure function. ``value`` is 0-d, ``grads`` a flat TensorDict by parameter name.
    """
    function = Differentiable(model, objective, trainable, training)

    def value_and_grad(state: TrainState, batch: Any) -> tuple[Tensor, TensorDict]:
        frozen, params = function.split(state)
        (grads,), loss, _ = gradients.gradients_of(
            lambda moved: (function.loss({**frozen, **moved}, state, batch), ()),
            _tree.select(state.params, params),
            (frozen, state.buffers, batch),
            outputs=gradients.value,
        )
        return loss.value(), grads

    return value_and_grad


def jvp(
    model: nn.Module, objective: Objective, *, trainable: Trainable = None, training: bool = True
) -> Callable[[TrainState, Any, TensorDictBase], tuple[Tensor, Tensor]]:
    """Return ``(state, batch, tangent) -> (value, slope)``: the loss, and its derivative along ``tangent``, both 0-d.

    One forward pass in forward mode; no gradient is held. Arguments are those of :func:`value_and_grad`; ``tangent``
    is a flat TensorDict with the names, shapes and dtypes of the trainable parameters.

    Raises:
        ValueError: at the call, a tangent of other names, shapes or dtypes.
        RuntimeError: at the call, inside a reverse-mode derivative: the gradient of the slope is :func:`hvp`. (torch
            2.13 differentiates LayerNorm's forward mode wrongly. While compiling it is not seen, and not refused.)
    """
    function = Differentiable(model, objective, trainable, training)

    def jvp(state: TrainState, batch: Any, tangent: TensorDictBase) -> tuple[Tensor, Tensor]:
        frozen, params = function.split(state)
        _refuse_reverse_over_forward(params)
        with math_attention():
            both: Any = torch.func.jvp(
                lambda moved: function.loss({**frozen, **moved}, state, batch).value(),
                (params,),
                (_tangent(tangent, params),),
            )
        value, slope = both
        return value, slope

    return jvp


def hvp(
    model: nn.Module, objective: Objective, *, trainable: Trainable = None, training: bool = True
) -> Callable[[TrainState, Any, TensorDictBase], TensorDict]:
    """Return ``(state, batch, tangent) -> H v``: the loss's Hessian times ``tangent``, a flat TensorDict like it.

    ``H v = ∇⟨∇loss, v⟩``, reverse over reverse, since more operations have a second backward than have forward-mode
    rules for their backward (``F.mse_loss`` has none). ``nn.EmbeddingBag`` and ``F.ctc_loss`` have neither. Arguments
    and errors are those of :func:`jvp`, but that it can be differentiated again. Source: Pearlmutter, "Fast exact
    multiplication by the Hessian" (1994).
    """
    function = Differentiable(model, objective, trainable, training)

    def hvp(state: TrainState, batch: Any, tangent: TensorDictBase) -> TensorDict:
        frozen, params = function.split(state)
        along = _tangent(tangent, params)

        def slope(moved: Params) -> Tensor:
            gradient = torch.func.grad(lambda inner: function.loss({**frozen, **inner}, state, batch).value())(moved)
            return _inner(gradient, along)

        with math_attention():
            return _like(tangent, torch.func.grad(slope)(params))

    return hvp


def ggn_vp(
    model: nn.Module,
    outputs: Callable[..., Any],
    loss: Callable[[Any, Any], Any],
    *,
    trainable: Trainable = None,
    training: bool = True,
) -> Callable[[TrainState, Any, TensorDictBase], TensorDict]:
    """Return ``(state, batch, tangent) -> G v``: the generalised Gauss-Newton matrix times ``tangent``.

    ``G = Jᵀ H J``, where J is the derivative of the outputs by the parameters and H the Hessian of the loss by the
    outputs. It is positive semi-definite where the loss is convex in the outputs. The objective is given in these two
    parts. J v is forward mode, Jᵀ reverse mode. Source: Schraudolph, "Fast curvature matrix-vector products" (2002).

    Args:
        model, trainable, training: as in :func:`value_and_grad`.
        outputs: ``(model, batch) -> outputs`` (or with the context as a third argument): a tensor or a nesting of
            tensors.
        loss: ``(outputs, batch) -> ps.mean(...)``, a sum of such means, or a 0-d tensor; it reads no parameters.

    Raises:
        TypeError: at the call, outputs that are not tensors.
        ValueError, RuntimeError: as in :func:`jvp`.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function (outputs, batch) -> loss, got {loss!r}")
    function = Differentiable(model, _as_metrics(outputs), trainable, training)

    def ggn_vp(state: TrainState, batch: Any, tangent: TensorDictBase) -> TensorDict:
        frozen, params = function.split(state)
        _refuse_reverse_over_forward(params)
        forms: list[Any] = []

        def leaves_of(moved: Params) -> list[Tensor]:
            found = function.metrics({**frozen, **moved}, state, batch)
            forms[:] = [found[_FORM].form]
            return [found[str(position)] for position in range(len(found) - 1)]

        def slopes_of(leaves: list[Tensor]) -> list[Tensor]:
            return torch.func.grad(lambda inner: _value_of(loss(_flat.unflatten(forms[0], inner), batch)))(leaves)

        with math_attention():
            pushed: Any = torch.func.jvp(leaves_of, (params,), (_tangent(tangent, params),))
            pulled: Any = torch.func.vjp(leaves_of, params)
            leaves, pull_back = pulled
            # H is symmetric, and its product in reverse mode needs less of the loss than one in forward mode.
            curved: Any = torch.func.vjp(slopes_of, leaves)
            (bent,) = curved[1](pushed[1])
            (product,) = pull_back(bent)
        return _like(tangent, product)

    return ggn_vp


class Differentiable:
    """An objective as a function of a state's parameters."""

    def __init__(self, model: nn.Module, objective: Objective, trainable: Trainable, training: bool) -> None:
        self.forward = Forward(model, objective, training=training)
        self.names = trainable_names(model, trainable)

    def split(self, state: TrainState) -> tuple[Params, Params]:
        """Return the frozen and the trainable parameters of a state of this model."""
        self.forward.check(state)
        params, chosen = _tree.as_dict(state.params), set(self.names)
        frozen = {name: leaf for name, leaf in params.items() if name not in chosen}
        return frozen, {name: params[name] for name in self.names}

    def loss(self, params: Params, state: TrainState, batch: Any) -> Loss | Mean:
        (loss, _), _ = self.forward(params, state.buffers, batch, state, bare=True)
        return loss

    def metrics(self, params: Params, state: TrainState, batch: Any) -> dict[str, Any]:
        (_, metrics), _ = self.forward(params, state.buffers, batch, state, bare=True)
        return metrics


def _refuse_reverse_over_forward(params: Params) -> None:
    """torch 2.13's derivative of LayerNorm's forward mode, taken in reverse mode, is wrong, and says nothing."""
    if torch.compiler.is_compiling():
        return
    levels = torch._C._functorch.get_interpreter_stack() or []
    reverse = any(level.key() == torch._C._functorch.TransformType.Grad for level in levels)
    if reverse or (torch.is_grad_enabled() and any(leaf.requires_grad for leaf in params.values())):
        raise RuntimeError(
            "a forward-mode derivative is not differentiated in reverse mode, which torch gets wrong for LayerNorm: "
            "the gradient of jvp's slope is hvp, and torch.func.jvp around it is right"
        )


def math_attention() -> contextlib.AbstractContextManager[Any]:
    """Attention written out in plain operations: the fused kernels have neither forward mode, nor a second derivative,
    nor a rule for vmap."""
    return sdpa_kernel(SDPBackend.MATH)


_FORM = "form"


@dataclass(frozen=True)
class _Form:
    """The nesting of an objective's outputs, on its way out among the metrics. It passes for a metric, and is never
    pooled or read as one: the batch is whole."""

    form: Any

    def merge(self, other: Any) -> Any:
        raise NotImplementedError

    def value(self) -> Tensor:
        raise NotImplementedError


pytree.register_pytree_node(_Form, lambda form: ([], form.form), lambda _, form: _Form(form))


def _as_metrics(outputs: Callable[..., Any]) -> Objective:
    """Return an objective whose metrics are the outputs: a forward passes them on as they are."""
    if not callable(outputs):
        raise TypeError(f"outputs must be a function (model, batch) -> outputs, got {outputs!r}")
    call, takes_context = _forward._reader(outputs)

    def objective(model: nn.Module, batch: Any, *context: Any) -> Any:
        leaves, form = _flat.flatten(call(model, batch, *context), "outputs")
        return torch.zeros(()), {**{str(i): leaf for i, leaf in enumerate(leaves)}, _FORM: _Form(form)}

    if takes_context:
        return lambda model, batch, context: objective(model, batch, context)
    return lambda model, batch: objective(model, batch)


def _value_of(loss: Any) -> Tensor:
    if isinstance(loss, (Mean, Loss)):
        return loss.value()
    if isinstance(loss, Tensor) and loss.dim() == 0:
        return loss
    raise TypeError(
        f"loss must return ps.mean(values), a sum of such means, or a 0-d tensor, got {type(loss).__name__}"
    )


def _tangent(tangent: Any, params: Params) -> Params:
    """Return a tangent by name, in the order of the parameters.

    Raises:
        ValueError: other names, shapes or dtypes than theirs.
    """
    if not hasattr(tangent, "keys"):
        raise TypeError(f"tangent must be a flat TensorDict by parameter name, got {type(tangent).__name__}")
    check_same_names("tangent", tangent.keys(), "set of trainable parameters", params)
    for name, leaf in params.items():
        got = tangent[name]
        if (got.shape, got.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"tangent[{name!r}] must have the parameter's shape and dtype, {tuple(leaf.shape)} {leaf.dtype}, got "
                f"{tuple(got.shape)} {got.dtype}"
            )
    return {name: tangent[name] for name in params}


def _inner(first: Params, second: Params) -> Tensor:
    return torch.stack([(leaf * second[name]).sum() for name, leaf in first.items()]).sum()


def _like(tangent: TensorDictBase, product: Params) -> TensorDict:
    return TensorDict({name: product[name] for name in tangent.keys()}, batch_size=[])  # noqa: SIM118
