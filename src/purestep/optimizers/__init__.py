"""Optimizers: maps from gradients to new parameters, one file a family."""

from purestep.optimizers.adam import adamw as adamw
from purestep.optimizers.adam import matrices_only as matrices_only
from purestep.optimizers.sgd import sgd as sgd
