"""Peak memory and time of a gradient step with and without rematerialised blocks.

A decoder of transformer blocks with dropout: every block rematerialised, none, and, as peers in plain torch (without
dropout, which draws elsewhere), ``backward()`` with and without ``torch.utils.checkpoint``. Memory is what a call adds
to what is resident, in a process of its own. Compiled steps compile in that process first.

    python bench/remat.py [--depth 8] [--width 128] [--batch 16] [--length 128] [--compiled] [--rounds 7]
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import purestep as ps
from purestep import measure
from purestep.remat import remat

VOCABULARY = 256


class Decoder(nn.Module):
    def __init__(self, depth: int, width: int, dropout: float, *, checkpointed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, VOCABULARY)
        self.checkpointed = checkpointed

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        return self.head(x)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")


def objective(model: nn.Module, batch: Any) -> ps.Mean:
    return ps.mean(loss_of(model, batch["tokens"]))


@functools.cache
def decoder(depth: int, width: int, dropout: float, checkpointed: bool) -> Decoder:
    torch.manual_seed(0)
    return Decoder(depth, width, dropout, checkpointed=checkpointed)


@functools.cache
def pure(depth: int, width: int, dropout: float, rerun: bool, compiled: bool) -> Any:
    model: nn.Module = decoder(depth, width, dropout, False)
    step = ps.grad_step(remat(model, "layers.*") if rerun else model, objective)
    state = ps.init_state(model, ps.sgd(0.1), seed=0)
    return (torch.compile(step, fullgraph=True) if compiled else step), state


def pure_step(tokens: Tensor, *settings: Any) -> Any:
    step, state = pure(*settings)
    return step(state, {"tokens": tokens})


def torch_step(tokens: Tensor, *settings: Any) -> Any:
    model = decoder(*settings)
    loss = loss_of(model, tokens).mean()
    return torch.autograd.grad(loss, list(model.parameters()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("depth", 8), ("width", 128), ("batch", 16), ("length", 128), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    size = (options.depth, options.width)
    tokens = torch.randint(0, VOCABULARY, (options.batch, options.length), generator=torch.Generator().manual_seed(0))
    ways: dict[str, tuple[Any, ...]] = {
        "torch": (torch_step, *size, 0.0, False),
        "torch, checkpoint": (torch_step, *size, 0.0, True),
        "purestep": (pure_step, *size, 0.0, False, False),
        "purestep, remat": (pure_step, *size, 0.0, True, False),
        "purestep, dropout": (pure_step, *size, 0.1, False, False),
        "purestep, dropout, remat": (pure_step, *size, 0.1, True, False),
    }
    if options.compiled:
        ways["purestep, compiled"] = (pure_step, *size, 0.0, False, True)
        ways["purestep, compiled, remat"] = (pure_step, *size, 0.0, True, True)
    added = {name: measure.memory(way[0], tokens, *way[1:]).added for name, way in ways.items()}
    calls = {name: functools.partial(way[0], tokens, *way[1:]) for name, way in ways.items()}
    times = measure.compare(calls, baseline="purestep", rounds=options.rounds, warmup=1)
    print(f"{'':28}{'MiB added':>12}")
    for name in ways:
        print(f"{name:28}{added[name] / 2**20:12.1f}")
    print(times)


if __name__ == "__main__":
    main()
