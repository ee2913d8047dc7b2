"""The gradient of each example of a batch, and its norm: an objective's derivatives, vmapped over batches of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from tensordict import TensorDict
from torch import Tensor, nn

from purestep import _batches, _checks, _flat, _tree, gradients
from purestep._forward import Objective
from purestep.derivatives import Differentiable, Params, math_attention
from purestep.functional import Trainable
from purestep.objectives import Bare, Loss, Mean
from purestep.state import TrainState


@dataclass(frozen=True, eq=False)
class ExampleGradients:
    """The gradient of each example, undivided: for each term of the loss its totals, and its weights.

    Attributes:
        total: for each term, the gradients of the examples' totals: a flat TensorDict by parameter name with leading
            dimension ``(examples,)``.
        weight: for each term, the examples' weights, ``(examples,)``.
    """

    total: tuple[TensorDict, ...]
    weight: tuple[Tensor, ...]

    def gradient(self) -> TensorDict:
        """Return the gradient of the batch: ``Σₜ (Σᵢ totalₜᵢ) / (Σᵢ weightₜᵢ)`` over terms t and examples i."""
        shares = [
            _tree_of(total, lambda leaf, w=w: (leaf.sum(0) / w.sum(0)).to(leaf.dtype)) for total, w in self._terms
        ]
        return _sum_of(shares, ())

    def each(self) -> TensorDict:
        """Return the gradient of each example's own loss, ``Σₜ totalₜᵢ / weightₜᵢ``, with leading dimension
        ``(examples,)``. NaN for an example of weight zero: it has no loss."""
        shares = [_tree_of(total, lambda leaf, w=w: (leaf / _wide(w, leaf)).to(leaf.dtype)) for total, w in self._terms]
        return _sum_of(shares, self.weight[0].shape)

    @property
    def _terms(self) -> list[tuple[TensorDict, Tensor]]:
        return list(zip(self.total, self.weight, strict=True))


pytree.register_pytree_node(
    ExampleGradients,
    lambda g: ([g.total, g.weight], None),
    lambda children, _: ExampleGradients(*children),
    serialized_type_name="purestep.ExampleGradients",
)


def per_example_grads(
    model: nn.Module,
    objective: Objective,
    *,
    trainable: Trainable = None,
    training: bool = True,
    chunk_size: int | None = None,
) -> Callable[[TrainState, Any], ExampleGradients]:
    """Return ``(state, batch) -> ExampleGradients``: the gradient of every example, vmapped.

    Example i is a batch of one whose dropout masks are those it has in the whole batch. For an objective that is a sum
    over examples, ``per_example_grads(...)(state, batch).gradient()`` is the gradient of the batch, to rounding. (A
    draw that is not by example, as of ``torch.randn`` in the forward, is another one in a batch of one.)

    Args:
        model, objective, trainable, training: as in :func:`value_and_grad`. The loss must be a ``Mean`` or ``Loss``.
        chunk_size: how many examples are taken at a time; all by default. Memory for activations grows with it.

    Raises:
        ValueError: at once, a module that takes statistics over the batch (BatchNorm in training mode), where an
            example has no gradient of its own; at the call, a batch whose leaves disagree about the examples.
        TypeError: at the call, an objective that returns a bare tensor, whose weight nobody knows.
    """
    one = _OneExample(model, objective, trainable, training)
    _check_chunk_size(chunk_size)

    def gradient(state: TrainState, form: Any, index: Tensor, *leaves: Tensor) -> Any:
        trees, loss = one.gradients(state, form, index, leaves)
        if isinstance(loss, Bare):
            raise TypeError(
                "the objective returned a bare tensor, and what an example weighs in it nobody knows: return "
                'ps.mean(values) of the unreduced values, for instance of F.cross_entropy(..., reduction="none")'
            )
        return tuple(_tree.as_dict(tree) for tree in trees), tuple(term.weight for term in loss.terms)

    def per_example_grads(state: TrainState, batch: Any) -> ExampleGradients:
        totals, weights = one.over(gradient, state, batch, chunk_size)
        sizes = [weights[0].shape[0]]
        return ExampleGradients(tuple(TensorDict(total, batch_size=sizes) for total in totals), tuple(weights))

    return per_example_grads


def per_example_norms(
    model: nn.Module,
    objective: Objective,
    *,
    trainable: Trainable = None,
    training: bool = True,
    chunk_size: int | None = None,
) -> Callable[[TrainState, Any], Tensor]:
    """Return ``(state, batch) -> norms``, ``(examples,)``: the norm of the gradient of each example's own loss.

    Of ``chunk_size`` examples at a time, whose gradients alone are in memory. Everything else is as in
    :func:`per_example_grads`; a bare tensor as the loss is allowed, and an example of weight zero has the norm NaN.
    """
    one = _OneExample(model, objective, trainable, training)
    _check_chunk_size(chunk_size)

    def norm(state: TrainState, form: Any, index: Tensor, *leaves: Tensor) -> Tensor:
        trees, loss = one.gradients(state, form, index, leaves)
        shares = [
            _tree_of(tree, lambda leaf, w=term.weight: leaf / w) for tree, term in zip(trees, loss.terms, strict=True)
        ]
        own = _sum_of(shares, ())
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(leaf) for leaf in own.values()]))

    def per_example_norms(state: TrainState, batch: Any) -> Tensor:
        return one.over(norm, state, batch, chunk_size)

    return per_example_norms


class _OneExample(Differentiable):
    """The same for each example of a batch, as a batch of one."""

    def __init__(self, model: nn.Module, objective: Objective, trainable: Trainable, training: bool) -> None:
        super().__init__(model, objective, trainable, training)
        whole_mode = training and not model.training  # the module is put into training mode whole
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.running_mean is not None and not (training and (module.training or whole_mode))
                if not frozen:
                    raise ValueError(
                        f"model must not take statistics over the batch, and {name!r} is a {type(module).__name__} "
                        "that does, so that an example has no gradient of its own: give training=False, or put it "
                        "into evaluation mode, or use GroupNorm"
                    )

    def gradients(
        self, state: TrainState, form: Any, index: Tensor, leaves: tuple[Tensor, ...]
    ) -> tuple[tuple[TensorDict, ...], Loss | Mean]:
        frozen, params = self.split(state)
        batch = _flat.unflatten(form, [leaf.unsqueeze(0) for leaf in leaves])

        def function(moved: Params) -> tuple[Loss | Mean, Any]:
            (loss, _), _ = self.forward(
                {**frozen, **moved}, state.buffers, batch, state, bare=True, first=index, count=1
            )
            return loss, ()

        trees, loss, _ = gradients.gradients_of(
            function, _tree.select(state.params, params), (frozen, state.buffers, batch), outputs=gradients.totals
        )
        return trees, loss

    def over(self, function: Callable[..., Any], state: TrainState, batch: Any, chunk_size: int | None) -> Any:
        """Return ``function(state, form, index, *leaves)`` for each example, stacked."""
        length = _batches.batch_length(batch)
        if length == 0:
            raise ValueError("batch must have at least one example, got none")
        leaves, form = _flat.flatten(batch, "batch")
        index = torch.arange(length, device=leaves[0].device)
        call = torch.vmap(lambda i, *rest: function(state, form, i, *rest), chunk_size=chunk_size)
        with math_attention():
            return call(index, *leaves)


def _check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None:
        _checks.integer("chunk_size", chunk_size, minimum=1)


def _wide(weight: Tensor, leaf: Tensor) -> Tensor:
    return weight.reshape(weight.shape + (1,) * (leaf.dim() - 1))


def _tree_of(tree: TensorDict, fn: Callable[..., Tensor]) -> Params:
    return {name: fn(leaf) for name, leaf in tree.items()}


def _sum_of(trees: list[Params], batch_size: Sequence[int]) -> TensorDict:
    whole = dict(trees[0])
    for tree in trees[1:]:
        whole = {name: leaf + tree[name] for name, leaf in whole.items()}
    return TensorDict(whole, batch_size=batch_size)
