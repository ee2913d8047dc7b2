"""What saving and loading refuse, and how; what does not fit is named; what fits is taken, by other names too."""

from __future__ import annotations

import os
import warnings

import pytest
import torch
from tensordict import TensorDict
from torch import nn

import purestep as ps
from _checkpoints import assert_same_bits, files, leaves, small_model, small_optimizer, small_state, with_aux
from purestep.checkpoint import (
    CheckpointError,
    latest,
    load,
    load_data,
    load_extra,
    load_metrics,
    read_manifest,
    save,
    verify,
)


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


NO_PATH = "path must be the name of a folder, got "
SAVES = [
    (lambda d: save(small_state(), d / "a"), TypeError, NO_PATH + "TrainState"),
    (lambda d: save(b"a", small_state()), TypeError, NO_PATH + "b'a' of type bytes"),
    (lambda d: save("", small_state()), ValueError, NO_PATH + "''"),
    (lambda d: save("a\0b", small_state()), ValueError, NO_PATH + r"'a\\x00b'"),
    (
        lambda d: save(d / "file", small_state()),
        CheckpointError,
        NO_PATH + "the file '.*file': a checkpoint is a folder with manifest.json and",
    ),
    (
        lambda d: save(d, small_state()),
        ValueError,
        "path must be a new or empty folder, or a checkpoint to replace, got '.*', which is none and holds 'file'",
    ),
    (lambda d: save(d / "a", {"x": 1}), TypeError, "state must be a TrainState .* got dict"),
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
    (
        lambda d: save(d / "a", with_aux(z=torch.empty(2, dtype=torch.bits8))),
        TypeError,
        "state must hold dtypes that a safetensors file can keep, got torch.bits8 as 'aux/z'",
    ),
    (
        lambda d: save(d / "a", small_state().to("meta")),
        ValueError,
        "state must have values, got 'params/0.weight'.*meta",
    ),
    (lambda d: save(d / "a", small_state(), extra={1: 2}), TypeError, r"extra must be .* got \{1: 2\}"),
    (
        lambda d: save(d / "a", small_state(), extra={"data": [1, (2, 3)]}),
        TypeError,
        r"extra\['data'\]\[1\] must be made of dicts with string keys, lists, .* got \(2, 3\) of type tuple",
    ),
    (lambda d: save(d / "a", small_state(), extra=torch.ones(1)), TypeError, "extra must be made of .* of type Tensor"),
    (lambda d: save(d / "a", small_state(), extra=nested(99)), ValueError, r"extra.* must have at most 64 levels"),
    (lambda d: save(d / "a", small_state(), extra=10**5000), ValueError, "extra must be what JSON can hold: .*4300"),
    (lambda d: save(d / "a", small_state(), data=3), TypeError, r"data must be a pipeline .* got 3 of type int"),
    (lambda d: save(d / "a", small_state(), data={"x": {2}}), TypeError, r"data\['x'\] must be made of .* of type set"),
    (lambda d: save(d / "a", small_state(), metrics=torch.ones(1)), TypeError, "metrics must be a dict .* got Tensor"),
    (lambda d: save(d / "a", small_state(), metrics={"a": {1: 2}}), TypeError, "metrics must have strings .* got 1"),
    (lambda d: save(d / "a", small_state(), metrics={"a": {"b": 2}}), TypeError, "metrics must hold .* int as 'a/b'"),
    (
        lambda d: save(d / "a", small_state(), optimizer=torch.optim.SGD([torch.ones(1)], 0.1)),
        TypeError,
        "optimizer must be a purestep Optimizer",
    ),
]
LOADS = [
    (lambda d: load(d / "good", like=small_model()), TypeError, "like must be a TrainState .* got Sequential"),
    (
        lambda d: load(d / "good", like=small_state().to("meta")),
        ValueError,
        "device must be given where like is on the meta device",
    ),
    (lambda d: load(d / "good", like=small_state(), strict=1), TypeError, "strict must be True or False, got 1"),
    (
        lambda d: load(d / "good", like=small_state(), rename="a"),
        TypeError,
        "rename must be a dict .* got 'a' of type str",
    ),
    (lambda d: load(d / "good", like=small_state(), rename={"a": 1}), TypeError, "rename must be .* got 'a': 1"),
    (lambda d: load(d / "good", like=small_state(), rename={"": "b"}), ValueError, "rename must be .* the empty name"),
    (
        lambda d: load(d / "good", like=small_state(), rename={"0": "params/0"}),
        ValueError,
        "got '0': 'params/0', of which only the second is a path",
    ),
    (
        lambda d: load(d / "good", like=small_state(), rename={"params/0.wieght": "x"}),
        ValueError,
        r"got 'params/0.wieght', which fits none \(did you mean 'params/0.weight'",
    ),
    (
        lambda d: load(d / "good", like=small_state(), rename={"params/0": "params/3"}),
        ValueError,
        "rename must keep names apart, .*'params/0.weight' and 'params/3.weight' of the checkpoint both become",
    ),
    (
        lambda d: load(d / "good", like=small_state(), rename={"step": ""}),
        ValueError,
        "rename must leave a name for each of the checkpoint, .* by which 'step' has none",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), SAVES + LOADS)
def test_bad_input_is_named(tmp_path, call, error, message):
    save(tmp_path / "good", small_state())
    (tmp_path / "file").write_text("x")
    before = sorted(os.listdir(tmp_path)), files(tmp_path / "good")
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert (sorted(os.listdir(tmp_path)), files(tmp_path / "good")) == before


READS = [lambda path: load(path, like=small_state()), load_data, load_extra, load_metrics, read_manifest, verify]


