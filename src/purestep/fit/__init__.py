"""The loop around a step: progress, validation, logging and a checkpoint. A thin shell; what it calls is pure."""

from purestep.fit.evaluation import evaluate
from purestep.fit.loop import Fit, fit

__all__ = ["Fit", "evaluate", "fit"]
