"""Sources: what is on the disk and in the table comes out, and what is wrong is named with what would be right."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensordict import TensorDict
from torch import Tensor

from purestep.data import Source, cache, dataframe, from_tensors, image_folder, multi, pipeline, sequential, shuffled

EVERYTHING = torch.arange(6)


def pixels(row: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (4, 3, channels), dtype=np.uint8)


def write_image(path: Path, array: np.ndarray) -> str:
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(path)
    return path.name


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Six grey pictures of 4 x 3 pixels in tmp_path/pictures, and a table that names them."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = [write_image(folder / f"{row:04d}.png", pixels(row)) for row in range(6)]
    return pd.DataFrame(
        {
            "image": names,
            "label": ["dog", "cat", "dog", "emu", "cat", "dog"],
            "width": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
            "legs": [4, 4, 4, 2, 4, 4],
            "tame": [True, True, False, False, True, True],
        }
    )


@pytest.fixture
def make(tmp_path: Path, table: pd.DataFrame) -> Callable[..., Source]:
    def make(changed: pd.DataFrame = table, **settings: Any) -> Source:
        changed.to_csv(tmp_path / "labels.csv", index=False)
        return image_folder(tmp_path / "pictures", tmp_path / "labels.csv", **{"mode": "L", **settings})

    return make


# ------------------------------------------------------------------------------------------------------- images


def test_an_image_folder(make: Callable[..., Source]) -> None:
    source = make(columns=["width", "legs", "tame"])
    assert isinstance(source, Source)
    assert len(source) == 6
    assert source.classes == ("cat", "dog", "emu")
    indices = torch.tensor([4, 0, 3])
    batch = source.fetch(indices)
    assert batch.batch_size == (3,)
    assert batch["image"].shape == (3, 1, 4, 3)
    assert batch["image"].dtype == torch.float32
    wanted = np.stack([pixels(row).transpose(2, 0, 1) for row in indices.tolist()])
    assert torch.equal((batch["image"] * 255).round().to(torch.uint8), torch.tensor(wanted))
    assert batch["image"].is_contiguous()
    assert batch["label"].tolist() == [0, 1, 2]
    assert batch["label"].dtype == torch.int64
    assert batch["tabular"].tolist() == [[5.0, 4.0, 1.0], [1.5, 4.0, 1.0], [4.0, 2.0, 0.0]]
    assert batch["tabular"].dtype == torch.float32


def test_an_image_keeps_its_extremes(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.array([[[0], [255]]], dtype=np.uint8))
    image = dataframe(pd.DataFrame({"path": ["a.png"]}), inputs={"image": "path"}, folder=tmp_path, mode="L")
    assert image.fetch(torch.tensor([0]))["image"].tolist() == [[[[0.0, 1.0]]]]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_modes(tmp_path: Path, mode: str, channels: int) -> None:
    write_image(tmp_path / "a.png", pixels(0, 3))
    source = dataframe(pd.DataFrame({"path": ["a.png"]}), inputs={"x": "path"}, folder=tmp_path, mode=mode)
    image = source.fetch(torch.tensor([0]))["x"][0]
    assert image.shape == (channels, 4, 3)
    if mode != "L":
        assert torch.equal((image[:3] * 255).round().to(torch.uint8), torch.tensor(pixels(0, 3)).permute(2, 0, 1))


def test_transforms_are_applied_to_each_example(make: Callable[..., Source]) -> None:
    plain = make().fetch(EVERYTHING)
    source = make(transform=lambda image: image.flip(-1), target_transform=lambda label: 10 * label + 0.5)
    batch = source.fetch(EVERYTHING)
    assert torch.equal(batch["image"], plain["image"].flip(-1))
    assert batch["label"].tolist() == [10.5, 0.5, 10.5, 20.5, 0.5, 10.5]
    one_hot = make(target_transform=lambda label: torch.eye(3)[label]).fetch(EVERYTHING)["label"]
    assert one_hot.argmax(1).tolist() == plain["label"].tolist()


def test_labels_of_numbers_stay_and_a_label_column_may_be_absent(make: Callable[..., Source]) -> None:
    counts = make(label_column="legs")
    assert counts.classes is None
    assert counts.fetch(EVERYTHING)["label"].tolist() == [4, 4, 4, 2, 4, 4]
    assert counts.fetch(EVERYTHING)["label"].dtype == torch.int64
    assert make(label_column="width").fetch(EVERYTHING)["label"].dtype == torch.float32
    assert make(label_column="tame").fetch(EVERYTHING)["label"].tolist() == [1, 1, 0, 0, 1, 1]
    assert set(make(label_column=None).fetch(EVERYTHING).keys()) == {"image"}


def test_held_out_data_takes_the_classes_of_the_training_data(make: Callable[..., Source], table: pd.DataFrame) -> None:
    training = make()
    held_out = table[table["label"] != "cat"]
    assert make(held_out).fetch(torch.arange(4))["label"].tolist() == [0, 0, 1, 0]  # the shift
    source = make(held_out, classes=training.classes)
    assert source.classes == ("cat", "dog", "emu")
    assert source.fetch(torch.arange(4))["label"].tolist() == [1, 1, 2, 1]
    assert make(label_column="legs", classes=[2, 4]).fetch(EVERYTHING)["label"].tolist() == [1, 1, 1, 0, 1, 1]


def test_names_that_look_like_numbers_and_labels_that_look_like_nothing(
    make: Callable[..., Source], table: pd.DataFrame, tmp_path: Path
) -> None:
    for row, name in enumerate(table["image"]):
        (tmp_path / "pictures" / name).rename(tmp_path / "pictures" / f"{row:04d}")
    table["image"] = [f"{row:04d}" for row in range(6)]
    table["label"] = ["NA", "None", "null", "NA", "nan", "None"]
    source = make(table)
    assert source.classes == ("NA", "None", "nan", "null")
    assert source.fetch(EVERYTHING)["image"].shape == (6, 1, 4, 3)


def test_workers_decode_the_same_batches(make: Callable[..., Source]) -> None:
    source = make(columns=["width"])
    inline = list(pipeline(source, shuffled(6, seed=0), batch_size=4, epochs=2, prefetch=0))
    threads = list(pipeline(source, shuffled(6, seed=0), batch_size=4, epochs=2, workers=2))
    assert [len(batch) for batch in inline] == [4, 2, 4, 2]
    for left, right in zip(inline, threads, strict=True):
        assert (left == right).all()
    twin = pickle.loads(pickle.dumps(source)).fetch(EVERYTHING)
    assert (twin == source.fetch(EVERYTHING)).all()


# -------------------------------------------------------------------------------------------------- data frames


def test_columns_grouped_into_inputs(table: pd.DataFrame, tmp_path: Path) -> None:
    table["vector"] = [np.full((2, 2), row, dtype=np.float64) for row in range(6)]
    table["bytes"] = [pixels(row) for row in range(6)]
    table["list"] = [[row, row + 1] for row in range(6)]
    table.index = [9, 9, 7, 5, 3, 1]  # rows are counted by position
    inputs = {
        "tabular": ["width", "legs"],
        "legs": "legs",
        "tame": "tame",
        "width": "width",
        "vector": "vector",
        "bytes": "bytes",
        "list": "list",
        "picture": "image",
    }
    source = dataframe(table, inputs=inputs, label="label", folder=tmp_path / "pictures", mode="L")
    batch = source.fetch(torch.tensor([3, 0]))
    assert set(batch.keys()) == {*inputs, "label"}
    assert batch["tabular"].tolist() == [[4.0, 2.0], [1.5, 4.0]]
    kinds = {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in batch.items()}
    assert kinds == {
        "tabular": ((2, 2), torch.float32),
        "legs": ((2,), torch.int64),
        "tame": ((2,), torch.bool),
        "width": ((2,), torch.float32),
        "vector": ((2, 2, 2), torch.float32),
        "bytes": ((2, 4, 3, 1), torch.uint8),
        "list": ((2, 2), torch.int64),
        "picture": ((2, 1, 4, 3), torch.float32),
        "label": ((2,), torch.int64),
    }
    assert batch["vector"][0].unique().tolist() == [3.0]
    assert batch["label"].tolist() == [2, 1]
    assert source.classes == ("cat", "dog", "emu")
    assert not source.in_memory


def test_a_frame_without_images_is_in_memory(table: pd.DataFrame) -> None:
    table["kind"] = pd.Categorical(table["label"])
    table["soft"] = [np.array([0.25, 0.75])] * 6
    assert dataframe(table, inputs={"x": ["width"]}, label="legs").in_memory
    assert dataframe(table, inputs={"x": ["width"]}, label="kind").classes == ("cat", "dog", "emu")
    assert dataframe(table, inputs={"x": ["width"]}, label="soft").fetch(EVERYTHING)["label"].shape == (6, 2)
    numbered = pd.DataFrame(np.eye(6))
    assert dataframe(numbered, inputs={"x": numbered.columns[:2], "y": 3}).fetch(EVERYTHING)["x"].shape == (6, 2)


def test_a_frame_is_copied(table: pd.DataFrame) -> None:
    source = dataframe(table, inputs={"x": ["width"], "y": "width"})
    before = source.fetch(EVERYTHING).clone()
    table["width"] = 0.0
    assert (source.fetch(EVERYTHING) == before).all()


# ------------------------------------------------------------------------------------------- tensors and others


def test_tensors_are_held_and_selected() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    for data in ({"x": x, "deep": {"y": EVERYTHING}}, TensorDict({"x": x, "deep": {"y": EVERYTHING}}, batch_size=[6])):
        source = from_tensors(data)
        assert len(source) == 6
        assert source.in_memory
        batch = source.fetch(torch.tensor([5, 1]))
        assert batch.batch_size == batch["deep"].batch_size == (2,)
        assert batch["x"].tolist() == [[10.0, 11.0], [2.0, 3.0]]
        assert batch["deep", "y"].tolist() == [5, 1]


def test_several_sources_are_one_multi_input_source(make: Callable[..., Source], table: pd.DataFrame) -> None:
    images = make(label_column=None)
    numbers = dataframe(table, inputs={"tabular": ["width", "legs"]}, label="label")
    both = multi(images, numbers)
    batch = both.fetch(torch.tensor([2, 1]))
    assert set(batch.keys()) == {"image", "tabular", "label"}
    assert torch.equal(batch["image"], images.fetch(torch.tensor([2, 1]))["image"])
    assert batch["label"].tolist() == [1, 0]
    assert both.classes == ("cat", "dog", "emu")
    assert (both.in_memory, multi(numbers).in_memory) == (False, True)
    nested = multi(images, left=numbers, right=numbers)
    assert nested.fetch(EVERYTHING)["right", "tabular"].shape == (6, 2)
    assert nested.classes is None  # of two, neither is the batch's


def test_a_cache_decodes_once(make: Callable[..., Source]) -> None:
    calls = []
    source = make(transform=lambda image: calls.append(1) or image, columns=["width"])  # type: ignore[func-returns-value]
    cached = cache(source, block=4)
    assert len(calls) == len(cached) == 6
    assert cached.in_memory
    assert cached.classes == ("cat", "dog", "emu")
    assert (cached.fetch(EVERYTHING.flip(0)) == source.fetch(EVERYTHING.flip(0))).all()
    assert len(calls) == 12


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("pandas", "dataframe needs pandas, which is not installed: pip install 'purestep[data]'"),
        ("PIL.Image", "decoding images needs Pillow, which is not installed: pip install 'purestep[data]'"),
    ],
)
def test_a_missing_library_says_what_to_install(
    module: str, message: str, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        dataframe(table, inputs={"image": "image"})
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------------- errors

Case = tuple[Callable[[Path, pd.DataFrame, Callable[..., Source]], object], type[Exception], str]


def broken(folder: Path, name: str, content: bytes) -> None:
    (folder / "pictures" / name).write_bytes(content)


def deep(folder: Path) -> None:
    Image.fromarray(np.full((4, 3), 40_000, dtype=np.uint16)).save(folder / "pictures" / "0002.png")


def wide(folder: Path) -> None:
    write_image(folder / "pictures" / "0003.png", np.zeros((4, 5, 1), dtype=np.uint8))


def fail(image: Tensor) -> Tensor:
    raise RuntimeError("no such crop")


def frame(**columns: Any) -> Callable[[dict[str, Any]], Source]:
    return lambda inputs: dataframe(pd.DataFrame(columns), inputs=inputs)


CASES: dict[str, Case] = {
    "no folder": (
        lambda p, t, make: image_folder(p / "pics", p / "labels.csv"),
        FileNotFoundError,
        "folder must be a folder of images, and there is none at",
    ),
    "empty folder": (
        lambda p, t, make: (p / "none").mkdir() or image_folder(p / "none", p / "labels.csv"),  # type: ignore[func-returns-value]
        ValueError,
        "folder must hold images, and '{p}/none' is empty",
    ),
    "no csv": (
        lambda p, t, make: image_folder(p / "pictures", p / "label.csv"),
        FileNotFoundError,
        "csv must be a CSV file, and there is none at '{p}/label.csv'",
    ),
    "csv without a header": (
        lambda p, t, make: (p / "x.csv").write_text("") or image_folder(p / "pictures", p / "x.csv"),
        ValueError,
        "csv must be a table in UTF-8 with a header, and '{p}/x.csv' is not: No columns",
    ),
    "csv of pixels": (
        lambda p, t, make: image_folder(p / "pictures", p / "pictures" / "0000.png"),
        ValueError,
        "csv must be a table in UTF-8 with a header, and '{p}/pictures/0000.png' is not: ",
    ),
    "csv without rows": (lambda p, t, make: make(t[:0]), ValueError, "labels.csv must have at least one row, got none"),
    "picture not there": (
        lambda p, t, make: make(t.replace("0003.png", "0003.jpg")),
        FileNotFoundError,
        "image_column must name image files in '{p}/pictures', and '0003.jpg' in column 'image' of labels.csv is not "
        "there (did you mean '0003.png'",
    ),
    "pictures not there": (
        lambda p, t, make: make(t.assign(image=[f"x/{i}" for i in range(6)])),
        FileNotFoundError,
        "'x/0' in column 'image' of labels.csv is not there; missing in rows 0, 1, 2, 3, 4 and 1 more",
    ),
    "picture without a name": (
        lambda p, t, make: make(t.replace("0003.png", "")),
        ValueError,
        "image_column must have a value in every row, and column 'image' of labels.csv has none in row 3",
    ),
    "label column missing": (
        lambda p, t, make: make(label_column="lable"),
        ValueError,
        "label_column must be a column of labels.csv, got 'lable' (did you mean 'label'?); its columns are 'image', ",
    ),
    "image column missing": (
        lambda p, t, make: make(image_column="0"),
        ValueError,
        "image_column must be a column of labels.csv, got '0'; its columns are 'image', 'label', 'width'",
    ),
    "tabular column missing": (
        lambda p, t, make: make(columns=["width", "leg"]),
        ValueError,
        "columns must be a column of labels.csv, got 'leg' (did you mean 'legs'",
    ),
    "columns as one string": (
        lambda p, t, make: make(columns="width"),
        ValueError,
        "columns must be a list of at least one column, got 'width'",
    ),
    "label without a value": (
        lambda p, t, make: make(t.assign(label=["a", None, "b", "", "a", "b"])),
        ValueError,
        "label_column must have a value in every row, and column 'label' of labels.csv has none in rows 1, 3: fill",
    ),
    "label among other classes": (
        lambda p, t, make: make(classes=["cat", "dogs", "emu"]),
        ValueError,
        "label_column 'label' must hold one of the classes 'cat', 'dogs', 'emu', got 'dog' in row 0 of labels.csv "
        "(did you mean 'dogs'",
    ),
    "classes twice": (
        lambda p, t, make: make(classes=["cat", "cat"]),
        ValueError,
        "classes must be distinct, got ['cat', 'cat']",
    ),
    "mode": (lambda p, t, make: make(mode="BGR"), ValueError, "mode must be one of 'L', 'RGB', 'RGBA', got 'BGR'"),
    "transform": (
        lambda p, t, make: make(transform=3),
        TypeError,
        "transform must be a function of an image or None, got 3",
    ),
    "not an image": (
        lambda p, t, make: broken(p, "0001.png", b"text") or make().fetch(EVERYTHING),  # type: ignore[func-returns-value]
        ValueError,
        "image file '{p}/pictures/0001.png' (row 1 of labels.csv) cannot be decoded: cannot identify",
    ),
    "half an image": (
        lambda p, t, make: (  # type: ignore[func-returns-value]
            broken(p, "0005.png", (p / "pictures" / "0005.png").read_bytes()[:60]) or make().fetch(EVERYTHING)
        ),
        ValueError,
        "image file '{p}/pictures/0005.png' (row 5 of labels.csv) cannot be decoded: ",
    ),
    "16 bits": (
        lambda p, t, make: deep(p) or make().fetch(EVERYTHING),  # type: ignore[func-returns-value]
        ValueError,
        "(row 2 of labels.csv) cannot be decoded: its pixels are deeper than 8 bits (I;16), which L cannot hold",
    ),
    "unlike sizes": (
        lambda p, t, make: wide(p) or make().fetch(EVERYTHING),  # type: ignore[func-returns-value]
        ValueError,
        "0000.png' (row 0 of labels.csv) has (1, 4, 3) but '{p}/pictures/0003.png' (row 3 of labels.csv) (1, 4, 5)",
    ),
    "transform returns no tensor": (
        lambda p, t, make: make(transform=lambda image: None).fetch(EVERYTHING),
        TypeError,
        "transform must return a tensor, got NoneType for '{p}/pictures/0000.png' (row 0 of labels.csv)",
    ),
    "not a frame": (
        lambda p, t, make: dataframe({"a": [1]}, inputs={"x": "a"}),  # type: ignore[arg-type]
        TypeError,
        "df must be a pandas DataFrame, got dict",
    ),
    "no inputs": (
        lambda p, t, make: dataframe(t, inputs={}),
        TypeError,
        "inputs must map names to columns, such as {'tabular': ['a', 'b']}, got {}",
    ),
    "an empty input": (
        lambda p, t, make: dataframe(t, inputs={"x": []}),
        ValueError,
        "inputs['x'] must be a list of at least one column, got []",
    ),
    "an input called label": (
        lambda p, t, make: dataframe(t, inputs={"label": "legs"}, label="label"),
        ValueError,
        "inputs must not use the name 'label', which label='label' is delivered as",
    ),
    "no such column": (
        lambda p, t, make: dataframe(t, inputs={"x": ["wdth"]}),
        ValueError,
        "inputs['x'] must be a column of the DataFrame, got 'wdth' (did you mean 'width'",
    ),
    "columns of one name": (
        lambda p, t, make: dataframe(t.rename(columns={"legs": "width"}), inputs={"x": ["width"]}),
        ValueError,
        "the columns of the DataFrame must have distinct names, got 'width' twice",
    ),
    "text among numbers": (
        lambda p, t, make: dataframe(t, inputs={"x": ["legs", "label"]}),
        TypeError,
        "inputs['x'] must name columns of numbers, and 'label' of the DataFrame holds str such as 'dog': encode it",
    ),
    "a number without a value": (
        lambda p, t, make: frame(a=[1.0, np.nan, 3.0, np.nan])({"x": ["a"]}),
        ValueError,
        "inputs['x'] must have a value in every row, and column 'a' of the DataFrame has none in rows 1, 3",
    ),
    "an infinite number": (
        lambda p, t, make: frame(a=[1.0, 1e39])({"x": "a"}),
        ValueError,
        "inputs['x'] must hold finite numbers (in float32), and column 'a' of the DataFrame does not in row 1",
    ),
    "an array that is not finite": (
        lambda p, t, make: frame(a=[np.zeros(2), np.array([0, np.nan])])({"x": "a"}),
        ValueError,
        "inputs['x'] must hold finite numbers (in float32), and column 'a' of the DataFrame does not in row 1",
    ),
    "arrays of unlike shapes": (
        lambda p, t, make: frame(a=[np.zeros(2), np.zeros(2), np.zeros(3)])({"x": "a"}),
        ValueError,
        "column 'a' of the DataFrame has (2,) torch.float32 in row 0 but (3,) torch.float32 in row 2",
    ),
    "things of no kind": (
        lambda p, t, make: frame(a=[np.zeros(2), "text"])({"x": "a"}),
        TypeError,
        "inputs['x'] must hold numbers, arrays of numbers or paths of image files, got 'text' in column 'a', row 1",
    ),
    "text that is no path": (
        lambda p, t, make: dataframe(t, inputs={"x": "label"}),
        FileNotFoundError,
        "inputs['x'] must name image files in '.', and 'dog' in column 'label' of the DataFrame is not there",
    ),
    "dates": (
        lambda p, t, make: frame(a=pd.to_datetime(["2020-01-01"]))({"x": ["a"]}),
        TypeError,
        "inputs['x'] must name columns of numbers, and 'a' of the DataFrame holds datetime64",
    ),
    "not tensors": (
        lambda p, t, make: from_tensors([torch.zeros(3)]),  # type: ignore[arg-type]
        TypeError,
        "data must be a TensorDict or a dict of tensors, got list",
    ),
    "an array": (
        lambda p, t, make: from_tensors({"x": {"y": np.zeros(3)}}),
        TypeError,
        "data['x.y'] must be a tensor, got ndarray (torch.as_tensor makes one",
    ),
    "a scalar": (
        lambda p, t, make: from_tensors({"x": torch.tensor(1.0)}),
        ValueError,
        "data['x'] must have its examples along dimension 0, got a tensor without dimensions",
    ),
    "no tensor": (lambda p, t, make: from_tensors({}), ValueError, "data must hold at least one tensor, got none"),
    "tensors of unlike lengths": (
        lambda p, t, make: from_tensors({"x": torch.zeros(3), "y": torch.zeros(4)}),
        ValueError,
        "the number of examples must be the same throughout, got 'x': 3, 'y': 4",
    ),
    "sources of unlike lengths": (
        lambda p, t, make: multi(make(), table=from_tensors({"x": torch.zeros(4)})),
        ValueError,
        "the number of examples must be the same throughout, got 'argument 0': 6, 'table': 4",
    ),
    "keys that clash": (
        lambda p, t, make: multi(make(), dataframe(t, inputs={"x": "legs"}, label="legs")),
        ValueError,
        "the parts must have distinct keys, got 'label' twice: name one, multi(a, other=b)",
    ),
    "not a source": (
        lambda p, t, make: multi(make(), torch.zeros(6)),  # type: ignore[arg-type]
        TypeError,
        "argument 1 must be a source (len and fetch), got Tensor",
    ),
    "nothing to join": (lambda p, t, make: multi(), ValueError, "multi must be given at least one source, got none"),
    "nothing to cache": (
        lambda p, t, make: cache(from_tensors({"x": torch.zeros(0)})),
        ValueError,
        "source must hold at least one example to be cached, got an empty one",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, tmp_path: Path, table: pd.DataFrame, make: Callable[..., Source]) -> None:
    call, error, message = CASES[name]
    make()
    with pytest.raises(error) as caught:
        call(tmp_path, table, make)
    assert message.replace("{p}", str(tmp_path)) in str(caught.value)


def test_a_failing_transform_keeps_its_error_and_names_the_file(make: Callable[..., Source], tmp_path: Path) -> None:
    for workers in (0, 2):
        batches = pipeline(make(transform=fail), sequential(6), batch_size=2, workers=workers)
        with pytest.raises(RuntimeError, match="no such crop") as caught:
            next(iter(batches))
        assert caught.value.__notes__ == [
            f"in transform, for the image '{tmp_path}/pictures/0000.png' (row 0 of labels.csv)",
            "in the batch that ends at position 2 of epoch 0",
        ]
