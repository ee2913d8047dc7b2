"""Writing: the old checkpoint or the new one, nothing between, and nothing left; a run goes on in a new process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

import purestep as ps
from _checkpoints import MANIFEST, assert_same_bits, data_file, files, leaves, small_state
from purestep.checkpoint import load, load_extra, load_metrics, save, verify
from purestep.execution import _boundary


def test_saving_again_replaces_and_cleans_up(tmp_path):
    path = save(tmp_path / "runs" / "1" / "a", small_state(0))
    old = data_file(path)
    (path / "notes.txt").write_text("not ours")
    (path / ".tmpXyz").write_text("of a save that was killed")
    (path / "state-0123456789ab.safetensors").write_text("of another")
    save(path, small_state(1))
    assert files(path) == [MANIFEST, "notes.txt", data_file(path).name]
    assert not old.exists()
    assert_same_bits(load(path, like=small_state(2)), small_state(1))
    save(path, small_state(1), extra=1)  # the same tensors, so the same file
    assert files(path) == [MANIFEST, "notes.txt", data_file(path).name]
    assert load_extra(verify(path) and path) == 1


def test_files_get_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    path = save(tmp_path / "a", small_state())
    modes = {name: (path / name).stat().st_mode for name in files(path)}
    assert set(modes.values()) == {(tmp_path / "any").stat().st_mode}


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        fsync(handle)

    def noted_replace(source, target):
        events.append("manifest" if str(target).endswith(MANIFEST) else "tensors")
        replace(source, target)

    (tmp_path / "a").mkdir()
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    save(tmp_path / "a", small_state())
    flushed = "folder" if os.path.isdir("/proc/self/fd") else "file"
    assert events == ["file", "tensors", flushed, "file", "manifest", flushed]
    events.clear()
    save(tmp_path / "b" / "c", small_state())
    assert events[:2] == [flushed] * 2  # the names of the new folders


def test_a_reader_sees_the_old_or_the_new(tmp_path):
    path, like = tmp_path / "a", small_state()
    filled = [like.named_apply(lambda _, leaf, k=k: torch.full_like(leaf, k), filter_empty=False) for k in range(2)]
    save(path, filled[0], metrics={"k": torch.tensor(0.0)})
    done = threading.Event()
    seen, failed = [], []

    def read():
        try:
            while not done.is_set():
                seen.append({float(leaf.double().mean()) for leaf in leaves(load(path, like=like)).values()})
                seen.append({float(load_metrics(path)["k"])})
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(1, 20):
        save(path, filled[turn % 2], metrics={"k": torch.tensor(turn % 2.0)})
    done.set()
    reader.join()
    assert not failed
    assert seen
    assert all(values in ({0.0}, {1.0}) for values in seen)


def test_a_donated_state_is_refused_by_name(tmp_path):
    state = small_state()
    _boundary.hand_over(state, _boundary.flatten_state(state), "train")
    with pytest.raises(ps.state.DonatedStateError, match="was donated to the compiled step 'train'"):
        save(tmp_path / "a", state)
    assert os.listdir(tmp_path) == []


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
    assert data_file(tmp_path / "resumed").name == data_file(tmp_path / "whole").name
