"""Batches of data: purestep's pipelines and loader against torch's DataLoader.

memory: an epoch of tensors in memory. images: an epoch of PNG files, decoded and augmented, with two workers that run
already. start: from nothing to a first batch of four of them, with two workers.

    python bench/data.py [memory] [images] [start]
"""

from __future__ import annotations

import atexit
import tempfile
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import purestep as ps
from _report import Bench, Setting, Way, main

BATCH = 128
WORKERS = 2
FIRST = 4  # images in the first batch, so that starting is what takes the time


def benches(rows: int = 60_000, columns: int = 784, images: int = 128, side: int = 128) -> list[Bench]:
    title = f"An epoch of {rows:,} rows of {columns} float32 in memory, shuffled, in batches of {BATCH}"
    decoding = f"An epoch of {images} PNG files of {side}×{side}, decoded, cropped and flipped, by {WORKERS} workers"
    first = f"The first {FIRST} of these files, with {WORKERS} workers to start"
    sizes = {"images": images, "side": side, "workers": WORKERS}
    return [
        Bench("data_memory", title, partial(in_memory, rows, columns), {"rows": rows, "columns": columns}),
        Bench("data_images", decoding, partial(decoded, images, side), sizes),
        Bench("data_start", first, partial(started, images, side), sizes),
    ]


def consume(batches: Iterable[object], count: int | None = None) -> None:
    deque(islice(batches, count), maxlen=0)


def in_memory(rows: int, columns: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    x, y = torch.randn(rows, columns), torch.randint(0, 10, (rows,))
    dataset, source = TensorDataset(x, y), ps.data.from_tensors({"x": x, "y": y})

    def bare() -> None:
        for indices in torch.randperm(rows).split(BATCH):
            x.index_select(0, indices), y.index_select(0, indices)

    def torchs(workers: int) -> Way:
        batches = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        return lambda: consume(batches)

    def ours() -> Way:
        batches = ps.data.pipeline(source, ps.data.shuffled(rows, seed=0), batch_size=BATCH, epochs=1)
        return lambda: consume(batches)

    def loader() -> Way:
        batches = ps.data.loader(dataset, BATCH, shuffle=True)
        return lambda: consume(batches)

    return {
        "torch, DataLoader, no worker": partial(torchs, 0),
        "torch, DataLoader, 1 worker": partial(torchs, 1),
        "torch, DataLoader, 2 workers": partial(torchs, 2),
        "torch, index_select in a loop": lambda: bare,
        "purestep, pipeline": ours,
        "purestep, loader": loader,
    }


@cache
def pictures(images: int, side: int) -> Path:
    """A folder of images, smooth with some noise as photographs are, and a CSV file that names them."""
    from PIL import Image

    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    generator = torch.Generator().manual_seed(0)
    lines = ["image,label"]
    for i in range(images):
        small = torch.rand(1, 3, 5, 5, generator=generator)
        smooth = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)[0] * 240
        pixels = (smooth + 15 * torch.rand(3, side, side, generator=generator)).byte().permute(1, 2, 0).contiguous()
        Image.fromarray(pixels.numpy()).save(Path(folder.name, f"{i}.png"), compress_level=1)
        lines.append(f"{i}.png,{i % 10}")
    Path(folder.name, "labels.csv").write_text("\n".join(lines))
    return Path(folder.name)


def augmented(image: Tensor, top: int, left: int, flip: bool) -> Tensor:
    side = image.shape[-1] * 7 // 8
    image = image[:, top : top + side, left : left + side]
    return ((image.flip(-1) if flip else image) - 0.5) / 0.25


def keyed(image: Tensor, generator: torch.Generator) -> Tensor:
    top, left, flip = torch.randint(0, image.shape[-1] // 8, (3,), generator=generator).tolist()
    return augmented(image, top, left, flip % 2 == 0)


def from_globals(image: Tensor) -> Tensor:
    top, left, flip = torch.randint(0, image.shape[-1] // 8, (3,)).tolist()
    return augmented(image, top, left, flip % 2 == 0)


class Files(Dataset):
    """What a user of torch writes."""

    def __init__(self, folder: Path, images: int) -> None:
        self.paths = [folder / f"{i}.png" for i in range(images)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        import numpy
        from PIL import Image

        with Image.open(self.paths[index]) as file:
            pixels = torch.from_numpy(numpy.array(file.convert("RGB")))
        image = pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        return from_globals(image), index % 10


def makers(images: int, side: int, batch: int, persistent: bool) -> dict[str, Callable[[], Iterable[object]]]:
    folder = pictures(images, side)
    files = Files(folder, images)
    settings = {"batch_size": batch, "shuffle": True, "num_workers": WORKERS, "persistent_workers": persistent}
    source = ps.data.image_folder(folder, folder / "labels.csv", transform=keyed)
    ours = partial(
        ps.data.pipeline, source, ps.data.shuffled(images, seed=0), batch_size=batch, epochs=1, workers=WORKERS
    )
    return {
        "torch, DataLoader": lambda: DataLoader(files, **settings),
        "purestep, pipeline, threads": ours,
        "purestep, pipeline, processes": partial(ours, method="process"),
        "purestep, loader": lambda: ps.data.loader(files, **settings),
    }


def decoded(images: int, side: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    def way(make: Callable[[], Iterable[object]]) -> Way:
        batches = make()
        return lambda: consume(batches)

    return {name: partial(way, make) for name, make in makers(images, side, 32, persistent=True).items()}


def started(images: int, side: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    def way(make: Callable[[], Iterable[object]]) -> Way:
        return lambda: consume(make(), 1)

    return {name: partial(way, make) for name, make in makers(images, side, FIRST, persistent=False).items()}


if __name__ == "__main__":
    main(__doc__, benches(), max_time=10.0)
