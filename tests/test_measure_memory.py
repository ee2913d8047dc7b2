"""measure.memory: the peak of a call."""

from __future__ import annotations

import os
import sys
import time
import types

import pytest
import torch

from _measuring import ON_CUDA, fails
from purestep import measure


def twelve_mebibytes(x):
    return (x + 1) * 2 + torch.ones(1 << 20)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_the_peak_of_a_call(start):
    x = torch.zeros(1 << 20)
    use = measure.memory(twelve_mebibytes, x, start=start)
    # A forked process has this one's heap, and fills the holes in it before it asks for more.
    assert use.added == pytest.approx(12 * 2**20, rel=0.1 if start == "spawn" else 0.5)
    assert use.peak > use.added + x.nbytes
    assert "added by the call" in repr(use)


def test_a_failure_in_the_process():
    with pytest.raises(KeyError, match="inside") as caught:
        measure.memory(fails, start="fork")
    assert "fails, in a process of its own" in caught.value.__notes__[0]


def test_a_function_of_no_file(monkeypatch):
    module = types.ModuleType("of_a_notebook")
    exec("def fn(): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, "of_a_notebook", module)
    with pytest.raises(ValueError, match=r"a new process can import, got ModuleNotFoundError: .* give start='fork'"):
        measure.memory(module.fn)


def test_a_process_that_takes_too_long():
    with pytest.raises(TimeoutError, match=r"took longer than timeout=0\.2 seconds"):
        measure.memory(time.sleep, 30, start="fork", timeout=0.2)


def test_a_process_that_ends_without_an_answer():
    with pytest.raises(RuntimeError, match=r"_exit ended without an answer \(exit code 9"):
        measure.memory(os._exit, 9, start="fork", warmup=1)


@pytest.mark.cuda
@ON_CUDA
def test_memory_and_launches_on_cuda():
    x = torch.zeros(1 << 20, device="cuda")
    assert measure.memory(eight_mebibytes, x).added == 8 * 2**20
    from purestep.measure._work import count_launches

    assert count_launches(lambda: eight_mebibytes(x)) == 2


def eight_mebibytes(x):
    return (x + 1) * 2
