"""The laws that every part of purestep keeps, as assertions and Hypothesis strategies for one's own parts.

A bundle (``check_step``, ``check_objective``, ``check_optimizer``, ``check_transformation``, ``check_schedule``,
``check_order``, ``check_resumable``) looks at all laws of its subject and raises :class:`LawViolation`, an
``AssertionError`` whose text says which do not hold, on what smallest input, and by how much. The rest look at one law
each. They need the extra ``laws``: ``pip install "purestep[laws]"``.
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError('purestep.laws needs hypothesis: pip install "purestep[laws]"') from error

from purestep.laws._compare import LawViolation
from purestep.laws._report import Finding, LawDoesNotApplyError, LawReport
from purestep.laws.bundle import check_step
from purestep.laws.objectives import check_objective
from purestep.laws.optimizers import check_optimizer, check_transformation
from purestep.laws.orders import check_order
from purestep.laws.parametrize import parametrize_with_laws
from purestep.laws.problems import Problem, make_batch, make_model, make_train_state
from purestep.laws.resuming import check_resumable
from purestep.laws.schedules import check_schedule, schedules
from purestep.laws.splits import check_accumulation, check_split_invariant, partition
from purestep.laws.steps import check_ensemble, check_execution_invariant, check_pure, check_same
from purestep.laws.strategies import (
    batches,
    gradient_transformations,
    models,
    objectives,
    optimizers,
    orders,
    partitions,
    problems,
    train_states,
)

__all__ = [
    "Finding",
    "LawDoesNotApplyError",
    "LawReport",
    "LawViolation",
    "Problem",
    "batches",
    "check_accumulation",
    "check_ensemble",
    "check_execution_invariant",
    "check_objective",
    "check_optimizer",
    "check_order",
    "check_pure",
    "check_resumable",
    "check_same",
    "check_schedule",
    "check_split_invariant",
    "check_step",
    "check_transformation",
    "gradient_transformations",
    "make_batch",
    "make_model",
    "make_train_state",
    "models",
    "objectives",
    "optimizers",
    "orders",
    "parametrize_with_laws",
    "partition",
    "partitions",
    "problems",
    "schedules",
    "train_states",
]
