"""purestep: pure-functional training for PyTorch.

A training step is a function ``(state, batch) -> (state, metrics)`` that reads nothing but its arguments and writes
nothing but its results.
"""

from purestep import random
from purestep.execution.compile import compile
from purestep.functional import BoundModule, load_into
from purestep.gradients import Gradient
from purestep.objectives import Loss, Mean, mean, merge, values
from purestep.optimizers import adamw, matrices_only, sgd
from purestep.state import TrainState, init_state, init_state_from_meta
from purestep.step import Context, eval_step, grad_step, loss_step, train_step, update_step
from purestep.transforms import clip_by_global_norm
from purestep.updates import GradientTransformation, Optimizer, UpdateContext, chain

__all__ = [
    "BoundModule",
    "Context",
    "Gradient",
    "GradientTransformation",
    "Loss",
    "Mean",
    "Optimizer",
    "TrainState",
    "UpdateContext",
    "adamw",
    "chain",
    "clip_by_global_norm",
    "compile",
    "eval_step",
    "grad_step",
    "init_state",
    "init_state_from_meta",
    "load_into",
    "loss_step",
    "matrices_only",
    "mean",
    "merge",
    "random",
    "sgd",
    "train_step",
    "update_step",
    "values",
]
