"""Weights in and out: into a module, as a state_dict, and from safetensors files, whole and in shards."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import purestep as ps
from purestep.checkpoint import CheckpointError, weights

RULE = ps.sgd(0.1, momentum=0.9)


class Net(nn.Module):
    """Two linear layers around a norm, whose statistics are buffers, and a table that is not saved."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.register_buffer("table", torch.arange(3.0), persistent=False)


class Tied(nn.Module):
    """A head whose weight is the embedding's."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5)
        self.head.weight = self.embed.weight


def made(kind, seed):
    torch.manual_seed(seed)
    model = kind()
    for buffer in model.buffers():
        buffer.add_(seed) if buffer.is_floating_point() else None
    return model


def state_of(model):
    return ps.init_state(model, RULE, seed=0)


def same(state, model):
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    got = {**dict(state.params.items()), **dict(state.buffers.items())}
    return list(got) == list(values) and all(torch.equal(got[name], value) for name, value in values.items())


def test_load_into_is_the_one_at_the_top():
    assert weights.load_into is ps.load_into


@pytest.mark.parametrize("kind", [Net, Tied])
def test_a_state_dict_is_what_the_module_takes(kind):
    model, other = made(kind, 1), made(kind, 2)
    state = state_of(model)
    found = weights.state_dict(state, model=other)
    assert list(found) == list(model.state_dict())
    other.load_state_dict(found)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert all(found[name] is leaf for name, leaf in state.params.items())  # no copies


def test_a_state_dict_without_the_module_has_each_tensor_once():
    assert list(weights.state_dict(state_of(made(Tied, 1)))) == ["embed.weight", "head.bias"]
    assert "table" in weights.state_dict(state_of(made(Net, 1)))
    assert "table" not in weights.state_dict(state_of(made(Net, 1)), model=made(Net, 2))


def test_a_state_takes_a_state_dict():
    model = made(Net, 1)
    state = state_of(made(Net, 2))
    after = weights.from_state_dict(state, {**model.state_dict(), "table": model.table})
    assert same(after, model)
    assert after.opt_state is state.opt_state
    model.first.weight.data.zero_()
    assert after.params["first.weight"].abs().sum() > 0  # a copy
    assert not same(state, model)


def test_the_layout_is_the_states():
    model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
    values = {name: value.contiguous() for name, value in model.state_dict().items()}
    state = state_of(model)
    assert state.params["weight"].is_contiguous(memory_format=torch.channels_last)
    after = weights.from_state_dict(state, values)
    assert after.params["weight"].is_contiguous(memory_format=torch.channels_last)
    assert same(after, model)


def test_what_is_not_saved_keeps_its_value_where_the_module_says_so():
    model, here = made(Net, 1), made(Net, 2)
    after = weights.from_state_dict(state_of(here), model.state_dict(), model=here)
    assert torch.equal(after.params["first.weight"], model.first.weight)
    assert torch.equal(after.buffers["norm.running_mean"], model.norm.running_mean)
    assert torch.equal(after.buffers["table"], here.table)


def test_a_tied_weight_is_found_by_any_of_its_names():
    model, here = made(Tied, 1), made(Tied, 2)
    both = model.state_dict()
    assert {"embed.weight", "head.weight"} < set(both)
    assert same(weights.from_state_dict(state_of(here), both), model)  # they share their memory
    cloned = {name: value.clone() for name, value in both.items()}
    assert same(weights.from_state_dict(state_of(here), cloned, model=here), model)
    del cloned["embed.weight"]
    assert same(weights.from_state_dict(state_of(here), cloned, model=here), model)
    with pytest.raises(ValueError, match="model= says which weights are tied"):
        weights.from_state_dict(state_of(here), cloned)


def test_names_are_renamed_and_dtypes_cast():
    model = made(Net, 1).to(torch.bfloat16)
    there = {f"body.{name}": value for name, value in model.state_dict().items()}
    here = made(Net, 2)
    after = weights.from_state_dict(state_of(here), there, model=here, rename={"body.": ""}, cast=True)
    assert after.params["first.weight"].dtype == torch.float32
    assert torch.equal(after.params["first.weight"], model.first.weight.float())
    assert after.buffers["norm.num_batches_tracked"].dtype == torch.int64


def test_what_fits_is_taken_without_strict_and_the_rest_named():
    model, here = made(Net, 1), made(Net, 2)
    there = dict(model.state_dict())
    there["last.weight"] = torch.zeros(7, 4)
    there["classifier.weight"] = torch.zeros(2)
    del there["last.bias"]
    with pytest.warns(UserWarning, match="last") as caught:
        after = weights.from_state_dict(state_of(here), there, model=here, strict=False)
    message = str(caught[0].message)
    assert all(name in message for name in ("'last.bias'", "'last.weight'", "'classifier.weight'"))
    assert caught[0].filename == __file__
    assert torch.equal(after.params["first.weight"], model.first.weight)
    assert torch.equal(after.params["last.weight"], here.last.weight)


# Files.


@pytest.fixture
def folder(tmp_path):
    """A folder of two shards and their index, as Hugging Face's."""
    return sharded(made(Net, 1), tmp_path / "shards")


