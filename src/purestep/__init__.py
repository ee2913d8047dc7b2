"""purestep: pure-functional training for PyTorch.

A training step is a function ``(state, batch) -> (state, metrics)`` that reads nothing but its arguments and writes
nothing but its results.
"""

from purestep import checkpoint, data, measure, metrics, optimizers, random, schedules, transforms
from purestep._forward import Context
from purestep.derivatives import ggn_vp, hvp, jvp, value_and_grad
from purestep.draws import UnkeyedDrawError
from purestep.execution.compile import compile, compiler_missing
from purestep.fit import Stopped, evaluate, fit
from purestep.functional import BoundModule, load_into
from purestep.gradients import Gradient
from purestep.initialisation import init_params
from purestep.lbfgs import lbfgs_step
from purestep.nonfinite import NonFiniteError
from purestep.objectives import Loss, Mean, mean, merge, once, values
from purestep.optimizers import adam, adamw, matrices_only, sgd
from purestep.per_example import ExampleGradients, per_example_grads, per_example_norms
from purestep.precision import DynamicLossScale
from purestep.remat import remat
from purestep.sam import sam_step
from purestep.state import DonatedStateError, TrainState, init_state, init_state_from_meta
from purestep.step import eval_step, grad_step, loss_step, train_step, update_step
from purestep.transforms import clip_by_global_norm
from purestep.updates import GradientTransformation, Optimizer, UpdateContext, chain

__all__ = [
    "BoundModule",
    "Context",
    "DonatedStateError",
    "DynamicLossScale",
    "ExampleGradients",
    "Gradient",
    "GradientTransformation",
    "Loss",
    "Mean",
    "NonFiniteError",
    "Optimizer",
    "Stopped",
    "TrainState",
    "UnkeyedDrawError",
    "UpdateContext",
    "adam",
    "adamw",
    "chain",
    "checkpoint",
    "clip_by_global_norm",
    "compile",
    "compiler_missing",
    "data",
    "eval_step",
    "evaluate",
    "fit",
    "ggn_vp",
    "grad_step",
    "hvp",
    "init_params",
    "init_state",
    "init_state_from_meta",
    "jvp",
    "lbfgs_step",
    "load_into",
    "loss_step",
    "matrices_only",
    "mean",
    "measure",
    "merge",
    "metrics",
    "once",
    "optimizers",
    "per_example_grads",
    "per_example_norms",
    "random",
    "remat",
    "sam_step",
    "schedules",
    "sgd",
    "train_step",
    "transforms",
    "update_step",
    "value_and_grad",
    "values",
]
