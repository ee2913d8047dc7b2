"""A checkpoint is the state bit for bit, whole or not there, and fits or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import nn

import purestep as ps
from purestep import checkpoint
from purestep.checkpoint import load, load_extra, save
from purestep.execution import _boundary
from purestep.state import DonatedStateError


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def small_optimizer():
    return ps.chain(ps.clip_by_global_norm(1.0), ps.adamw(1e-2, weight_decay=0.1))


def small_state(seed: int = 0) -> ps.TrainState:
    torch.manual_seed(seed)
    return ps.init_state(small_model(), small_optimizer(), seed=seed)


def leaves(state) -> dict[str, torch.Tensor]:
    return {str(key): leaf for key, leaf in state.items(include_nested=True, leaves_only=True)}


def assert_same_bits(one, other) -> None:
    one, other = leaves(one), leaves(other)
    assert list(one) == list(other)
    for name, leaf in one.items():
        assert leaf.dtype == other[name].dtype
        assert leaf.shape == other[name].shape
        a, b = (t.contiguous().flatten().view(torch.uint8) for t in (leaf, other[name]))
        assert torch.equal(a, b), name


def with_aux(**tensors: torch.Tensor) -> ps.TrainState:
    return small_state().replace(aux=TensorDict(tensors, batch_size=[]))


# What is saved comes back


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = small_state()
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1e-45, 1 / 3])
    state.params["0.bias"].copy_(odd[:4])
    save(tmp_path / "a.safetensors", state)
    assert_same_bits(load(tmp_path / "a.safetensors", like=small_state(seed=1)), state)


def test_the_names_in_the_file_are_the_paths_in_the_state(tmp_path):
    save(tmp_path / "a.safetensors", small_state())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"params/0.weight", "buffers/1.running_mean", "opt_state/1/exp_avg/3.bias", "opt_state/1/count"} <= names
    assert {"step", "calls", "key"} <= names


def test_names_with_slashes_do_not_collide(tmp_path):
    def make(seed: int):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"a/b": nn.Linear(2, 2), "a~1b": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
        return ps.init_state(model, ps.sgd(0.1, momentum=0.9), seed=seed)

    save(tmp_path / "a.safetensors", make(0))
    assert_same_bits(load(tmp_path / "a.safetensors", like=make(1)), make(0))
    one = with_aux(a=TensorDict({"b/c": torch.zeros(1)}, batch_size=[]))
    one.aux["a/b"] = TensorDict({"c": torch.ones(1)}, batch_size=[])
    save(tmp_path / "b.safetensors", one)
    assert_same_bits(load(tmp_path / "b.safetensors", like=one.clone()), one)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64],
)
def test_dtypes_come_back(tmp_path, dtype):
    state = with_aux(some=torch.tensor([0, 1, 1, 0]).to(dtype), one=torch.ones((), dtype=dtype), none=torch.ones(0, 3))
    save(tmp_path / "a.safetensors", state)
    assert_same_bits(load(tmp_path / "a.safetensors", like=state.clone()), state)


def test_views_and_shared_storage_are_written_as_what_they_are(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = with_aux(
        whole=base,
        same=base,
        column=base[:, 1],
        turned=base.T,
        expanded=torch.ones(1).expand(5),
        conjugated=torch.tensor([1 + 2j]).conj(),
        parameter=nn.Parameter(base.clone()),
    )
    save(tmp_path / "a.safetensors", state)
    back = load(tmp_path / "a.safetensors", like=state)
    for name, leaf in state.aux.items():
        assert torch.equal(back.aux[name], leaf), name
        assert not back.aux[name].requires_grad
    _boundary.check_owned(back, _boundary.flatten_state(back))  # raises where two entries share storage


def test_memory_formats_are_those_of_like(tmp_path):
    weight = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    save(tmp_path / "a.safetensors", with_aux(weight=weight))
    back = load(tmp_path / "a.safetensors", like=with_aux(weight=torch.zeros_like(weight)))
    assert torch.equal(back.aux["weight"], weight)
    assert back.aux["weight"].is_contiguous(memory_format=torch.channels_last)


def test_an_ensemble_comes_back(tmp_path):
    state = torch.stack([small_state(0), small_state(1)])
    save(tmp_path / "a.safetensors", state)
    back = load(tmp_path / "a.safetensors", like=torch.stack([small_state(2), small_state(3)]))
    assert back.batch_size == (2,)
    assert_same_bits(back, state)


def test_a_state_on_meta_gives_the_structure(tmp_path):
    save(tmp_path / "a.safetensors", small_state())
    like = small_state().to("meta")
    back = load(tmp_path / "a.safetensors", like=like, device="cpu")
    assert_same_bits(back, small_state())
    assert all(leaf.device.type == "cpu" for leaf in leaves(back).values())
    assert all(leaf.is_meta for leaf in leaves(load(tmp_path / "a.safetensors", like=back, device="meta")).values())
    with pytest.raises(ValueError, match="device must be given where like is on the meta device"):
        load(tmp_path / "a.safetensors", like=like)


def test_like_is_not_touched_and_the_file_is_let_go(tmp_path):
    path, like = tmp_path / "a.safetensors", small_state(1)
    save(path, small_state(0))
    before = like.clone()
    back = load(path, like=like)
    path.write_bytes(b"\0" * path.stat().st_size)  # a view of the file would see this
    assert_same_bits(back, small_state(0))
    assert_same_bits(like, before)


def test_extra_comes_back_without_the_tensors(tmp_path):
    extra = {"data": {"epoch": 3, "position": 1 << 60, "done": False}, "rates": [0.1, 1e-300, float("inf")], "é": None}
    save(tmp_path / "a.safetensors", small_state(), extra=extra)
    assert load_extra(tmp_path / "a.safetensors") == extra
    save(tmp_path / "a.safetensors", small_state())
    assert load_extra(tmp_path / "a.safetensors") is None


def test_the_metadata_says_who_wrote_it(tmp_path):
    save(tmp_path / "a.safetensors", small_state())
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["purestep"])
    assert about["format"] == 1
    assert about["torch"] == torch.__version__
    assert isinstance(about["purestep"], str)


def test_the_same_state_gives_the_same_bytes(tmp_path):
    save(tmp_path / "a", small_state(), extra={"x": 1})
    save(tmp_path / "b", small_state(), extra={"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Resume


RESUME = textwrap.dedent(
    """
    import sys
    import torch
    import torch.nn.functional as F
    from torch import nn
    import purestep as ps
    from purestep.checkpoint import load, save

    torch.set_num_threads(1)

    def make():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        optimizer = ps.chain(ps.clip_by_global_norm(1.0), ps.adamw(1e-2, weight_decay=0.1))
        return model, optimizer

    def objective(model, batch):
        return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"], reduction="none"))

    def run(state, step, first, last):
        for number in range(first, last):
            generator = torch.Generator().manual_seed(number)
            x = torch.randn(8, 3, generator=generator)
            state, _ = step(state, {"x": x, "y": (x.sum(1) > 0).long()})
        return state

    def main(source, target, first, last):
        model, optimizer = make()
        state = ps.init_state(model, optimizer, seed=0)
        if source:
            state = load(source, like=state)
        save(target, run(state, ps.train_step(model, objective, optimizer), first, last))
    """
)


def test_a_run_that_is_taken_up_in_a_new_process_has_the_same_bits(tmp_path):
    def process(source: str, target: str, first: int, last: int) -> None:
        code = f"{RESUME}\nmain({source!r}, {target!r}, {first}, {last})\n"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    whole, half, resumed = (str(tmp_path / name) for name in ("whole", "half", "resumed"))
    scope: dict = {}
    threads = torch.get_num_threads()
    exec(RESUME, scope)
    try:
        scope["main"]("", whole, 0, 12)
        scope["main"]("", half, 0, 5)
    finally:
        torch.set_num_threads(threads)
    process(half, resumed, 5, 12)
    like = small_state()
    assert int(load(resumed, like=like).step) == 12
    assert_same_bits(load(resumed, like=like), load(whole, like=like))


# All or nothing


def _fails_halfway(tensors, path, metadata):
    with open(path, "wb") as file:
        file.write(b"half of the bytes")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (checkpoint, "save_file", _fails_halfway),
        (os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error"))),
        (os, "replace", lambda source, target: (_ for _ in ()).throw(KeyboardInterrupt)),
    ],
)
def test_an_error_while_writing_leaves_the_old_file(tmp_path, monkeypatch, owner, name, broken):
    path = tmp_path / "a.safetensors"
    save(path, small_state(0))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        with pytest.raises((OSError, KeyboardInterrupt)):
            save(path, small_state(1))
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert_same_bits(load(path, like=small_state(2)), small_state(0))


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def noted_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save(tmp_path / "a.safetensors", small_state())
    assert events == (["file", "rename", "folder"] if os.path.isdir("/proc/self/fd") else ["file", "rename", "file"])


def test_a_reader_sees_the_old_or_the_new(tmp_path):
    path, like = tmp_path / "a.safetensors", small_state()
    filled = [like.named_apply(lambda _, leaf, k=k: torch.full_like(leaf, k), filter_empty=False) for k in range(2)]
    save(path, filled[0])
    done = threading.Event()
    seen = []

    def read():
        while not done.is_set():
            seen.append({float(leaf.double().mean()) for leaf in leaves(load(path, like=like)).values()})

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        save(path, filled[turn % 2])
    done.set()
    reader.join()
    assert seen
    assert all(values in ({0.0}, {1.0}) for values in seen)


def test_folders_on_the_way_are_made(tmp_path):
    save(tmp_path / "runs" / "1" / "a.safetensors", small_state())
    assert os.listdir(tmp_path / "runs" / "1") == ["a.safetensors"]


# What is refused, and how


def test_a_donated_state_is_refused_by_name(tmp_path):
    state = small_state()
    _boundary.hand_over(state, _boundary.flatten_state(state), "train")
    with pytest.raises(DonatedStateError, match="was donated to the compiled step 'train'"):
        save(tmp_path / "a.safetensors", state)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: save(small_state(), d / "a"), TypeError, "path must be the name of a file, got TrainState"),
        (lambda d: save(d, small_state()), ValueError, "path must be the name of a file, got the folder"),
        (lambda d: save(d / "a", {"x": 1}), TypeError, "state must be a TrainState .* got dict"),
        (
            lambda d: save(d / "a", with_aux(z=torch.zeros(2, dtype=torch.complex128))),
            TypeError,
            "dtypes that safetensors can hold, got torch.complex128 as 'aux/z'",
        ),
        (
            lambda d: save(d / "a", with_aux(z=torch.eye(2).to_sparse())),
            TypeError,
            "state must hold plain dense tensors, got a torch.sparse_coo tensor as 'aux/z'",
        ),
        (
            lambda d: save(d / "a", small_state().replace(aux=TensorDict({"z": "text"}, batch_size=[]))),
            TypeError,
            "state must hold plain dense tensors, got a .* as 'aux/z'",
        ),
        (lambda d: save(d / "a", small_state(), extra={1: 2}), TypeError, r"extra must be .* got \{1: 2\}"),
        (
            lambda d: save(d / "a", small_state(), extra={"data": [1, (2, 3)]}),
            TypeError,
            r"extra\['data'\]\[1\] must be made of dicts with string keys, lists, .* got \(2, 3\) of type tuple",
        ),
        (
            lambda d: save(d / "a", small_state(), extra=torch.ones(1)),
            TypeError,
            "extra must be made of .* of type Tensor",
        ),
        (lambda d: load(d / "none", like=small_state()), FileNotFoundError, "none"),
        (lambda d: load_extra(d / "none"), FileNotFoundError, "none"),
        (lambda d: load(d, like=small_state()), ValueError, "path must be the name of a file, got the folder"),
        (lambda d: load(d / "good", like=small_model()), TypeError, "like must be a TrainState .* got Sequential"),
        (
            lambda d: load(d / "other", like=small_state()),
            ValueError,
            "that ps.checkpoint.save wrote, got '.*other', a safetensors file of other origin",
        ),
        (
            lambda d: load(d / "newer", like=small_state()),
            ValueError,
            "of format 1, which this purestep .* reads, got '.*newer' of format 2, written by purestep 9.9",
        ),
    ],
)
def test_bad_input_is_named(tmp_path, call, error, message):
    save(tmp_path / "good", small_state())
    save_file({"w": torch.ones(1)}, tmp_path / "other")
    about = {"format": 2, "purestep": "9.9", "torch": "9", "extra": None}
    save_file({"w": torch.ones(1)}, tmp_path / "newer", metadata={"purestep": json.dumps(about)})
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "header", "text", "zip"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    save(path, small_state())
    content = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "half": content[: len(content) // 2],
            "last byte": content[:-1],
            "header": content[:20],
            "text": b"these are not tensors at all, however long the line is",
            "zip": b"PK\3\4" + content,
        }[damage]
    )
    for read in (lambda: load(path, like=small_state()), lambda: load_extra(path)):
        with pytest.raises(ValueError, match=r"got '.*a\.safetensors', which is cut short or of another kind"):
            read()


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            lambda: ps.init_state(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), small_optimizer(), seed=0),
            r"the file has 'opt_state/1/exp_avg/3.bias'.*, which like has not.*'params/0.bias' is \(4,\) float32 in "
            r"the file and \(5,\) float32 in like",
        ),
        (
            lambda: ps.init_state(nn.Sequential(*small_model(), nn.PReLU()), small_optimizer(), seed=0),
            "the file lacks 'params/4.weight', 'opt_state/1/exp_avg/4.weight', 'opt_state/1/exp_avg_sq/4.weight'",
        ),
        (
            lambda: ps.init_state(small_model(), ps.sgd(0.1), seed=0),
            "the file has 'opt_state/0/norm', 'opt_state/1/count'.*, which like has not",
        ),
        (
            lambda: ps.init_state(small_model().double(), small_optimizer(), seed=0),
            r"'params/0.weight' is \(4, 3\) float32 in the file and \(4, 3\) float64 in like.* more differ",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, like, message):
    save(tmp_path / "a", small_state())
    pattern = "like must be a state of the model and optimizer whose state is in '.*a': .*" + message
    with pytest.raises(ValueError, match=pattern):
        load(tmp_path / "a", like=like())
