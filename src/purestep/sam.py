"""Sharpness-aware minimisation: the gradient of where the loss is worst nearby, applied here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from purestep import _tree, updates
from purestep._accumulate import Accumulation, Weights, read_options
from purestep._forward import Metrics, Objective
from purestep.functional import Trainable
from purestep.gradients import Gradient
from purestep.precision import DynamicLossScale
from purestep.state import TrainState
from purestep.step import Step, update_step
from purestep.updates import Hyperparameter, Optimizer, Tree, UpdateContext

PERTURBED = "perturbed_loss"


def sam_step(
    model: nn.Module,
    objective: Objective,
    optimizer: Optimizer,
    *,
    rho: Hyperparameter = 0.05,
    adaptive: bool = False,
    eta: Hyperparameter = 0.01,
    accumulate: int | str = 1,
    microbatch: int | None = None,
    weights: Weights | None = None,
    loop: str = "python",
    trainable: Trainable = None,
    precision: str = "float32",
    on_nonfinite: str = "raise",
    loss_scale: DynamicLossScale | None = None,
) -> Step:
    r"""Return the pure function ``(state, batch) -> (state, metrics)`` of sharpness-aware minimisation.

    With g the batch's gradient at the parameters θ, ρ the radius, and the norm over all trainable parameters::

        e = ρ g / ‖g‖
        θ ← what the optimizer makes of θ and the gradient at θ + e

    and with ``adaptive``, where T = |θ| + η entry by entry::

        e = ρ T² g / ‖T g‖

    e is zero where the gradient is. Source: Foret et al., `Sharpness-aware minimization for efficiently improving
    generalization <https://arxiv.org/abs/2010.01412>`_ (2021), with e a constant for the second gradient as there;
    adaptive: Kwon et al., `ASAM <https://arxiv.org/abs/2102.11600>`_ (2021), element-wise, with T for all parameters
    (their program has it for weights alone).

    Both gradients are of the whole batch, whatever the micro-batches, under the same random draws: a dropout mask
    belongs to ``state.calls``, and there is one call. Buffers are those after the first pass; a BatchNorm's running
    statistics do not see θ + e. The step costs two gradients; with ``rho=0`` it is :func:`train_step`.

    Not smooth where g = 0: the derivative of the norm is taken as zero there; with ``adaptive``, where a parameter is
    zero as well. Derivatives through the step are those of what it does: e moves with θ.

    Args:
        model, objective, optimizer: as in :func:`train_step`. The optimizer is given the state and parameters at θ.
        rho: a number of at least 0, a 0-d tensor, or a schedule.
        adaptive: as said; radii are then larger, 0.5 to 2 in the paper.
        eta: η, a number of at least 0, a 0-d tensor, or a schedule; read only with ``adaptive``.
        accumulate, microbatch, weights, loop, trainable, precision, on_nonfinite, loss_scale: as in
            :func:`train_step`. The policy looks at the loss at θ and at the gradient at θ + e, which is NaN where the
            norm of the first gradient is not finite.

    Returns:
        A pure function. Its metrics are those of :func:`train_step`, at θ, and ``"perturbed_loss"``, the loss at
        θ + e. Its attribute ``optimizer`` is the optimizer.

    Raises:
        TypeError, ValueError, NonFiniteError: as :func:`train_step`; ``rho`` or ``eta`` out of range, ``adaptive`` is
            no bool; at the call, a metric of the objective that is called ``"perturbed_loss"``.
    """
    updates.check_hyperparameter("rho", rho)
    updates.check_hyperparameter("eta", eta)
    updates.check_flag("adaptive", adaptive)
    options = read_options(accumulate, microbatch, weights, loop, trainable, precision)
    gradient = Accumulation(model, objective, options, divide=True, scaled=loss_scale is not None)
    update = update_step(optimizer, on_nonfinite=on_nonfinite, loss_scale=loss_scale)

    def sam_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        first = gradient(state, batch)
        if PERTURBED in first.metrics:
            raise ValueError(f"a metric of the objective is named {PERTURBED!r}, which the step reports: rename it")
        context = UpdateContext(state.step, state.key, first.metrics["loss"].value(), state.calls, state.aux)
        radius = updates.resolve(rho, context)
        scale = updates.resolve(eta, context) if adaptive else None
        grads = first.mean()
        params = _tree.select(state.params, _tree.as_dict(grads))
        moved = _tree.overlay(state.params, _perturbed(params, grads, radius, scale))
        second = gradient(state.replace(params=moved), batch)
        metrics = {**first.metrics, PERTURBED: second.metrics["loss"]}
        return update(state, Gradient(second.total, second.weight, first.buffers, metrics))

    sam_step.optimizer = optimizer  # type: ignore[attr-defined]  # for a checkpoint to record
    return sam_step


def _perturbed(params: Tree, grads: Tree, rho: float | Tensor, eta: float | Tensor | None) -> Tree:
    """Return ``θ + ρ g / ‖g‖``, or with ``eta`` ``θ + ρ T² g / ‖T g‖``."""
    if eta is not None:
        sizes = _tree.map_leaves(lambda p: p.abs() + updates.as_tensor(eta, p).to(p.dtype), params)
        grads = _tree.map_leaves(torch.mul, sizes, grads)
    norm = updates.safe_sqrt(updates.squares(grads).sum())
    some = norm > 0
    # The inner `where` keeps the derivative finite where the gradient is zero. A norm that overflowed would make a step
    # of no perturbation: it makes one of NaN, which the policy meets.
    scale = torch.where(some, rho / torch.where(some, norm, torch.ones_like(norm)), 0.0)
    scale = torch.where(torch.isfinite(norm), scale, torch.nan)
    if eta is not None:
        grads = _tree.map_leaves(torch.mul, sizes, grads)
    return _tree.map_leaves(lambda p, g: p + (g * scale).to(p.dtype), params, grads)
