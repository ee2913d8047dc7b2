"""A checkpoint is the state bit for bit, whole or not there."""

from __future__ import annotations

import subprocess

import pytest
import torch
from safetensors import safe_open
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _checkpoints import (
    assert_same_bits,
    data_file,
    leaves,
    same_bits,
    small_optimizer,
    small_state,
    with_aux,
)
from purestep import checkpoint
from purestep.checkpoint import load, load_data, load_extra, load_metrics, read_manifest, save, verify
from purestep.execution import _boundary

# What is saved comes back


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = small_state()
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 1 / 3])
    state.params["0.bias"].copy_(odd[:4])
    assert save(tmp_path / "a", state) == tmp_path / "a"
    assert_same_bits(load(tmp_path / "a", like=small_state(seed=1)), state)


def test_the_file_is_plain_safetensors_with_the_paths_as_names(tmp_path):
    save(tmp_path / "a", small_state())
    with safe_open(data_file(tmp_path / "a"), framework="pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert {"params/0.weight", "buffers/1.running_mean", "opt_state/1/exp_avg/3.bias", "opt_state/1/count"} <= names
    assert {"step", "calls", "key"} <= names


def test_names_with_slashes_do_not_collide(tmp_path):
    def make(seed: int):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"a/b": nn.Linear(2, 2), "a~1b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
        return ps.init_state(model, ps.sgd(0.1, momentum=0.9), seed=seed)

    save(tmp_path / "a", make(0))
    assert_same_bits(load(tmp_path / "a", like=make(1)), make(0))
    one = with_aux(a=TensorDict({"b/c": torch.zeros(1)}, batch_size=[]))
    one.aux["a/b"] = TensorDict({"c": torch.ones(1)}, batch_size=[])
    save(tmp_path / "b", one)
    assert_same_bits(load(tmp_path / "b", like=one.clone()), one)


DTYPES = [
    *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool, torch.uint64),
    *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e8m0fnu),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_come_back(tmp_path, dtype):
    some, one = (torch.tensor(values).to(dtype) for values in ([0.0, 1.0, 1.0, 2.0], 1.0))
    state = with_aux(some=some, one=one, none=torch.zeros(0, 3).to(dtype), turned=some.reshape(2, 2).T)
    save(tmp_path / "a", state)
    assert_same_bits(load(tmp_path / "a", like=state.clone()), state)
    assert read_manifest(tmp_path / "a").tensors["aux/some"] == ((4,), str(dtype).removeprefix("torch."))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_dtypes_that_safetensors_lacks_come_back(tmp_path):
    half = torch.tensor([1 + 2j, -0.5j], dtype=torch.complex64).to(torch.complex32)
    packed = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    save(tmp_path / "a", with_aux(half=half, packed=packed, scalar=half[0]))
    like = with_aux(half=torch.empty_like(half), packed=torch.empty_like(packed), scalar=torch.empty_like(half[0]))
    back = load(tmp_path / "a", like=like)
    assert torch.equal(torch.view_as_real(back.aux["half"]), torch.view_as_real(half))
    assert torch.equal(back.aux["packed"].view(torch.uint8), packed.view(torch.uint8))
    assert complex(back.aux["scalar"]) == 1 + 2j
    assert read_manifest(tmp_path / "a").tensors["aux/packed"] == ((2, 4), "float4_e2m1fn_x2")


