"""What the tests of purestep.measure share: a clock that only the functions move, and a machine that is no one's."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from purestep import measure
from purestep.measure._machine import Machine, machine

MACHINE = Machine("a processor", 4, 8 << 30, "", "Linux", "3.12", "2.13", "")
ROOF = measure.Ceilings({"float32": 1e11, "float64": 5e10}, 1e10, "cpu", 1, MACHINE, "2026-01-01")
ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def roof():
    """Ceilings that nobody measured, of this machine."""
    return dataclasses.replace(ROOF, machine=machine(torch.device("cpu")), threads=torch.get_num_threads())


def noop():
    return None


def fails(*args):
    raise KeyError("inside")


class Clock:
    """Stands still but for what the functions made by ``takes`` let pass."""

    def __init__(self):
        self.now = 0.0
        self.slowness = 1.0
        self.called = []

    def __call__(self):
        return self.now

    def takes(self, seconds, name="f"):
        def fn(*args):
            self.called.append((name, args))
            self.now += self.slowness * seconds

        fn.__qualname__ = name
        return fn
