"""What dropout from the state's key costs in a step, against torch's own dropout in the same step.

The same model, compiled and donated, and eagerly: without dropout, with the key's masks, and with torch's (the mode let
torch's functions through, and nothing is refused, so such a step is not pure). A perceptron, and a decoder with dropout
in attention, where torch draws inside a fused kernel on CUDA.

    python bench/dropout.py [perceptron decoder] [--max-time 10]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purestep as ps
from _report import Bench, Setting, Way, main

RATE = 1e-6
PERCEPTRON = {"batch": 256, "width": 512, "layers": 4, "p": 0.1}
DECODER = {"batch": 8, "length": 64, "width": 128, "layers": 2, "heads": 4, "p": 0.1}


def perceptron(p: float) -> nn.Module:
    width = PERCEPTRON["width"]
    layers = [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(p)) for _ in range(PERCEPTRON["layers"])]
    return nn.Sequential(*layers, nn.Linear(width, 10))


class Decoder(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        width = DECODER["width"]
        self.embed = nn.Embedding(256, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, DECODER["heads"], 4 * width, p, batch_first=True)
            for _ in range(DECODER["layers"])
        )
        self.head = nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden).flatten(0, 1)


@contextmanager
def drawn_by_torch() -> Iterator[None]:
    """Let random functions through to torch while a step is traced or run."""

    def straight(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))

    with (
        mock.patch("purestep.draws._mode.Draws.__torch_function__", straight),
        mock.patch("purestep.draws._refusals.put_back", return_value=False),
        mock.patch("purestep.execution._random_operations._is_random", return_value=False),
    ):
        yield


def step(make: Callable[[float], nn.Module], p: float, batch: Any, *, compiled: bool, by_torch: bool = False) -> Way:
    torch.manual_seed(0)
    model, optimizer = make(p), ps.adamw(RATE)

    def objective(model: Any, batch: Any) -> ps.Mean:
        return ps.mean(F.cross_entropy(model(batch["x"]), batch["y"].flatten(), reduction="none"))

    run: Any = ps.train_step(model, objective, optimizer)
    run = ps.compile(run, donate=True) if compiled else run
    state = ps.init_state(model, optimizer, seed=0)

    def advance() -> None:
        nonlocal state
        state, _ = run(state, batch)

    def unkeyed() -> None:
        with drawn_by_torch():
            advance()

    return unkeyed if by_torch else advance


def ways(make: Callable[[float], nn.Module], p: float, batch: Any) -> dict[str, Callable[[], Way]]:
    def way(p: float, **options: Any) -> Callable[[], Way]:
        return lambda: step(make, p, batch, **options)

    return {
        "compiled, torch's dropout": way(p, compiled=True, by_torch=True),
        "compiled, purestep's dropout": way(p, compiled=True),
        "compiled, no dropout": way(0.0, compiled=True),
        "eager, torch's dropout": way(p, compiled=False, by_torch=True),
        "eager, purestep's dropout": way(p, compiled=False),
        "eager, no dropout": way(0.0, compiled=False),
    }


def perceptron_ways(setting: Setting) -> dict[str, Callable[[], Way]]:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(PERCEPTRON["batch"], PERCEPTRON["width"], generator=generator).to(setting.device),
        "y": torch.randint(0, 10, (PERCEPTRON["batch"],), generator=generator).to(setting.device),
    }
    return ways(lambda p: perceptron(p).to(setting.device), PERCEPTRON["p"], batch)


def decoder_ways(setting: Setting) -> dict[str, Callable[[], Way]]:
    generator = torch.Generator().manual_seed(0)
    shape = (DECODER["batch"], DECODER["length"])
    batch = {name: torch.randint(0, 256, shape, generator=generator).to(setting.device) for name in ("x", "y")}
    return ways(lambda p: Decoder(p).to(setting.device), DECODER["p"], batch)


if __name__ == "__main__":
    main(
        __doc__,
        [
            Bench("dropout_perceptron", "A step of a perceptron with dropout", perceptron_ways, PERCEPTRON),
            Bench("dropout_decoder", "A step of a decoder with dropout", decoder_ways, DECODER),
        ],
        max_time=10.0,
    )
