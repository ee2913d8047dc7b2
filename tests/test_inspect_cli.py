"""``purestep inspect``: what it prints of a checkpoint, of a folder of them, and of two compared."""

from __future__ import annotations

import functools
import json
import math
import os
import pickle

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import cli
from purestep._inspect_cli._rates import rates
from purestep._inspect_cli._statistics import difference, statistics
from purestep._inspect_cli._text import said

RATE = ps.schedules.warmup_cosine(peak=3e-3, warmup_steps=100, total_steps=2_000)
OPTIMIZER = ps.chain(
    ps.clip_by_global_norm(1.0),
    ps.transforms.partition(
        {
            "matrices": ps.adamw(RATE, weight_decay=0.1, decay_mask=ps.matrices_only),
            "rest": ps.optimizers.inject_hyperparams(functools.partial(ps.sgd, nesterov=True), rate=0.1, momentum=0.9),
        },
        {"*.weight": "matrices", "*.bias": "rest"},
    ),
)
SEQUENTIAL = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
STATE = ps.init_state(SEQUENTIAL, OPTIMIZER, seed=0).replace(step=torch.tensor(600), calls=torch.tensor(602))


@pytest.fixture
def inspect(capsys):
    def run(*arguments, status=0):
        assert cli.main(["inspect", *map(str, arguments)]) == status
        out, error = capsys.readouterr()
        assert (error == "") == (status == 0)
        return out if status == 0 else error

    return run


def row(text, beginning):
    """The columns of the line that begins so."""
    return next(line.split() for line in text.splitlines() if line.strip().startswith(beginning))


def test_everything_that_a_checkpoint_says(tmp_path, inspect):
    path = ps.checkpoint.save(
        tmp_path / "run",
        STATE,
        optimizer=OPTIMIZER,
        data={"epoch": 3, "position": 12},
        metrics={"train": {"loss": torch.tensor(0.5)}},
        extra={"note": "tried [red]this[/red]"},
    )
    out = inspect(path)
    manifest = ps.checkpoint.read_manifest(path)
    for said_there in (
        f"torch {torch.__version__}",
        manifest.saved,
        '{"epoch": 3, "position": 12}',
        '{"note": "tried [red]this[/red]"}',
        "clip_by_global_norm",
        f"rate = {RATE!r}",
        "decay_mask = matrices_only",
        "factory = partial(sgd, nesterov=True)",
        "labels = {'*.weight': 'matrices', '*.bias': 'rest'}",
    ):
        assert said_there in out
    assert row(out, "step") == ["step", "600"]
    assert row(out, "calls") == ["calls", "602"]
    for name, about in manifest.files.items():
        assert name in out
        assert about.sha256 in out
        assert f"{about.bytes:,} bytes" in out


def test_the_rates_at_the_step(tmp_path, inspect):
    opt_state = STATE.opt_state.clone()
    opt_state["1", "rest", "hyperparams", "rate"] = torch.tensor(0.0625, dtype=torch.float64)
    out = inspect(ps.checkpoint.save(tmp_path / "run", STATE.replace(opt_state=opt_state), optimizer=OPTIMIZER))
    assert "rates at step 600" in out
    assert row(out, "chain.parts[1].partition.parts.matrices.adamw.rate")[-1] == f"{RATE(600).item():.10g}"
    line = next(line for line in out.splitlines() if "opt_state/1/rest/hyperparams/rate" in line)
    assert line.split()[-1] == "0.0625"  # the state wins over what was given
    assert "rest.inject_hyperparams" not in out


