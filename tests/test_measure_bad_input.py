"""Bad input to purestep.measure: each is a message that names the argument, its value and what would be right."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import purestep as ps
from _measuring import MACHINE, ROOF, fails, noop, roof
from purestep import measure


def changes_its_argument(x):
    return x.add_(1)


def changes_unseen(x):
    x.numpy()[0] = 7.0  # no version counter sees this


def grows(values, x):
    values.append(1)


def on_another_machine():
    mine = measure.time(torch.add, torch.ones(1), 1, repeats=1)
    return mine.relative_to(dataclasses.replace(mine, machine=MACHINE))


def with_other_threads():
    mine = measure.time(torch.add, torch.ones(1), 1, repeats=1)
    return mine.relative_to(dataclasses.replace(mine, threads=mine.threads + 3))


def net():
    return nn.Linear(4, 3)


def step_and_state():
    model, optimizer = net(), ps.sgd(0.1)
    return ps.train_step(model, lambda m, b: ps.mean(m(b["x"])), optimizer), ps.init_state(model, optimizer, seed=0)


def no_file(tmp_path):
    (tmp_path / "rates.json").write_text('{"a": 1}')
    return measure.ceilings("cpu", cache=tmp_path / "rates.json", threads=17)


BATCH = {"x": torch.ones(6, 4)}
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")

# Each row: the call, the exception, and what the message must contain: the argument, its value, what would be right.
ROWS = {
    "zero repeats": (lambda: measure.time(noop, repeats=0), ValueError, ("repeats must be an int of at least 1", "0")),
    "negative rounds": (
        lambda: measure.compare({"a": noop, "b": noop}, rounds=-2),
        ValueError,
        ("rounds must be an int of at least 1", "-2"),
    ),
    "negative repeats": (
        lambda: measure.time(noop, repeats=-3),
        ValueError,
        ("repeats must be an int of at least 1", "-3"),
    ),
    "zero rounds": (
        lambda: measure.compare({"a": noop, "b": noop}, rounds=0),
        ValueError,
        ("rounds must be an int of at least 1", "0"),
    ),
    "a report of zero repeats": (
        lambda: measure.report(*step_and_state(), BATCH, repeats=0, ceilings=roof()),
        ValueError,
        ("repeats must be an int of at least 1", "0"),
    ),
    "no warm-up": (lambda: measure.time(noop, warmup=0), ValueError, ("warmup must be an int of at least 1", "0")),
    "repeats that are no int": (lambda: measure.time(noop, repeats=2.5), TypeError, ("repeats must be an int", "2.5")),
    "no threads": (lambda: measure.time(noop, threads=0), ValueError, ("threads must be an int of at least 1", "0")),
    "times in the wrong order": (
        lambda: measure.time(noop, min_time=2.0, max_time=1.0),
        ValueError,
        ("max_time must be a finite number at least 2", "1.0"),
    ),
    "a certain interval": (
        lambda: measure.time(noop, confidence=1.0),
        ValueError,
        ("confidence must be", "above 0 and below 1", "1.0"),
    ),
    "no function": (lambda: measure.time(3), TypeError, ("fn must be a function", "got 3 of type int")),
    "inputs that are no tuples": (
        lambda: measure.time(torch.neg, inputs=[torch.ones(2)]),
        ValueError,
        ("inputs must be a sequence of tuples", "one of type Tensor", "inputs=[(x,), (y,)]"),
    ),
    "no inputs": (lambda: measure.time(torch.neg, inputs=[]), ValueError, ("inputs must be", "at least one, got none")),
    "arguments twice": (
        lambda: measure.time(torch.neg, 1, inputs=[(1,)]),
        ValueError,
        ("give either args or inputs", "1 args"),
    ),
    "a function that changes its argument": (
        lambda: measure.time(changes_its_argument, torch.ones(3)),
        ValueError,
        ("changes_its_argument changed its argument", "tensor args[0] of shape (3,)", "mutates=True"),
    ),
    "a change that no counter sees": (
        lambda: measure.time(changes_unseen, torch.ones(3)),
        ValueError,
        ("changes_unseen changed its argument", "tensor args[0]"),
    ),
    "one of several inputs that is changed": (
        lambda: measure.time(changes_its_argument, inputs=[(torch.ones(3),), (torch.ones(2),)]),
        ValueError,
        ("tensor inputs[0][0]",),
    ),
    "a changed tensor in a nesting": (
        lambda: measure.time(lambda batch: batch["a"][1].zero_(), {"a": (1, torch.ones(2))}),
        ValueError,
        ("tensor args[0]['a'][1] of shape (2,)",),
    ),
    "a changed module": (
        lambda: measure.time(_train, nn.BatchNorm1d(2)),
        ValueError,
        ("_train changed its argument", "args[0].running_mean"),
    ),
    "a list that grows": (
        lambda: measure.time(grows, [], torch.ones(1)),
        ValueError,
        ("grows changed its argument", "the list args[0]"),
    ),
    "one that changes its argument, compared": (
        lambda: measure.compare({"pure": torch.neg, "inplace": torch.neg_}, torch.ones(3)),
        ValueError,
        ("inplace changed its argument", "args[0]"),
    ),
    "a device that nobody has": (
        lambda: measure.time(noop, device="gpu"),
        ValueError,
        ("device must be 'cpu' or 'cuda'", "'gpu'"),
    ),
    "another device": (
        lambda: measure.ceilings("meta"),
        ValueError,
        ("device must be 'cpu' or 'cuda', got 'meta'",),
    ),
    "an argument on another device": (
        lambda: measure.time(torch.neg, torch.ones(2, device="meta")),
        ValueError,
        ("the device of what neg takes and returns must be 'cpu' or 'cuda'", "'meta'"),
    ),
    "a graph on the CPU": (
        lambda: measure.time(torch.neg, torch.ones(2), graph=True),
        ValueError,
        ("graph=True needs a CUDA device", "'cpu'"),
    ),
    "one function to compare": (
        lambda: measure.compare({"a": noop}),
        ValueError,
        ("ways must hold at least two functions", "got 1"),
    ),
    "names that repeat": (
        lambda: measure.compare([("a", noop), ("b", noop), ("a", noop)]),
        ValueError,
        ("ways must have a name for each function", "'a' twice"),
    ),
    "ways without names": (
        lambda: measure.compare([noop, noop]),
        TypeError,
        ("ways must be functions by name", "{'a': f, 'b': g}"),
    ),
    "a baseline that is none": (
        lambda: measure.compare({"eager": noop, "compiled": noop}, baseline="eagre"),
        ValueError,
        ("baseline must be one of 'eager', 'compiled', got 'eagre'", "did you mean 'eager'"),
    ),
    "results of another machine": (
        on_another_machine,
        ValueError,
        ("baseline must be measured on the same machine", "a processor", "measure.compare"),
    ),
    "results with other threads": (
        with_other_threads,
        ValueError,
        ("baseline must be measured with the same threads", "measure.compare"),
    ),
    "memory of no function": (lambda: measure.memory(3), TypeError, ("fn must be a function", "3")),
    "memory of what cannot be sent": (
        lambda: measure.memory(lambda: None),
        ValueError,
        ("fn and args must be picklable", "<lambda>", "start='fork'"),
    ),
    "an unknown start": (
        lambda: measure.memory(noop, start="thread"),
        ValueError,
        ("start must be 'spawn' or 'fork', got 'thread'",),
    ),
    "a report of no state": (
        lambda: measure.report(step_and_state()[0], {}, BATCH),
        TypeError,
        ("state must be a TrainState", "dict"),
    ),
    "a report of no step": (
        lambda: measure.report(3, step_and_state()[1], BATCH),
        TypeError,
        ("step must be a function", "3"),
    ),
    "a report of a step that returns no state": (
        lambda: measure.report(lambda s, b: b, step_and_state()[1], BATCH, ceilings=roof()),
        TypeError,
        ("step must return (state, metrics)", "dict", "measure.time(step, state, batch)"),
    ),
    "ceilings of another machine": (
        lambda: measure.report(*step_and_state(), BATCH, ceilings=ROOF),
        ValueError,
        ("ceilings must be measured on the same machine", "a processor"),
    ),
    "ceilings that are none": (
        lambda: measure.report(*step_and_state(), BATCH, ceilings=1e9),
        TypeError,
        ("ceilings must be what measure.ceilings(device) returned", "1000000000.0"),
    ),
    "a dtype that has no ceiling": (
        lambda: measure.report(*step_and_state(), BATCH, ceilings=roof(), dtype="int8"),
        ValueError,
        ("dtype must be one of 'float32', 'float64', got 'int8'",),
    ),
}


def _train(module):
    return module(torch.ones(3, 2))


@pytest.mark.parametrize("name", ROWS)
def test_the_message(name):
    call, error, fragments = ROWS[name]
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_device_that_is_absent(device):
    for call in (
        lambda: measure.time(noop, device=device),
        lambda: measure.compare({"a": noop, "b": noop}, device=device),
        lambda: measure.memory(noop, device=device),
        lambda: measure.ceilings(device),
    ):
        with pytest.raises(ValueError, match=rf"device must be a device that is here, got '{device}': torch"):
            call()


def test_a_damaged_cache_of_ceilings(tmp_path):
    with pytest.raises(ValueError, match=r"cache must be a file that ceilings\(\) wrote"):
        no_file(tmp_path)


def test_what_a_function_raises_comes_out_as_it_is():
    with pytest.raises(KeyError, match="inside") as caught:
        measure.time(fails)
    assert caught.value.__notes__ == ["raised by fails while it was measured"]
    with pytest.raises(KeyError, match="inside") as caught:
        measure.compare({"good": noop, "bad": fails})
    assert caught.value.__notes__ == ["raised by bad while it was measured"]


def test_a_function_that_fails_later_is_named_as_well():
    calls = iter(range(30))
    with pytest.raises(StopIteration) as caught:
        measure.compare({"good": noop, "tired": lambda: next(calls)}, rounds=9)
    assert caught.value.__notes__ == ["raised by tired while it was measured"]


@pytest.fixture
def cuda_in_use(monkeypatch):
    """As in a process that has used a CUDA device; nothing may be run there."""
    for name, value in {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)


def on_the_device():
    with FakeTensorMode():
        return torch.empty(3, device="cuda")


@NO_CUDA
@pytest.mark.parametrize(
    ("call", "fragments"),
    [
        (lambda: measure.time(noop), ("noop returned nothing to synchronise on (a NoneType)", "device='cuda' or")),
        (lambda: measure.time(torch.Tensor.tolist, torch.ones(1)), ("tolist returned nothing to synchronise on",)),
        (
            lambda: measure.compare({"good": torch.neg, "idle": lambda x: None}, torch.ones(1)),
            ("idle returned nothing to synchronise on",),
        ),
        (
            lambda: measure.time(torch.neg, torch.ones(1), device="cuda"),
            (
                "device must be where neg runs, got 'cuda:0'",
                "on cpu: there is nothing to synchronise on",
                "device='cpu'",
            ),
        ),
        (
            lambda: measure.time(on_the_device, device="cpu"),
            ("device must be where on_the_device runs, got 'cpu' beside a tensor on cuda:0", "the launches"),
        ),
        (lambda: measure.memory(noop), ("device must be said where fn takes no tensor", "got None with noop")),
    ],
)
def test_where_cuda_is_in_use_a_function_must_say_where_it_runs(cuda_in_use, call, fragments):
    with pytest.raises(ValueError) as caught:
        call()
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == [], str(caught.value)


@NO_CUDA
def test_where_cuda_is_in_use_the_cpu_is_timed_all_the_same(cuda_in_use):
    measure.time(noop, device="cpu", repeats=1)
    assert measure.time(torch.neg, torch.ones(1), repeats=1).device == "cpu"  # a tensor returned says where


def test_writing_is_allowed_where_it_is_the_work():
    x = torch.zeros(3)
    measure.time(changes_its_argument, x, mutates=True, repeats=2)
    assert x[0] > 0
