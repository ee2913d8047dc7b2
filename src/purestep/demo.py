"""The main job: a multi-input classifier on real pictures and a real table, trained by a compiled pure step.

The pictures are the left halves of scikit-learn's handwritten digits, as PNG files; the table has the row and column
sums of their right halves, as CSV files with the labels. Neither half is enough, so fusing them shows.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from tensordict import TensorDictBase
from torch import Tensor, nn

import purestep as ps

BATCH, ACCUMULATE, PEAK_RATE, WEIGHT_DECAY, MAX_NORM, SMOOTHING = 64, 2, 1e-2, 0.1, 1.0, 0.1
TABLE_COLUMNS = [f"row_{i}" for i in range(8)] + [f"column_{i}" for i in range(4)]


@dataclass(frozen=True)
class Settings:
    """What the command line chooses."""

    steps: int = 600
    seed: int = 0
    device: str = "cpu"
    compiled: bool = True
    out: Path = Path("runs/demo")
    ablate: bool = False


class DigitNet(nn.Module):
    """A convolutional branch for pictures ``(n, 1, 8, 4)``, a dense one for tables ``(n, 12)``, and a head on both."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            Rearrange("n channels height width -> n (channels height width)"),
            nn.Linear(32 * 8 * 4, width),
            nn.ReLU(),
        )
        self.tabular = nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, image: Tensor, tabular: Tensor) -> Tensor:
        """Return logits ``(n, 10)``."""
        return self.head(torch.cat([self.image(image), self.tabular(tabular)], dim=1))


def objective(model: nn.Module, batch: TensorDictBase) -> tuple[ps.Mean, dict[str, ps.Mean]]:
    """Mean cross-entropy against smoothed labels, and accuracy."""
    logits = model(batch["image"], batch["tabular"])
    loss = ps.mean(F.cross_entropy(logits, batch["label"], reduction="none", label_smoothing=SMOOTHING))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["label"])}


def digits_folder() -> Path:
    """Return the folder of the data, written on the first call: ``images/*.png``, ``train.csv``, ``test.csv``."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "purestep" / "digits-v1"
    if cache.is_dir():
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed whole, so that an interrupted first run leaves nothing half done.
    scratch = Path(tempfile.mkdtemp(dir=cache.parent))
    try:
        _write_digits(scratch)
        scratch.rename(cache)
    except OSError:
        if not cache.is_dir():  # another process may have been first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return cache


def _write_digits(folder: Path) -> None:
    try:
        import numpy as np
        import pandas as pd
        from PIL import Image
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("the demo needs scikit-learn, pandas and Pillow: pip install 'purestep[demo]'") from error
    digits = load_digits()
    (folder / "images").mkdir()
    rows = []
    for number, (picture, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        name = f"{number:04d}.png"
        left, right = picture[:, :4], picture[:, 4:]
        Image.fromarray(np.round(left * (255 / 16)).astype("uint8")).save(folder / "images" / name)
        rows.append([name, int(label), *right.sum(axis=1), *right.sum(axis=0)])
    table = pd.DataFrame(rows, columns=["image", "label", *TABLE_COLUMNS])
    train, test = train_test_split(table, test_size=0.2, random_state=0, stratify=table["label"])
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)


def sources(folder: Path) -> tuple[ps.data.Source, ps.data.Source]:
    """Return the training and test data: pictures through the image folder, the table through the DataFrame.

    The table is standardised by the training data's mean and deviation.
    """
    import pandas as pd

    tables = {split: pd.read_csv(folder / f"{split}.csv") for split in ("train", "test")}
    center, spread = tables["train"][TABLE_COLUMNS].mean(), tables["train"][TABLE_COLUMNS].std() + 1e-6

    def source(split: str) -> ps.data.Source:
        images = ps.data.image_folder(folder / "images", folder / f"{split}.csv", mode="L")
        table = ps.data.dataframe((tables[split][TABLE_COLUMNS] - center) / spread, inputs={"tabular": TABLE_COLUMNS})
        return ps.data.cache(ps.data.multi(images, table))

    return source("train"), source("test")


def run(settings: Settings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train, evaluate, compare speeds, and write the checkpoint and the schedule's picture; return the figures."""
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    train, test = sources(digits_folder())
    compiled = settings.compiled
    if compiled and settings.device == "cpu" and (missing := ps.compiler_missing()):
        say(f"note: running eagerly, {missing}")
        compiled = False
    torch.manual_seed(settings.seed)
    model = DigitNet()
    rate = ps.schedules.warmup_cosine(
        peak=PEAK_RATE, warmup_steps=min(60, settings.steps // 10), total_steps=settings.steps
    )
    optimizer = ps.chain(
        ps.clip_by_global_norm(MAX_NORM),
        ps.adamw(rate, weight_decay=WEIGHT_DECAY, decay_mask=ps.matrices_only),
    )
    eager_step = ps.train_step(model, objective, optimizer, accumulate=ACCUMULATE)
    step = ps.compile(eager_step, donate=True) if compiled else eager_step
    evaluate = ps.eval_step(model, objective)

    def start() -> ps.TrainState:
        return ps.init_state(model, optimizer, seed=settings.seed, device=settings.device)

    def batches(source: ps.data.Source, transform: Any = None, **options: Any) -> ps.data.Pipeline:
        order = options.pop("order", ps.data.shuffled(len(source), seed=settings.seed))
        return ps.data.pipeline(source, order, batch_size=BATCH, transform=transform, device=settings.device, **options)

    def accuracy(state: ps.TrainState, transform: Any = None) -> float:
        tests = batches(test, transform, order=ps.data.sequential(len(test)), epochs=1)
        return float(ps.evaluate(evaluate, state, tests)["accuracy"])

    folder = out / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)  # of the demo before, which this one does not go on from
    began = time.perf_counter()
    state = ps.fit(step, start(), batches(train, drop_last=True), steps=settings.steps, checkpoint=folder).state
    seconds = time.perf_counter() - began
    figures: dict[str, Any] = {"accuracy": accuracy(state), "train_seconds": seconds}
    figures["schedule"], figures["checkpoint"] = _draw(rate, settings), ps.checkpoint.latest(folder)
    if settings.ablate:
        for kept, other in (("image", "tabular"), ("tabular", "image")):
            only = _without(other)
            alone = ps.fit(step, start(), batches(train, only, drop_last=True), steps=settings.steps, progress=False)
            figures[f"accuracy_{kept}"] = accuracy(alone.state, only)
    batch = next(iter(batches(train)))
    few = min(40, settings.steps)
    figures.update(_speeds(step if compiled else None, eager_step, start, model, rate, batch, steps=few))
    _report(figures, settings, say)
    return figures


