"""The laws that every part of purestep keeps, as assertions and Hypothesis strategies for one's own parts.

Each assertion raises :class:`LawViolation`, an ``AssertionError`` that says which law does not hold, on what, and by
how much. They need the extra ``laws``: ``pip install "purestep[laws]"``.
"""

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError('purestep.laws needs hypothesis: pip install "purestep[laws]"') from error

from purestep.laws._compare import LawViolation
from purestep.laws.objectives import check_objective
from purestep.laws.optimizers import check_optimizer, check_transformation
from purestep.laws.schedules import check_schedule, schedules
from purestep.laws.splits import check_accumulation, check_split_invariant, partition
from purestep.laws.steps import check_ensemble, check_execution_invariant, check_pure, check_same
from purestep.laws.strategies import Problem, batches, models, objectives, partitions, problems

__all__ = [
    "LawViolation",
    "Problem",
    "batches",
    "check_accumulation",
    "check_ensemble",
    "check_execution_invariant",
    "check_objective",
    "check_optimizer",
    "check_pure",
    "check_same",
    "check_schedule",
    "check_split_invariant",
    "check_transformation",
    "models",
    "objectives",
    "partition",
    "partitions",
    "problems",
    "schedules",
]
