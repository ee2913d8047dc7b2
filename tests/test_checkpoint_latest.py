"""The newest whole checkpoint of a folder, whatever else is in it."""

from __future__ import annotations

import importlib
import shutil

import pytest
import torch

import purestep as ps
from _checkpoints import MANIFEST, assert_same_bits, data_file, small_state
from purestep.checkpoint import latest, load, save


def numbered(seed: int, calls: int) -> ps.TrainState:
    return small_state(seed).replace(calls=torch.tensor(calls), step=torch.tensor(calls - 1))


def test_latest_is_the_newest_whole_one(tmp_path, recwarn):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "none") is None
    for name, calls in (("a", 3), ("b", 20), ("c", 5)):
        save(tmp_path / name, numbered(0, calls))
    save(tmp_path / ".hidden", numbered(0, 99))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "events").write_text("x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "killed").mkdir()  # before its first save was done: it never was a checkpoint
    (tmp_path / "killed" / ".tmpAbc").write_text("half")
    assert latest(tmp_path) == tmp_path / "b"
    assert latest(str(tmp_path)) == tmp_path / "b"
    assert latest(tmp_path / "c") == tmp_path / "c"
    assert not recwarn


def test_latest_passes_over_what_is_damaged(tmp_path):
    for name, calls in (("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)):
        save(tmp_path / name, numbered(calls, calls))
    (tmp_path / "e" / MANIFEST).unlink()
    (tmp_path / "d" / MANIFEST).write_text("{}")
    content = bytearray(data_file(tmp_path / "c").read_bytes())
    content[-1] ^= 1
    data_file(tmp_path / "c").write_bytes(content)
    with pytest.warns(UserWarning, match="passed over") as caught:
        found = latest(tmp_path)
    assert found == tmp_path / "b"
    assert len(caught) == 1
    assert caught[0].filename == __file__
    said = str(caught[0].message)
    for part in ("took '", "d/manifest.json' is no manifest", "e' is damaged: its manifest.json", "SHA-256 must be"):
        assert part in said
    assert_same_bits(load(found, like=small_state(1)), numbered(2, 2))
    for name in ("a", "b"):
        data_file(tmp_path / name).unlink()
    with pytest.warns(UserWarning, match="there is no whole one"):
        assert latest(tmp_path) is None


def test_a_writer_that_keeps_one_is_overtaken_by_nobody(tmp_path, monkeypatch):
    """The one that was listed is taken away, and a newer one put there, before it is read."""
    module = importlib.import_module("purestep.checkpoint.latest")
    real = module.verify
    save(tmp_path / "a", numbered(0, 1))

    def overtaken(path):
        if path.name == "a":
            save(tmp_path / "b", numbered(0, 2))
            shutil.rmtree(path, ignore_errors=True)
        return real(path)

    monkeypatch.setattr(module, "verify", overtaken)
    assert latest(tmp_path) == tmp_path / "b"
