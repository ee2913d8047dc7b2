"""Sources of arrays, tokens, files and other libraries; random transforms of one example; a cache in files."""

from __future__ import annotations

import os
import pickle
import resource
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tensordict import NonTensorStack, TensorDict
from torch import Tensor

import purestep as ps
from purestep import data

EVERYTHING = torch.arange(6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six grey pictures of 4 x 3 pixels, and a table that names them."""
    generator = np.random.default_rng(0)
    for row in range(6):
        Image.fromarray(generator.integers(0, 256, (4, 3), dtype=np.uint8)).save(tmp_path / f"{row}.png")
    pd.DataFrame({"image": [f"{row}.png" for row in range(6)], "label": range(6)}).to_csv(
        tmp_path / "t.csv", index=False
    )
    return tmp_path


# ---------------------------------------------------------------------------------------------- NumPy's arrays


def test_arrays_are_held_and_mapped_ones_stay_in_their_files(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)[::-1]
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    big = np.arange(6, dtype=">i4")
    frozen = np.arange(6)
    frozen.setflags(write=False)
    for arrays, in_memory in ({"x": x, "y": y, "b": big, "f": frozen}, True), ({"x": mapped, "y": y, "b": big}, False):
        source = data.from_arrays(arrays)
        batch = source.fetch(torch.tensor([5, 1]))
        assert (len(source), source.in_memory, batch.batch_size) == (6, in_memory, (2,))
        assert (batch["x"].tolist(), batch["y"].tolist(), batch["b"].tolist()) == ([[10, 11], [2, 3]], [0, 4], [5, 1])
    batch["x"][0] = 7  # a batch is the loop's own
    assert np.array_equal(mapped, x)
    shared = data.from_arrays({"x": x})
    x[5] = -1
    assert shared.fetch(torch.tensor([5]))["x"].tolist() == [[-1, -1]]


# -------------------------------------------------------------------------------------------------------- tokens


@settings(max_examples=40)
@given(count=st.integers(2, 40), length=st.integers(1, 8), stride=st.integers(1, 8))
def test_windows_are_slices_and_as_many_as_fit(count: int, length: int, stride: int) -> None:
    if count < length + 1:
        return
    tokens = torch.arange(100, 100 + count, dtype=torch.int32)
    source = data.token_windows(tokens, length=length, stride=stride)
    right = [tokens[at : at + length + 1].tolist() for at in range(0, count - length, stride)]
    batch = source.fetch(torch.arange(len(source)))
    assert [
        [*read, said[-1]] for read, said in zip(batch["input"].tolist(), batch["target"].tolist(), strict=True)
    ] == right
    assert (batch["input"][:, 1:] == batch["target"][:, :-1]).all()
    assert batch["input"].dtype == torch.int64
    target = batch["target"].clone()
    batch["input"].fill_(-1)  # as one does who masks it
    assert torch.equal(batch["target"], target)


def test_a_text_is_its_bytes_or_what_encode_makes_of_it(tmp_path: Path) -> None:
    text = "día a día"
    first = data.token_windows(text, length=4).fetch(torch.tensor([0]))
    assert bytes(first["input"][0].tolist()).decode() == "día"
    words = data.token_windows("a b a c", length=2, encode=lambda text: [ord(word) for word in text.split()])
    assert words.fetch(torch.tensor([0]))["target"].tolist() == [[98, 97]]
    np.arange(9, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    mapped = data.token_windows(np.memmap(tmp_path / "tokens.bin", np.uint16, "r"), length=3)
    assert not mapped.in_memory
    assert mapped.fetch(torch.tensor([1]))["target"].tolist() == [[4, 5, 6]]


# ------------------------------------------------------------------------------------------------ memory mapped


def test_a_cache_in_files_is_read_back(folder: Path) -> None:
    source = data.image_folder(folder, folder / "t.csv", mode="L")
    written = data.cache(source, block=4, folder=folder / "cache")
    read = data.memory_mapped(folder / "cache")
    copied = pickle.loads(pickle.dumps(read))
    for cached in (written, read, copied):
        assert not cached.in_memory
        assert (cached.fetch(EVERYTHING.flip(0)) == source.fetch(EVERYTHING.flip(0))).all()
    nested = TensorDict({"a": torch.arange(6), "deep": {"b": torch.ones(6, 2)}}, [6]).memmap(str(folder / "nested"))
    assert nested is not None
    assert data.memory_mapped(folder / "nested").fetch(torch.tensor([4]))["deep", "b"].tolist() == [[1.0, 1.0]]


def test_what_is_larger_than_memory_is_read_row_by_row(tmp_path: Path) -> None:
    """A sparse file of 64 GB, in a shuffled order: the process grows by some megabytes at most."""
    rows, columns = 2**24, 1024
    part = TensorDict({"x": torch.zeros(1, columns), "row": torch.zeros(1, dtype=torch.int64)}, [1])
    whole = part.expand(rows).memmap_like(str(tmp_path / "whole"))
    for row in data.shuffled(rows, seed=0)(0, torch.arange(64)).tolist():
        whole["row"][row] = row
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = data.memory_mapped(tmp_path / "whole")
    batches = data.pipeline(source, data.shuffled(rows, seed=0), batch_size=64)
    batch = next(iter(batches))
    assert torch.equal(batch["row"], data.shuffled(rows, seed=0)(0, torch.arange(64)))
    assert batch["x"].shape == (64, columns)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


# ------------------------------------------------------------------------------- random transforms of one example


def keyed(image: Tensor, key: Tensor) -> Tensor:
    return image + ps.random.uniform(key, ())


def generated(image: Tensor, *, generator: torch.Generator) -> Tensor:
    return image + torch.rand((), generator=generator)


@pytest.mark.parametrize("transform", [keyed, generated])
def test_transforms_draw_from_their_examples_key(folder: Path, transform: Callable[..., Tensor]) -> None:
    plain = data.image_folder(folder, folder / "t.csv", mode="L").fetch(EVERYTHING)["image"]
    source = data.image_folder(folder, folder / "t.csv", mode="L", transform=transform)
    assert source.draws

    def shifts(**arguments: Any) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {row: [] for row in range(6)}
        for batch in data.pipeline(source, data.shuffled(6, 0), epochs=2, **{"batch_size": 4, **arguments}):
            for image, row in zip(batch["image"], batch["label"].tolist(), strict=True):
                found[row].append(round(float((image - plain[row]).mean()), 5))
        return found

    right = shifts()
    assert len({shift for both in right.values() for shift in both}) == 12
    assert shifts(workers=2) == shifts(batch_size=1) == right
    assert shifts(seed=1) != right


def test_an_image_and_its_target_are_turned_alike(folder: Path) -> None:
    source = data.image_folder(
        folder,
        folder / "t.csv",
        mode="L",
        transform=keyed,
        target_transform=lambda label, key: ps.random.uniform(key, ()),
    )
    plain = data.image_folder(folder, folder / "t.csv", mode="L").fetch(EVERYTHING)["image"]
    batch = next(iter(data.pipeline(source, data.sequential(6), batch_size=6)))
    assert torch.allclose((batch["image"] - plain).mean((1, 2, 3)), batch["label"], atol=1e-6)


def test_a_frames_images_may_draw(folder: Path) -> None:
    table = pd.DataFrame({"path": [f"{row}.png" for row in range(6)]})
    source = data.dataframe(table, inputs={"x": "path"}, folder=folder, mode="L", transform=generated)
    both = data.multi(source, labels=data.from_tensors({"y": EVERYTHING}))
    assert both.draws
    assert next(iter(data.pipeline(both, data.sequential(6), batch_size=3)))["x"].shape == (3, 1, 4, 3)


# ------------------------------------------------------------------------------------------------ other libraries


def parquet_file(folder: Path) -> Path:
    pytest.importorskip("pyarrow")
    path = folder / "t.parquet"
    table = {
        "a": [1.0, 2.0],
        "n": [3, 4],
        "v": [[1.0, 2.0], [3.0, 4.0]],
        "photo": ["0.png", "1.png"],
        "label": ["x", "y"],
    }
    pd.DataFrame(table).to_parquet(path, engine="pyarrow")
    return path


def test_parquet(folder: Path) -> None:
    inputs = {"tabular": ["a", "n"], "v": "v", "image": "photo"}
    source = data.parquet(parquet_file(folder), inputs=inputs, label="label", folder=folder, mode="L")
    batch = source.fetch(torch.tensor([1]))
    assert (batch["tabular"].tolist(), batch["v"].tolist(), batch["label"].tolist()) == ([[2, 4]], [[3, 4]], [1])
    assert batch["image"].shape == (1, 1, 4, 3)
    with pytest.raises(ValueError, match=r"inputs and label must be columns of '.*t\.parquet', got 'b'"):
        data.parquet(folder / "t.parquet", inputs={"x": ["b"]})
    (folder / "no.parquet").write_text("text")
    with pytest.raises(ValueError, match=r"path must be a Parquet file, and '.*no\.parquet' is not: "):
        data.parquet(folder / "no.parquet", inputs={"x": "a"})


class Rows:
    """What a ``datasets.Dataset`` answers, of which the source asks."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = columns

    column_names = property(lambda self: list(self.columns))

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows: list[int]) -> dict[str, list[Any]]:
        return {name: [values[row] for row in rows] for name, values in self.columns.items()}

    def with_format(self, kind: None) -> Rows:
        return self

    def select_columns(self, names: list[str]) -> Rows:
        return Rows({name: self.columns[name] for name in names})


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> type:
    try:
        import datasets
    except ImportError:
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(Dataset=Rows))  # type: ignore[arg-type]
        return Rows
    return datasets.Dataset.from_dict