def test_the_trees_in_numbers(tmp_path, inspect):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    state.buffers["1.running_mean"][1] = math.nan
    out = inspect(ps.checkpoint.save(tmp_path / "run", state), "--tensors")
    assert "not recorded" in out
    entries = sum(p.numel() for p in model.parameters())
    norm = torch.cat([p.detach().flatten() for p in model.parameters()]).norm().item()
    assert row(out, "params")[:6] == ["params", "4", str(entries), str(4 * entries), "B", "float32"]
    assert float(row(out, "params")[6]) == pytest.approx(norm, rel=1e-3)
    assert row(out, "buffers")[-3:] == ["int64", "nan", "1"]
    weight = state.params["0.weight"].double()
    shown = row(out, "params/0.weight")
    assert shown[1:4] == ["(4,", "3)", "float32"]
    assert [float(x) for x in shown[4:7]] == pytest.approx(
        [weight.norm().item(), weight.min().item(), weight.max().item()], rel=1e-3
    )
    assert row(out, "buffers/1.running_mean")[-1] == "1"
    assert row(out, "buffers/1.num_batches_tracked")[1:] == ["()", "int64", "0", "0", "0", "0"]


def test_without_tensors_no_tensor_is_listed(tmp_path, inspect):
    assert "params/0.weight" not in inspect(ps.checkpoint.save(tmp_path / "run", STATE))


def test_an_optimizer_of_ones_own(tmp_path, inspect):
    own = ps.Optimizer(ps.sgd(0.1).init, ps.sgd(0.1).update)
    assert repr(own) in inspect(ps.checkpoint.save(tmp_path / "run", STATE, optimizer=own))


def test_a_folder_lists_its_checkpoints_and_shows_the_newest(tmp_path, inspect):
    for calls in (5, 20, 10):
        ps.checkpoint.save(tmp_path / f"step-{calls}", STATE.replace(calls=torch.tensor(calls)))
    (tmp_path / "notes").mkdir()
    out = inspect(tmp_path)
    assert [line.split()[0] for line in out.splitlines() if line.strip().startswith("step-")] == [
        "step-10",
        "step-20",
        "step-5",
    ]
    assert row(out, "calls") == ["calls", "20"]
    next((tmp_path / "step-20").glob("*.safetensors")).write_bytes(b"short")
    (tmp_path / "step-5" / "manifest.json").unlink()
    out = inspect(tmp_path)
    assert out.count("is damaged") == 2
    assert row(out, "calls") == ["calls", "10"]


def test_two_are_compared(tmp_path, inspect):
    first = ps.checkpoint.save(tmp_path / "a", STATE, optimizer=ps.sgd(RATE), extra={"try": 1})
    params = STATE.params.clone()
    params["0.bias"] = params["0.bias"] + 0.5
    params["1.weight"] = params["1.weight"].double()
    params["2.new"] = torch.ones(3)
    del params["1.bias"]
    other = STATE.replace(params=params, step=torch.tensor(601))
    second = ps.checkpoint.save(tmp_path / "b", other, optimizer=ps.sgd(RATE * 2), extra={"try": 2})
    out = inspect(first, "--diff", second)
    assert row(out, "extra.try")[1:] == ["1", "2"]
    assert row(out, "step ") == ["step", "600", "601"]
    assert f"{RATE!r} " in out
    assert repr(RATE * 2) in out
    assert row(out, "params/1.weight")[1:] == ["(2,", "4)", "float32", "(2,", "4)", "float64"]
    assert row(out, "params/2.new")[1:] == ["not", "there", "(3,)", "float32"]
    assert row(out, "params/1.bias")[1:] == ["(2,)", "float32", "not", "there"]
    bias = STATE.params["0.bias"]
    relative = 1.0 / max(bias.norm().item(), (bias + 0.5).norm().item())
    assert row(out, "params/0.bias")[1:3] == ["differ", "0.5"]
    assert float(row(out, "params/0.bias")[3]) == pytest.approx(relative, rel=1e-3)
    assert "params/0.weight" not in out
    names = [line.split()[0] for line in out.splitlines() if " differ " in line]
    assert names == ["params/0.bias", "step"]  # the furthest apart first
    assert row(inspect(first, "--diff", second, "--tensors"), "params/0.weight")[1:] == ["same", "0", "0"]


def test_the_same_is_the_same(tmp_path, inspect):
    for name in ("a", "b"):
        ps.checkpoint.save(tmp_path / name, STATE)
    out = inspect(tmp_path / "a", "--diff", tmp_path / "b")
    assert "in both, the same to the bit" in out
    assert " differ " not in out


