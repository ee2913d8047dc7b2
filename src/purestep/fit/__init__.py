"""The loop around a step: progress, validation, logging and a checkpoint. A thin shell; what it calls is pure."""

from purestep.fit._interrupt import Stopped
from purestep.fit._run import Fit
from purestep.fit.evaluation import evaluate
from purestep.fit.loop import fit

__all__ = ["Fit", "Stopped", "evaluate", "fit"]