def test_views_and_shared_storage_are_written_as_what_they_are(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = with_aux(
        whole=base,
        same=base,
        row=base[1],
        column=base[:, 1],
        turned=base.T,
        expanded=torch.ones(1).expand(5),
        conjugated=torch.tensor([1 + 2j]).conj(),
        wide_conjugated=torch.tensor([1 + 2j], dtype=torch.complex128).conj(),
        negated=torch.tensor([1 + 2j]).conj().imag,
        parameter=nn.Parameter(base.clone()),
    )
    save(tmp_path / "a", state)
    back = load(tmp_path / "a", like=state)
    for name, leaf in state.aux.items():
        assert torch.equal(back.aux[name], leaf), name
        assert not back.aux[name].requires_grad
    _boundary.check_owned(back, _boundary.flatten_state(back))  # raises where two entries share storage


def test_what_lies_apart_in_one_storage_is_not_copied(tmp_path, monkeypatch):
    base = torch.arange(12.0)
    given = {}
    whole = checkpoint._files._save_file
    monkeypatch.setattr(
        checkpoint._files, "_save_file", lambda tensors, path: (given.update(tensors), whole(tensors, path))
    )
    save(tmp_path / "a", with_aux(first=base[:4], second=base[4:], third=base[2:6]))
    inside = {name: base.data_ptr() <= leaf.data_ptr() < base.data_ptr() + 48 for name, leaf in given.items()}
    assert inside["aux/first"]
    assert inside["aux/second"]
    assert not inside["aux/third"]  # which lies over both


def test_memory_formats_are_those_of_like(tmp_path):
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    save(tmp_path / "a", with_aux(weight=weight))
    back = load(tmp_path / "a", like=with_aux(weight=torch.zeros_like(weight)))
    assert torch.equal(back.aux["weight"], weight)
    assert back.aux["weight"].is_contiguous(memory_format=torch.channels_last)


def test_an_ensemble_comes_back(tmp_path):
    state = torch.stack([small_state(0), small_state(1)])
    state.calls.copy_(torch.tensor([3, 5]))
    save(tmp_path / "a", state)
    back = load(tmp_path / "a", like=torch.stack([small_state(2), small_state(3)]))
    assert back.batch_size == (2,)
    assert_same_bits(back, state)
    assert read_manifest(tmp_path / "a").calls == 5


def test_a_state_on_meta_gives_the_structure(tmp_path):
    save(tmp_path / "a", small_state())
    like = small_state().to("meta")
    back = load(tmp_path / "a", like=like, device="cpu")
    assert_same_bits(back, small_state())
    assert all(leaf.device.type == "cpu" for leaf in leaves(back).values())
    assert all(leaf.is_meta for leaf in leaves(load(tmp_path / "a", like=back, device="meta")).values())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_state_on_cuda_loads_anywhere(tmp_path):
    state = small_state()
    state = state.replace(aux=TensorDict({"z": torch.randn(4, dtype=torch.complex128).conj()}, []))
    save(tmp_path / "a", state.to("cuda"), metrics={"x": torch.ones(2, device="cuda")})
    there = load(tmp_path / "a", like=state.to("cuda"))
    assert all(leaf.is_cuda for leaf in leaves(there).values())
    for back in (there.to("cpu"), load(tmp_path / "a", like=state), load(tmp_path / "a", like=there, device="cpu")):
        assert_same_bits(back, state)
    assert_same_bits(load(tmp_path / "a", like=state, device="cuda").cpu(), state)
    assert not load_metrics(tmp_path / "a")["x"].is_cuda


def test_like_is_not_touched_and_the_file_is_let_go(tmp_path):
    path, like = tmp_path / "a", small_state(1)
    save(path, small_state(0))
    before = like.clone()
    back = load(path, like=like)
    data_file(path).write_bytes(b"\0" * data_file(path).stat().st_size)  # a view of the file would see this
    assert_same_bits(back, small_state(0))
    assert_same_bits(like, before)


# What is kept beside the state


def test_extra_and_the_place_of_the_data_come_back_without_the_tensors(tmp_path):
    extra = {"place": [3, 1 << 60, False], "rates": [0.1, 1e-300, float("inf"), -0.0], "é\ud800": None, "": "\0"}
    save(tmp_path / "a", small_state(), extra=extra, data={"epoch": 3, "position": 7})
    data_file(tmp_path / "a").write_bytes(b"\0" * data_file(tmp_path / "a").stat().st_size)
    assert load_extra(tmp_path / "a") == extra
    assert load_data(tmp_path / "a") == {"epoch": 3, "position": 7}
    save(tmp_path / "a", small_state())
    assert load_extra(tmp_path / "a") is None
    assert load_data(tmp_path / "a") is None


def test_a_pipeline_goes_on_from_its_place(tmp_path):
    def make():
        source = ps.data.from_tensors({"x": torch.arange(12)})
        return ps.data.pipeline(source, ps.data.shuffled(12, seed=0), batch_size=3)

    batches, again = make(), make()
    it = iter(batches)
    next(it)
    save(tmp_path / "a", small_state(), data=batches)
    again.load_state_dict(load_data(tmp_path / "a"))
    assert torch.equal(next(it)["x"], next(iter(again))["x"])


def test_metrics_come_back_by_path(tmp_path):
    metrics = {"train": TensorDict({"loss": torch.tensor(0.5), "n/a": torch.ones(2, dtype=torch.complex128)}, [])}
    save(tmp_path / "a", small_state(), metrics=metrics)
    back = load_metrics(tmp_path / "a")
    assert list(back) == ["train/loss", "train/n~1a"]
    assert same_bits(back["train/loss"], torch.tensor(0.5))
    assert same_bits(back["train/n~1a"], torch.ones(2, dtype=torch.complex128))
    assert_same_bits(load(tmp_path / "a", like=small_state(1)), small_state())  # which has no place for them
    for none in (None, {}):
        save(tmp_path / "a", small_state(), metrics=none)
        assert load_metrics(tmp_path / "a") is None


def test_the_manifest_says_what_there_is(tmp_path):
    state = small_state()
    state = state.replace(step=torch.tensor(5), calls=torch.tensor(6))
    rate = ps.schedules.cosine(peak=0.1, total_steps=100)
    save(tmp_path / "a", state, optimizer=ps.adamw(rate, weight_decay=0.25))
    manifest = read_manifest(tmp_path / "a")
    assert manifest == verify(tmp_path / "a")
    assert (manifest.format, manifest.step, manifest.calls, manifest.torch) == (2, 5, 6, torch.__version__)
    assert list(manifest.tensors)[:2] == ["params/0.weight", "params/0.bias"]
    assert manifest.tensors["params/0.weight"] == ((4, 3), "float32")
    assert manifest.size == data_file(tmp_path / "a").stat().st_size
    assert manifest.saved.endswith("Z")
    settings = manifest.optimizer["arguments"]
    assert settings["weight_decay"] == 0.25
    assert ps.schedules.parse(settings["rate"]["schedule"]) == rate


def test_an_optimizer_of_ones_own_is_recorded_as_it_is_written(tmp_path):
    own = small_optimizer()
    save(tmp_path / "a", small_state(), optimizer=ps.Optimizer(own.init, own.update))
    assert read_manifest(tmp_path / "a").optimizer["written"].startswith("Optimizer(init=")


def test_the_same_state_gives_the_same_tensors(tmp_path):
    save(tmp_path / "a", small_state())
    save(tmp_path / "b", small_state())
    assert data_file(tmp_path / "a").name == data_file(tmp_path / "b").name
    assert data_file(tmp_path / "a").read_bytes() == data_file(tmp_path / "b").read_bytes()


def test_the_revision_is_that_of_the_folder_the_process_is_in(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    find = checkpoint._git._revision.__wrapped__
    assert find(str(tmp_path)) is None
    git("init", "-q")
    assert find(str(tmp_path)) is None  # no commit
    (tmp_path / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "a")
    assert find(str(tmp_path)) == {"revision": git("rev-parse", "HEAD"), "dirty": False}
    ran = tmp_path / "ran"
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch {ran}\n")
    hook.chmod(0o755)
    git("config", "core.fsmonitor", str(hook))
    (tmp_path / "a.py").write_text("22")
    assert find(str(tmp_path)) == {"revision": git("rev-parse", "HEAD"), "dirty": True}
    assert not ran.exists()
    monkeypatch.setenv("PATH", "")
    assert find(str(tmp_path)) is None