# What is wrong.


def test_a_path_that_is_none(tmp_path, inspect):
    path = ps.checkpoint.save(tmp_path / "run", STATE)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for arguments in ([tmp_path / "nowhere"], [path, "--diff", tmp_path / "nowhere"]):
        assert "nowhere" in inspect(*arguments, status=1)
    assert "empty" in inspect(tmp_path / "empty", status=1)
    assert "a checkpoint is a folder" in inspect(tmp_path / "file", status=1)


def flipped(path):
    file = next(path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(path):
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4])


def gone(path):
    next(path.glob("*.safetensors")).unlink()


def edited(path):
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 600', '"step": 601'))


@pytest.mark.parametrize("breaking", [flipped, cut, gone, edited])
def test_a_damaged_checkpoint_exits_with_one(breaking, tmp_path, inspect):
    path = ps.checkpoint.save(tmp_path / "runs" / "a", STATE)
    whole = ps.checkpoint.save(tmp_path / "whole", STATE)
    breaking(path)
    for arguments in ([path], [whole, "--diff", path]):
        assert "damaged" in inspect(*arguments, status=1)
    assert "no whole checkpoint" in inspect(tmp_path / "runs", status=1)


def test_a_pickle_is_not_read(tmp_path, inspect):
    trace, path = tmp_path / "trace", ps.checkpoint.save(tmp_path / "run", STATE)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    for file in path.iterdir():
        file.write_bytes(pickle.dumps(Evil()))
    inspect(path, status=1)
    assert not trace.exists()


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--diff", "a"], ["a", "--diff"], ["a", "--tensor=3"]])
def test_bad_arguments_exit_with_two(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["inspect", *arguments])
    assert stopped.value.code == 2
    assert "usage: purestep" in capsys.readouterr().err


def test_what_a_file_says_does_not_command_the_terminal(tmp_path, inspect):
    out = inspect(ps.checkpoint.save(tmp_path / "run", STATE, data={"a\x1b[2J": "\x07"}))
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "u001b" in out or "x1b" in out


def test_a_narrow_pipe_cuts_nothing_off(tmp_path, monkeypatch, inspect):
    monkeypatch.setenv("COLUMNS", "40")
    out = inspect(ps.checkpoint.save(tmp_path / "run", STATE), "--tensors")
    assert row(out, "opt_state/1/matrices/exp_avg/0.weight")[1:3] == ["(4,", "3)"]


# Rates.


def config_of(optimizer):
    return json.loads(json.dumps(optimizer.config.as_json()))


def exit_at(step):
    """What a schedule of a malicious file would call."""
    raise SystemExit(step)


def test_rates_are_computed_where_that_is_safe():
    assert list(rates(config_of(ps.sgd(RATE)), 50)) == [("sgd.rate", repr(RATE), "0.0015")]
    assert list(rates(config_of(ps.sgd(0.25)), 50)) == [("sgd.rate", "0.25", "0.25")]
    betas = rates(config_of(ps.adamw(torch.tensor(0.5), betas=(RATE, 0.9))), 100)
    assert [(place, value) for place, _, value in betas] == [
        ("adamw.rate", "tensor 0.5 (float32)"),
        ("adamw.betas[0]", "0.003"),
    ]
    assert list(rates(None, 3)) == []


def test_a_schedule_that_calls_a_function_is_not_asked():
    config = config_of(ps.sgd(0.1))
    config["arguments"]["rate"] = {"schedule": f"2 * function('{__name__}:exit_at')"}
    ((_, _, value),) = rates(config, 3)
    assert value == "not computed: it calls a function"