def test_hugging_face(rows: Any) -> None:
    table = rows({"ids": [[1, 2], [3, 4], [5, 6]], "score": [0.5, 1.5, 2.5], "text": ["a", "b", "c"]})
    source = data.huggingface(table, columns=["ids", "score"])
    batch = source.fetch(torch.tensor([2, 0]))
    assert (batch["ids"].tolist(), batch["score"].tolist()) == ([[5, 6], [1, 2]], [2.5, 0.5])
    assert batch["score"].dtype == torch.float32
    with pytest.raises(data.DecodeError, match=r"column 'text' of the dataset must hold numbers .*, got 'b' in row 1"):
        data.huggingface(table).fetch(torch.tensor([1]))
    ragged = data.huggingface(rows({"ids": [[1], [2, 3]]}))
    with pytest.raises(ValueError, match=r"has \(1,\) in row 0 but \(2,\) in row 1: pad them"):
        ragged.fetch(torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"columns must be of the dataset, got 'id' \(did you mean 'ids'\?\)"):
        data.huggingface(table, columns=["id"])
    with pytest.raises(TypeError, match=r"got dict: take one of its splits \['train'\]"):
        data.huggingface({"train": table})


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        (
            "datasets",
            lambda p: data.huggingface(None),
            "huggingface needs datasets, which is not installed: pip install datasets",
        ),
        (
            "pyarrow",
            lambda p: data.parquet(p, inputs={"x": "x"}),
            "parquet needs pyarrow, which is not installed: pip install pyarrow",
        ),
    ],
)
def test_a_missing_library_says_what_to_install(
    module: str, call: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        call(tmp_path)
    assert str(caught.value) == message


# -------------------------------------------------------------------------------------------------------- errors

X = np.zeros(3)


class Changing:
    """A source that gives other batches on its second fetch."""

    def __init__(self, *parts: Tensor, y: Sequence[int] = (), text: bool = False) -> None:
        self.parts, self.y, self.text = list(parts), list(y), text

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def fetch(self, indices: Tensor) -> TensorDict:
        batch: dict[str, Any] = {"x": self.parts[int(indices[0]) // 2]}
        if self.y and self.y[int(indices[0]) // 2]:
            batch["y"] = indices
        if self.text:
            batch["text"] = NonTensorStack(*"ab")
        return TensorDict(batch, [2])


BAD: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no arrays": (lambda p: data.from_arrays({}), TypeError, "arrays must map names to NumPy arrays, such as"),
    "a list": (lambda p: data.from_arrays({"x": [1]}), TypeError, "arrays['x'] must be a NumPy array, got list"),  # type: ignore[dict-item]
    "a number": (
        lambda p: data.from_arrays({"x": np.array(1)}),
        ValueError,
        "arrays['x'] must have its examples along",
    ),
    "text": (
        lambda p: data.from_arrays({"x": np.array(["a"])}),
        TypeError,
        "arrays['x'] must hold numbers that torch has",
    ),
    "lengths": (
        lambda p: data.from_arrays({"x": X, "y": X[:2]}),
        ValueError,
        "the number of examples must be the same throughout, got 'x': 3, 'y': 2",
    ),
    "few tokens": (
        lambda p: data.token_windows("abc", length=3),
        ValueError,
        "tokens must be at least 4, for one window of length=3, got 3",
    ),
    "tokens of two dimensions": (
        lambda p: data.token_windows(torch.ones(2, 2, dtype=torch.int64), length=1),
        ValueError,
        "tokens must be of one dimension, got the shape (2, 2)",
    ),
    "tokens that are no integers": (
        lambda p: data.token_windows(X, length=1),
        TypeError,
        "tokens must be a text, or integers in a tensor or an array, got an array of float64",
    ),
    "encode without a text": (
        lambda p: data.token_windows(EVERYTHING, length=1, encode=list),
        TypeError,
        "encode must be None where tokens are not a text",
    ),
    "stride": (
        lambda p: data.token_windows("abc", length=1, stride=0),
        ValueError,
        "stride must be an int of at least 1",
    ),
    "nothing mapped": (
        lambda p: data.memory_mapped(p / "no"),
        FileNotFoundError,
        "folder must be one that TensorDict.memmap(folder) has written, and '{p}/no' has no meta.json",
    ),
    "a cache over something": (
        lambda p: data.cache(data.from_tensors({"x": EVERYTHING}), folder=p),
        ValueError,
        "folder must be empty or not there yet, and '{p}' holds something",
    ),
    "a cache of draws": (
        lambda p: data.cache(data.image_folder(p, p / "t.csv", transform=keyed)),
        TypeError,
        "source must not draw random numbers to be cached",
    ),
    "a cache of what is no tensor": (
        lambda p: data.cache(Changing(torch.zeros(2), text=True)),
        TypeError,
        "source.fetch(...)['text'] must be a tensor, got NonTensorStack",
    ),
    "a cache of other kinds": (
        lambda p: data.cache(Changing(torch.zeros(2), torch.ones(2, dtype=torch.int64)), block=2),
        ValueError,
        "got {{'x': 'torch.float32 of shape ()'}} at first, and {{'x': 'torch.int64 of shape ()'}} from row 2 on",
    ),
    "a cache of other keys": (
        lambda p: data.cache(Changing(torch.zeros(2), torch.zeros(2), y=[1, 0]), block=2),
        ValueError,
        "source must give batches of one kind to be cached, got {{'x': 'torch.float32 of shape ()', 'y': ",
    ),
    "text beside tensors": (
        lambda p: data.from_tensors(TensorDict({"x": X, "t": NonTensorStack("a", "b", "c")}, [3])),
        TypeError,
        "data['t'] must be a tensor, got NonTensorStack",
    ),
    "integers beyond int64": (
        lambda p: data.dataframe(pd.DataFrame({"a": np.array([1, 2**63], "uint64")}), inputs={"a": "a"}),
        ValueError,
        "inputs['a'] must hold integers below 2^63, and column 'a' of the DataFrame goes up to 9223372036854775808",
    ),
    "inputs of a Parquet file": (
        lambda p: data.parquet(p, inputs=["a"]),  # type: ignore[arg-type]
        TypeError,
        "inputs must map names to columns, such as {{'tabular': ['a', 'b']}}, got ['a']",
    ),
    "block": (
        lambda p: data.cache(data.from_tensors({"x": EVERYTHING}), block=0),
        ValueError,
        "block must be an int of at least 1, got 0",
    ),
    "an empty source": (
        lambda p: data.cache(data.from_tensors({"x": EVERYTHING[:0]})),
        ValueError,
        "source must hold at least one example to be cached, got an empty one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_the_message(case: str, folder: Path) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error) as caught:
        call(folder)
    assert message.format(p=folder) in str(caught.value)


def test_a_target_transform_that_fails_names_its_row(folder: Path) -> None:
    source = data.image_folder(folder, folder / "t.csv", target_transform=lambda label: 1 // (label - 2))
    with pytest.raises(ZeroDivisionError) as caught:
        source.fetch(EVERYTHING)
    assert caught.value.__notes__ == ["in target_transform, for row 2 of t.csv"]


def test_skipping_names_the_file_and_goes_on(folder: Path) -> None:
    os.truncate(folder / "3.png", 40)
    source = data.image_folder(folder, folder / "t.csv", mode="L")
    batches = data.pipeline(source, data.sequential(6), batch_size=4, epochs=1, on_error="skip")
    assert [batch["label"].tolist() for batch in batches] == [[0, 1, 2], [4, 5]]
    assert batches.skipped == 1
    with pytest.raises(data.DecodeError, match=r"3\.png' \(row 3 of t\.csv\) cannot be decoded"):
        list(data.pipeline(source, data.sequential(6), batch_size=4, epochs=1))