def _without(key: str) -> Callable[[TensorDictBase], TensorDictBase]:
    """A transform that blanks one input; the shapes stay, so nothing is compiled again."""

    def blank(batch: TensorDictBase) -> TensorDictBase:
        return batch.replace({key: torch.zeros_like(batch[key])})

    return blank


def _draw(rate: ps.schedules.Schedule, settings: Settings) -> Path:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    rate.plot(settings.steps, ax=axes)
    axes.set(xlabel="step", ylabel="learning rate", title="warm-up, then a half cosine")
    path = settings.out / "schedule.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _speeds(
    compiled: Any,
    eager: Any,
    start: Any,
    model: nn.Module,
    rate: Any,
    batch: TensorDictBase,
    rounds: int = 5,
    steps: int = 40,
) -> dict[str, float]:
    """Return steps per second of each way to train on one batch, in turns, so that the machine's moods hit them alike:
    for each the median of the rounds."""
    ways: dict[str, Callable[[], None]] = {
        "torch_optim": _plain_loop(model, rate, batch),
        "eager": _runner(eager, start(), batch),
    }
    if compiled is not None:
        ways["compiled"] = _runner(compiled, start(), batch)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            for _ in range(steps):
                way()
            if batch.device is not None and batch.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - began) / steps)
    # The first round warms up.
    return {f"steps_per_second_{name}": 1 / sorted(each[1:])[rounds // 2] for name, each in seconds.items()}


def _runner(step: Any, state: ps.TrainState, batch: TensorDictBase) -> Callable[[], None]:
    def advance() -> None:
        nonlocal state
        state, _ = step(state, batch)

    return advance


def _plain_loop(model: nn.Module, rate: Any, batch: TensorDictBase) -> Callable[[], None]:
    """The same training by ``torch.optim``, as its documentation writes it."""
    import copy

    model = copy.deepcopy(model).to(batch["image"].device)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(rate(step)))

    def advance() -> None:
        optimizer.zero_grad()
        for part in batch.split(BATCH // ACCUMULATE):
            logits = model(part["image"], part["tabular"])
            (F.cross_entropy(logits, part["label"], label_smoothing=SMOOTHING) / ACCUMULATE).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        scheduler.step()

    return advance


def _report(figures: dict[str, Any], settings: Settings, say: Callable[[str], None]) -> None:
    say(f"test accuracy, both inputs  {figures['accuracy']:.4f}")
    for kept, label in (("image", "image alone"), ("tabular", "table alone")):
        if f"accuracy_{kept}" in figures:
            say(f"test accuracy, {label:<12} {figures[f'accuracy_{kept}']:.4f}")
    names = {"compiled": "compiled pure step", "eager": "eager pure step", "torch_optim": "torch.optim loop"}
    for name, label in names.items():
        speed = figures.get(f"steps_per_second_{name}")
        if speed is not None:
            say(f"steps/s, {label:<18} {speed:8.0f}")
    included = ", compilation included" if "steps_per_second_compiled" in figures else ""
    say(f"trained {settings.steps} steps in {figures['train_seconds']:.1f} s{included}")
    say(f"checkpoint  {figures['checkpoint']}")
    say(f"schedule    {figures['schedule']}")