@pytest.mark.parametrize("text", ["mine(3)", "cosine(", "__import__('os')", "3", "cosine(peak=-1e999, total_steps=3)"])
def test_a_schedule_that_cannot_be_read_says_so(text):
    config = config_of(ps.sgd(0.1))
    config["arguments"]["rate"] = {"schedule": text}
    ((_, by, value),) = rates(config, 3)
    assert by == text
    assert value.startswith("cannot be")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"name": 3},
        {"name": "a", "arguments": []},
        {"name": "a", "arguments": {"rate": {"schedule": 3}}},
        {"name": "a", "arguments": {"b": {"shape": 3, "dtype": []}, "c": {"dict": 3}, "d": {"tensor": {}, "dtype": 1}}},
        {"partial": 1, "given": 2, "named": 3},
        {"name": "a", "arguments": {"parts": {"partial": {"schedule": "x"}, "given": 2, "named": {"rate": None}}}},
    ],
)
def test_a_forged_config_is_shown_all_the_same(config, tmp_path, inspect):
    from rich.tree import Tree

    from purestep._inspect_cli._text import grown

    list(rates(config, 3))
    said(config)
    grown(Tree(""), "", config)


# Numbers.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.uint16])
def test_statistics_are_those_of_the_values(dtype):
    tensor = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    found = statistics(tensor)
    assert (found.norm, found.least, found.largest, found.nonfinite) == (math.sqrt(3), 0, 1, 0)


def test_statistics_of_special_values():
    found = statistics(torch.tensor([[1.0, math.nan], [-math.inf, 2.0]]))
    assert math.isnan(found.norm)
    assert (found.least, found.largest, found.nonfinite) == (-math.inf, 2.0, 2)
    empty = statistics(torch.zeros(0, 3))
    assert (empty.norm, empty.least, empty.largest, empty.nonfinite) == (0.0, None, None, 0)
    assert statistics(torch.tensor([3 + 4j])).norm == 5
    assert statistics(torch.tensor([2**63 - 1])).largest == 2**63 - 1
    large = torch.ones(600_000)
    large[-1] = 7
    assert statistics(large).largest == 7
    assert statistics(large).norm == pytest.approx(math.sqrt(599_999 + 49))


@pytest.mark.parametrize(
    ("first", "second", "right"),
    [
        ([1.0, 2.0], [1.0, 2.0], (True, 0.0, 0.0)),
        ([0.0], [-0.0], (False, 0.0, 0.0)),
        ([3.0, 4.0], [3.0, 4.5], (False, 0.5, 0.5 / math.sqrt(9 + 4.5**2))),
        ([0.0], [2.0], (False, 2.0, 1.0)),
        ([math.nan, math.inf], [math.nan, math.inf], (True, 0.0, 0.0)),
        ([math.nan], [1.0], (False, math.inf, math.inf)),
        ([math.inf], [1.0], (False, math.inf, math.inf)),
        ([2**62 + 1], [2**62], (False, 1.0, 2.0**-62)),
        ([True, False], [True, True], (False, 1.0, 1 / math.sqrt(2))),
        ([1 + 1j], [1 + 2j], (False, 1.0, 1 / math.sqrt(5))),
    ],
)
def test_differences(first, second, right):
    found = difference(torch.tensor(first), torch.tensor(second))
    assert (found.bits, found.largest, found.relative) == pytest.approx(right)


def test_numbers_of_every_dtype_that_a_checkpoint_keeps(tmp_path, inspect):
    from purestep.checkpoint._manifest import DTYPES

    leaves = {}
    for name, dtype in DTYPES.items():
        if dtype == torch.float4_e2m1fn_x2:
            leaves[name] = torch.zeros(3, dtype=torch.uint8).view(dtype)
        elif dtype == torch.complex32:  # torch warns where it makes one
            leaves[name] = torch.view_as_complex(torch.ones(3, 2, dtype=torch.float16))
        else:
            leaves[name] = torch.ones(3).to(dtype)
    state = STATE.replace(buffers=TensorDict(leaves))
    for name in ("a", "b"):
        ps.checkpoint.save(tmp_path / name, state)
    out = inspect(tmp_path / "a", "--tensors")
    for name in DTYPES:
        assert row(out, f"buffers/{name} ")[2] == name
    assert "the same to the bit" in inspect(tmp_path / "a", "--diff", tmp_path / "b")