@pytest.mark.parametrize("read", READS)
def test_what_is_read_must_be_there_and_be_a_folder(tmp_path, read):
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        with pytest.raises(FileNotFoundError, match=name):
            read(tmp_path / name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"got the file '.*file': a checkpoint is a folder"):
        read(tmp_path / "file")
    with pytest.raises(TypeError, match=NO_PATH + "None"):
        read(None)


def test_latest_is_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"got the file"):
        latest(tmp_path / "file")
    with pytest.raises(TypeError, match=NO_PATH + "3"):
        latest(3)


# What does not fit


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            lambda: ps.init_state(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), small_optimizer(), seed=0),
            r"the checkpoint has 'params/3.weight', .*'opt_state/1/exp_avg_sq/3.bias', which like has not.*"
            r"'params/0.bias' is \(4,\) float32 in the checkpoint and \(5,\) float32 in like",
        ),
        (
            lambda: ps.init_state(nn.Sequential(*small_model(), nn.PReLU()), small_optimizer(), seed=0),
            "the checkpoint lacks 'params/4.weight', 'opt_state/1/exp_avg/4.weight', 'opt_state/1/exp_avg_sq/4.weight'",
        ),
        (
            lambda: ps.init_state(small_model(), ps.sgd(0.1), seed=0),
            "the checkpoint has 'opt_state/0/norm', .*'opt_state/1/count', which like has not",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, like, message):
    save(tmp_path / "a", small_state())
    pattern = "like must be a state of the model and optimizer whose state is in '.*a': .*" + message
    with pytest.raises(ValueError, match=pattern) as caught:
        load(tmp_path / "a", like=like())
    assert not isinstance(caught.value, CheckpointError)  # nothing is wrong with what is on the disk


def test_everything_that_differs_is_named(tmp_path):
    saved, like = small_state(), ps.init_state(small_model().double(), small_optimizer(), seed=0)
    save(tmp_path / "a", saved)
    with pytest.raises(ValueError, match="like must be") as caught:
        load(tmp_path / "a", like=like)
    tensors = read_manifest(tmp_path / "a").tensors
    for name, about in tensors.items():
        assert (f"{name!r} is {about} in the checkpoint" in str(caught.value)) == (about.dtype == "float32"), name


# Fine-tuning: what fits is taken


def wider() -> ps.TrainState:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 7), nn.PReLU())
    return ps.init_state(model, small_optimizer(), seed=5)


def test_not_strict_takes_what_fits_and_warns_once(tmp_path):
    saved, like = small_state(), wider()
    save(tmp_path / "a", saved)
    before = like.clone()
    with pytest.warns(UserWarning, match="the checkpoint does not fit like in all") as caught:
        back = load(tmp_path / "a", like=like, strict=False)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    said = str(caught[0].message)
    for name in ("params/4.weight", "params/3.weight", "opt_state/1/exp_avg/3.bias", "opt_state/1/exp_avg_sq/4.weight"):
        assert repr(name) in said
    assert "params/0.weight" not in said
    for name, leaf in leaves(back).items():
        source = like if any(part in name for part in ("3.weight", "3.bias", "4.weight")) else saved
        assert torch.equal(leaf, leaves(source)[name]), name
        assert leaf.data_ptr() != leaves(like)[name].data_ptr()
    assert_same_bits(like, before)


def test_not_strict_needs_values_for_the_rest(tmp_path):
    save(tmp_path / "a", small_state())
    with (
        pytest.warns(UserWarning, match="does not fit"),
        pytest.raises(ValueError, match=r"like must have values for what the checkpoint lacks, got 'params/3.weight'"),
    ):
        load(tmp_path / "a", like=wider().to("meta"), device="cpu", strict=False)


# Renaming


class Named(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        for name, layer in zip(names, small_model(), strict=True):
            self.add_module(name, layer)


def named_state(*names: str, seed: int = 0) -> ps.TrainState:
    torch.manual_seed(seed)
    return ps.init_state(Named(*names), small_optimizer(), seed=seed)


def test_a_name_is_renamed_in_every_tree(tmp_path):
    save(tmp_path / "a", named_state("fc", "norm", "act", "fc2"))
    like = named_state("first", "norm", "act", "last", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = load(tmp_path / "a", like=like, rename={"fc": "first", "fc2": "last"})
    saved = named_state("fc", "norm", "act", "fc2")
    assert torch.equal(back.params["first.weight"], saved.params["fc.weight"])
    assert torch.equal(back.params["last.weight"], saved.params["fc2.weight"])


def test_a_path_is_renamed_where_it_is(tmp_path):
    save(tmp_path / "a", named_state("fc", "norm", "act", "fc2"))
    like = named_state("first", "norm", "act", "fc2", seed=1)
    with pytest.raises(ValueError, match=r"lacks 'opt_state/1/exp_avg/first.weight'") as caught:
        load(tmp_path / "a", like=like, rename={"params/fc": "params/first"})
    assert "params/" not in str(caught.value).split(": ", 1)[1]
    trees = ("params", "opt_state/1/exp_avg", "opt_state/1/exp_avg_sq")
    back = load(tmp_path / "a", like=like, rename={f"{tree}/fc": f"{tree}/first" for tree in trees})
    assert torch.equal(back.params["first.bias"], named_state("fc", "norm", "act", "fc2").params["fc.bias"])


def test_what_lacks_a_new_name_is_named_by_both(tmp_path):
    save(tmp_path / "a", named_state("fc", "norm", "act", "fc2"))
    with pytest.raises(ValueError, match=r"has 'params/body.weight' \('params/fc.weight' there\)"):
        load(tmp_path / "a", like=small_state(), rename={"fc": "body"})
    with pytest.raises(ValueError, match=r"\(rename=\{name there: name here\} maps names\)$"):
        load(tmp_path / "a", like=small_state())
