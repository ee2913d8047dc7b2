"""Damaged, forged and foreign checkpoints: an error that says what, whatever the bytes are."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import purestep as ps
from _checkpoints import MANIFEST, assert_same_bits, data_file, forge, forge_data, small_state
from purestep.checkpoint import CheckpointError, _manifest, latest, load, read_manifest, verify
from purestep.checkpoint import save as save_state

LIKE = small_state(seed=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint that tests copy."""
    path = tmp_path_factory.mktemp("whole") / "a"
    return save_state(path, small_state(), extra={"note": "é", "x": [1.5, None]}, optimizer=ps.sgd(0.1))


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "a")


def raises(path, message="manifest|tensors|file|format"):
    with pytest.raises(CheckpointError, match=message):
        load(path, like=LIKE)
    with pytest.raises(CheckpointError, match=message):
        verify(path)


# Cut short, or with a bit turned


def lengths(size: int) -> set[int]:
    return {0, 1, 7, 8, 9, 100, size // 2, size - 8, size - 2, size - 1, size + 1}


@pytest.mark.parametrize("which", ["manifest", "tensors"])
def test_a_file_that_was_cut_is_named(path, which):
    file = path / MANIFEST if which == "manifest" else data_file(path)
    content = file.read_bytes()
    for length in sorted(lengths(len(content))):
        file.write_bytes(content[:length] + b"\0" * (length - len(content)))
        raises(path, file.name)
        with pytest.raises(CheckpointError, match=file.name):
            read_manifest(path)  # which sees sizes


@pytest.fixture(scope="module")
def to_turn(whole, tmp_path_factory):
    """A checkpoint whose bits are turned, one after the other."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("turned") / "a")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
@pytest.mark.parametrize("which", ["manifest", "tensors"])
def test_a_bit_that_was_turned_is_seen(to_turn, which, place, bit):
    file = to_turn / MANIFEST if which == "manifest" else data_file(to_turn)
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[int(place * len(content))] ^= 1 << bit
    file.write_bytes(damaged)
    try:
        raises(to_turn, file.name)
        with pytest.raises(CheckpointError, match=file.name):
            latest(to_turn)
    finally:
        file.write_bytes(content)


@pytest.mark.faults
@pytest.mark.parametrize("which", ["manifest", "tensors"])
def test_a_bit_that_was_turned_in_any_byte_is_seen(to_turn, which):
    file = to_turn / MANIFEST if which == "manifest" else data_file(to_turn)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        raises(to_turn, file.name)
    file.write_bytes(content)


def test_every_bit_of_a_manifest_counts(whole):
    text = (whole / MANIFEST).read_bytes()
    assert _manifest.parsed(text, "it") == read_manifest(whole)
    for place in range(0, len(text), 3):
        damaged = bytearray(text)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(CheckpointError):
            _manifest.parsed(bytes(damaged), "it")


def test_a_file_that_is_missing_is_named(path):
    data_file(path).rename(path / "elsewhere")
    raises(path, "'.*a' is damaged: its manifest names 'state-.*', which is not there")
    (path / "elsewhere").rename(path / "state-0123456789ab.safetensors")
    (path / MANIFEST).unlink()
    raises(path, "'.*a' is damaged: its manifest.json is not there")


# Newer, older, foreign


def test_a_newer_format_is_named(path):
    forge(path, lambda said: said.update(format=3, purestep="9.9", something=[1]))
    raises(path, r"manifest.json' is of format 3, written by purestep '9.9', and this purestep .* reads format 2")


FOREIGN = {
    "another tool's": b'{"manifest_version": 3, "name": "x"}',
    "a list": b"[1, 2]",
    "a number": b"2",
    "a format that is a bool": b'{"format": true}',
    "nothing": b"",
    "a pickle": pickle.dumps({"format": 2}),
    "nested without end": b"[" * 100_000,
    "nested dicts": b'{"format":2,"extra":' * 50_000,
    "an int without end": b'{"format": ' + b"1" * 10_000 + b"}",
    "UTF-16": '{"format": 2}'.encode("utf-16"),
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_manifest_of_something_else_is_named(path, text):
    (path / MANIFEST).write_bytes(text)
    raises(path, MANIFEST)


def test_the_text_is_the_one_that_would_be_written(path):
    text = (path / MANIFEST).read_text()
    for other in (
        text.replace('"step": 0', '"step": 1, "step": 0'),
        text.replace('"step": 0', '"step": NaN'),
        text.replace('"step": 0', '"step": 0.0'),
        text.replace('"step": 0', '"step":  0'),
        text.replace('"step": 0', '"step": 0, "more": 1'),
        text.replace("\\u00e9", "é"),
        text + "\n",
        json.dumps(json.loads(text)),
    ):
        assert other != text
        (path / MANIFEST).write_text(other)
        raises(path, "damaged: its text is not the one that its SHA-256 was made of")


def test_a_manifest_of_no_reasonable_size_is_not_read(path):
    with open(path / MANIFEST, "r+b") as file:
        file.truncate(1 << 40)  # of holes: nothing is on the disk
    raises(path, "must have at most 268435456 bytes, got 1099511627776")


# Forged, with a hash that is right


def put(*keys, value):
    def change(said):
        for key in keys[:-1]:
            said = next(iter(said.values())) if key is None else said[key]
        said[keys[-1]] = value

    return change


def only_file(name):
    def change(said):
        said["files"] = {name: next(iter(said["files"].values()))}

    return change


FORGED = [
    (put("step", value=-1), r"step must be an int from 0 to 2\^63 - 1, got -1"),
    (put("step", value=float("nan")), "step must be .* got nan"),
    (put("calls", value=True), "calls must be .* got True"),
    (put("calls", value=1 << 63), "calls must be"),
    (put("saved", value=None), "saved must be a string, got None"),
    (put("data", value=[]), r"data must be a dict or null, got \[\]"),
    (put("scores", value={"a": "1"}), r"scores\['a'\] must be a number with a point, got '1'"),
    (put("files", value={}), "files must be a dict of one file"),
    (put("files", None, "bytes", value=-3), "must be a dict of sha256 and bytes"),
    (put("files", None, "bytes", value=1 << 62), "must have 4611686018427387904 bytes, got"),
    (put("files", None, "sha256", value="0" * 64), "of a sha256 that begins as the name says"),
    (only_file("../a/state-0123456789ab.safetensors"), "files must be named 'state-.*in the folder itself, got '../a"),
    (only_file("/etc/passwd"), "got '/etc/passwd'"),
    (only_file("state-0123456789ab.safetensors\n"), "files must be named"),
    (only_file("pickled.pt"), "got 'pickled.pt'"),
    (put("tensors", value=[]), "tensors must be a dict"),
    (put("tensors", "step", value={"shape": [-1], "dtype": "int64"}), r"tensors\['step'\] must be a shape and"),
    (put("tensors", "step", value={"shape": [2**40], "dtype": "int64"}), "tensors must be of no more bytes than"),
    (put("tensors", "step", value={"shape": [0] * 65, "dtype": "int64"}), "must be a shape and"),
    (put("tensors", "step", "dtype", value="qint8"), "must be a shape and the name of a dtype"),
    (put("tensors", "step", "dtype", value="save"), "must be a shape and the name of a dtype"),
    (put("tensors", "step", "dtype", value=["int64"]), "must be a shape and the name of a dtype"),
]


@pytest.mark.parametrize(("change", "message"), FORGED)
def test_a_forged_manifest_is_refused(path, change, message):
    forge(path, change)
    raises(path, message)


def test_the_header_must_say_what_the_manifest_says(path):
    forge(path, put("tensors", "step", value={"shape": [], "dtype": "float32"}))
    with pytest.raises(CheckpointError, match=r"got \(\) int64 as 'step', which is \(\) float32 there"):
        verify(path)
    forge(path, lambda said: said["tensors"].pop("step"))
    with pytest.raises(CheckpointError, match="must have the tensors of its manifest, got another 'step'"):
        verify(path)


def header(said) -> bytes:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    return struct.pack("<Q", len(text)) + text


FORGED_DATA = {
    "a header of terabytes": struct.pack("<Q", 1 << 43) + b"{}",
    "a tensor of terabytes": header({"step": {"dtype": "I64", "shape": [1 << 40], "data_offsets": [0, 1 << 43]}}),
    "sizes that wrap": header({"step": {"dtype": "I64", "shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}}),
    "sizes below zero": header({"step": {"dtype": "I64", "shape": [-1], "data_offsets": [0, 8]}}) + b"\0" * 8,
    "a header nested without end": header(b'{"a":' * 50_000),
    "two tensors over each other": header(
        {name: {"dtype": "I64", "shape": [], "data_offsets": [0, 8]} for name in ("step", "calls")}
    )
    + b"\0" * 8,
    "a pickle": pickle.dumps({"step": 1}),
    "nothing": b"",
    "other tensors": save({"step": torch.ones(2)}),
}


@pytest.mark.parametrize("content", FORGED_DATA.values(), ids=FORGED_DATA)
def test_forged_tensors_are_refused(path, content):
    forge_data(path, content, put("tensors", value={"step": {"shape": [], "dtype": "float8_e5m2"}}))
    with pytest.raises(CheckpointError):
        verify(path)
    forge_data(path, content, put("tensors", value={}))
    with pytest.raises(CheckpointError):
        verify(path)


# Links, pipes and pickles


def test_links_and_pipes_are_refused(path, tmp_path):
    outside = tmp_path / "outside"
    for name in (data_file(path), path / MANIFEST):
        name.rename(outside)
        name.symlink_to(outside)
        raises(path, f"{name.name}' must be a regular file, got a link")
        name.unlink()
        os.mkfifo(name)
        raises(path, f"{name.name}' must be a regular file")  # and nobody waits for a writer
        name.unlink()
        name.mkdir()
        raises(path, f"{name.name}' must be a regular file")
        name.rmdir()
        outside.rename(name)
    verify(path)
    (tmp_path / "link").symlink_to(path)
    assert_same_bits(load(tmp_path / "link", like=LIKE), small_state())  # a link to a whole checkpoint is one


class Malicious:
    def __init__(self, mark) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["", MANIFEST, "tensors"])
def test_a_pickle_is_refused_unread(path, tmp_path, name):
    mark = tmp_path / "ran"
    content = {"torch": None, "plain": pickle.dumps(Malicious(mark))}
    torch.save(Malicious(mark), tmp_path / "torch.pt")
    content["torch"] = (tmp_path / "torch.pt").read_bytes()
    for pickled in content.values():
        if name == "":
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
            path.write_bytes(pickled)
        elif name == MANIFEST:
            (path / MANIFEST).write_bytes(pickled)
        else:
            forge_data(path, pickled)
        raises(path)
        with pytest.raises(CheckpointError):
            latest(path)
    assert not mark.exists()


def test_a_checkpoint_that_is_damaged_can_be_replaced(path):
    (path / MANIFEST).write_bytes(b"\x80")
    assert_same_bits(load(save_state(path, LIKE), like=small_state()), LIKE)
    assert len(list(path.glob("state-*"))) == 1


def test_other_tools_read_the_tensors_and_ours_refuses_theirs(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"got the file '.*model.safetensors': a checkpoint is a folder"):
        load(tmp_path / "model.safetensors", like=LIKE)
