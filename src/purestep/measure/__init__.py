"""The measuring room: how long a function takes, which of several is faster, and what a training step costs.

Figures come with their spread, their settings and the machine that they are of.
"""

from purestep.measure.ceilings import Ceilings, ceilings
from purestep.measure.comparing import Comparison, Ratio, compare
from purestep.measure.memory import MemoryUse, memory
from purestep.measure.report import StepReport, report
from purestep.measure.suite import Benchmark, benchmark
from purestep.measure.timing import Measurement, time

__all__ = [
    "Benchmark",
    "Ceilings",
    "Comparison",
    "Measurement",
    "MemoryUse",
    "Ratio",
    "StepReport",
    "benchmark",
    "ceilings",
    "compare",
    "memory",
    "report",
    "time",
]