def sharded(model, path):
    path.mkdir()
    values, files = model.state_dict(), {}
    for number, names in enumerate((list(values)[:3], list(values)[3:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: values[name] for name in names}, path / file)
        files |= dict.fromkeys(names, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return path


def test_a_file_a_folder_and_shards_are_read(tmp_path, folder):
    model, here = made(Net, 1), made(Net, 2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", str(tmp_path), folder):
        after = weights.load_weights(path, state_of(here), model=here)
        assert torch.equal(after.params["last.weight"], model.last.weight)
        assert torch.equal(after.buffers["norm.running_var"], model.norm.running_var)


def test_what_was_read_outlives_the_file(tmp_path):
    model, here = made(Net, 1), made(Net, 2)
    file = tmp_path / "w.safetensors"
    save_file(model.state_dict(), file)
    after = weights.load_weights(file, state_of(here), model=here)
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert torch.equal(after.params["first.weight"], model.first.weight)


def test_a_hub_cache_links_to_its_files(tmp_path, folder):
    cache = tmp_path / "snapshot"
    cache.mkdir()
    for file in folder.iterdir():
        (cache / file.name).symlink_to(file)
    here = made(Net, 2)
    assert torch.equal(
        weights.load_weights(cache, state_of(here), model=here).params["last.bias"], made(Net, 1).last.bias
    )


def test_an_export_is_read_back(tmp_path):
    model, here = made(Net, 1), made(Net, 2)
    save_file(weights.state_dict(state_of(model), model=model), tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == set(model.state_dict())
    assert torch.equal(
        weights.load_weights(tmp_path / "w.safetensors", state_of(here), model=here).params["first.bias"],
        model.first.bias,
    )


def gpt2():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 16}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def bert():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.BertForMaskedLM(transformers.BertConfig(**sizes, vocab_size=50, max_position_embeddings=16))


@pytest.mark.parametrize("size", ["1GB", "5KB"])
@pytest.mark.parametrize("kind", [gpt2, bert])
def test_a_pretrained_model_goes_in_and_out(kind, size, tmp_path):
    model, here = made(kind, 1), made(kind, 2)
    model.save_pretrained(tmp_path / "hub", max_shard_size=size)
    assert (tmp_path / "hub" / "model.safetensors.index.json").exists() == (size == "5KB")
    after = weights.load_weights(tmp_path / "hub", state_of(here), model=here)
    assert same(after, model)
    again = made(kind, 3)
    again.load_state_dict(weights.state_dict(after, model=again))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    ps.load_into(again, after)


def test_a_body_goes_under_a_head_and_a_head_is_left_new(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 50, "n_positions": 16}
    body = made(lambda: transformers.GPT2Model(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)), 1)
    body.save_pretrained(tmp_path)
    here = made(lambda: transformers.GPT2LMHeadModel(body.config), 2)
    # The head is tied to the embedding, so nothing is missing.
    after = weights.load_weights(tmp_path, state_of(here), model=here, rename={"": "transformer"})
    assert torch.equal(after.params["transformer.wte.weight"], body.wte.weight)
    classifier = nn.ModuleDict({"body": body, "head": nn.Linear(16, 2)})
    with pytest.warns(UserWarning, match="head.weight"):
        weights.load_weights(tmp_path, state_of(classifier), rename={"": "body"}, strict=False)


# What is refused.


class Evil:
    """A pickle that leaves a trace where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.safetensors"])
def test_a_pickle_is_refused_unread(name, tmp_path):
    trace, here = tmp_path / "trace", made(Net, 1)
    (tmp_path / "hub").mkdir()
    file = tmp_path / "hub" / name
    file.write_bytes(pickle.dumps(Evil(trace)))
    for path in (file, tmp_path / "hub"):
        with pytest.raises(CheckpointError, match="damaged or no safetensors" if "safe" in name else "is a pickle"):
            weights.load_weights(path, state_of(here))
    assert not trace.exists()


def test_a_header_that_claims_terabytes_is_refused(tmp_path):
    here, file = made(Net, 1), tmp_path / "w.safetensors"
    header = json.dumps({"first.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    for content in (struct.pack("<Q", 1 << 42) + b"{}", struct.pack("<Q", len(header)) + header + bytes(64)):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
            weights.load_weights(file, state_of(here))


def broken_by(edit):
    def breaking(folder):
        index = folder / "model.safetensors.index.json"
        table = json.loads(index.read_text())
        edit(folder, table["weight_map"])
        index.write_text(json.dumps(table))

    return breaking


def missing_shard(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut(folder):
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def a_folder(folder):
    missing_shard(folder)
    (folder / "model-00002-of-00002.safetensors").mkdir()


FIRST = "model-00001-of-00002.safetensors"
BROKEN = {
    "a shard is missing": (missing_shard, "'model-00002-of-00002.safetensors', which is missing"),
    "a shard is cut short": (cut, "damaged or no safetensors file"),
    "a shard is a folder": (a_folder, "must be a regular file"),
    "a path outside": (
        broken_by(lambda folder, table: table.update({"first.weight": "../model.safetensors"})),
        r"in its own folder, got '../model.safetensors' for 'first.weight'",
    ),
    "an absolute path": (
        broken_by(lambda folder, table: table.update({"first.weight": "/etc/model.safetensors"})),
        "in its own folder, got '/etc/model.safetensors'",
    ),
    "a path of Windows": (
        broken_by(lambda folder, table: table.update({"first.weight": "..\\model.safetensors"})),
        "in its own folder",
    ),
    "no string": (broken_by(lambda folder, table: table.update({"first.weight": 3})), "got 3 for 'first.weight'"),
    "a pickle in the index": (
        broken_by(lambda folder, table: table.update({"first.weight": "pytorch_model.bin"})),
        "must name .safetensors files",
    ),
    "a name that the shard has not": (
        broken_by(lambda folder, table: table.update({"new": FIRST})),
        f"'new' is missing from '{FIRST}'",
    ),
    "a name that the index has not": (
        broken_by(lambda folder, table: table.pop("first.weight")),
        f"'first.weight' is not looked for in '{FIRST}'",
    ),
    "an empty index": (broken_by(lambda folder, table: table.clear()), "must have a 'weight_map'"),
    "no JSON": (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "must be an index as JSON"),
    "nested JSON": (
        lambda folder: (folder / "model.safetensors.index.json").write_text("[" * 100_000),
        "must be an index as JSON",
    ),
    "a list": (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "must have a 'weight_map'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_shards_are_refused(case, folder):
    breaking, message = BROKEN[case]
    breaking(folder)
    here = made(Net, 2)
    with pytest.raises(CheckpointError, match=message):
        weights.load_weights(folder, state_of(here), model=here)


def test_a_folder_says_what_it_has_instead(tmp_path):
    here = made(Net, 1)
    state = state_of(here)
    ps.checkpoint.save(tmp_path / "run", state)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    save_file(here.state_dict(), tmp_path / "other" / "w.safetensors")
    for name, message in (
        ("run", "is a checkpoint of purestep"),
        ("empty", "which is empty"),
        ("other", "'w.safetensors': give the file itself"),
    ):
        with pytest.raises(CheckpointError, match=message):
            weights.load_weights(tmp_path / name, state)
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        weights.load_weights(tmp_path / "nowhere.safetensors", state)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"must be a .safetensors file or a folder"):
        weights.load_weights(tmp_path / "notes.txt", state)


def swapped(**changes):
    """The state_dict of a Net with some names replaced, and others (``None``) taken away."""
    values = {name: value.clone() for name, value in {**made(Net, 1).state_dict(), "table": torch.zeros(3)}.items()}
    for name, value in changes.items():
        values.pop(name.replace("__", "."), None)
        values |= {} if value is None else value
    return values


BAD = {
    "a near miss": (
        lambda: {"weights": swapped(first__weight={"frist.weight": torch.zeros(4, 3)})},
        ValueError,
        "lacks 'first.weight'.*'frist.weight', which the state has not.*'first.weight' may be 'frist.weight' there",
    ),
    "a name missing": (lambda: {"weights": swapped(last__bias=None)}, ValueError, "lacks 'last.bias'"),
    "a shape": (
        lambda: {"weights": swapped(last__bias={"last.bias": torch.zeros(3)})},
        ValueError,
        r"'last.bias' is \(3,\) float32 in weights and \(2,\) float32 in the state",
    ),
    "a dtype": (
        lambda: {"weights": swapped(last__bias={"last.bias": torch.zeros(2).double()})},
        ValueError,
        "'last.bias' is .* float64 .*cast=True converts",
    ),
    "an int for a float": (
        lambda: {"weights": swapped(last__bias={"last.bias": torch.zeros(2, dtype=torch.int64)}), "cast": True},
        ValueError,
        "'last.bias' is .* int64",
    ),
    "no dict": (lambda: {"weights": [torch.zeros(2)]}, TypeError, "weights must be a dict of tensors by name, got"),
    "no tensor": (lambda: {"weights": {"a": 1.0}}, TypeError, "weights must be a dict of tensors.*'a': a float"),
    "cast": (lambda: {"weights": swapped(), "cast": 1}, TypeError, "cast must be True or False, got 1"),
    "strict": (lambda: {"weights": swapped(), "strict": "no"}, TypeError, "strict must be True or False, got 'no'"),
    "rename": (lambda: {"weights": swapped(), "rename": {"frist": "first"}}, ValueError, "rename must .*'frist'"),
    "rename to one": (
        lambda: {"weights": swapped(), "rename": {"first": "last"}},
        ValueError,
        "rename must keep names apart",
    ),
    "another model": (
        lambda: {"weights": swapped(), "model": nn.Linear(1, 1)},
        ValueError,
        "state does not belong to this model",
    ),
    "no model": (lambda: {"weights": swapped(), "model": "Net"}, TypeError, "model must be a torch.nn.Module"),
    "nothing fits": (
        lambda: {"weights": {"a": torch.zeros(2)}, "strict": False},
        ValueError,
        "state must be of the model that the weights are of",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case):
    arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        weights.from_state_dict(state_of(made(Net, 2)), **arguments())


def test_tied_names_with_two_values_are_refused():
    here = made(Tied, 1)
    values = {name: value.clone() for name, value in here.state_dict().items()}
    values["head.weight"] += 1
    with pytest.raises(ValueError, match=r"one value for a tied weight, got two for 'embed.weight'"):
        weights.from_state_dict(state_of(here), values, model=here)


def test_other_arguments_are_refused():
    state = state_of(made(Net, 1))
    for call in (
        weights.state_dict,
        lambda one: weights.from_state_dict(one, {}),
        lambda one: weights.load_weights("", one),
    ):
        with pytest.raises(TypeError, match="state must be a TrainState"):
            call({})
    with pytest.raises(TypeError, match=r"path must be that of a .safetensors file or of a folder, got 3"):
        weights.load_weights(3, state)
    with pytest.raises(ValueError, match="state does not belong to this model"):
        weights.state_dict(state, model=made(Tied, 1))

    class Extra(nn.Linear):
        def get_extra_state(self):
            return torch.zeros(1)

    model = Extra(1, 1)
    with pytest.raises(ValueError, match=r"nothing in its state_dict but parameters and buffers.*'_extra_state'"):
        weights.state_dict(state_of(model), model=model)


def test_nothing_warns_where_all_fits(tmp_path):
    here = made(Net, 2)
    save_file(made(Net, 1).state_dict(), tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.load_weights(tmp_path / "w.safetensors", state_of(here), model=here, strict=False)
