"""What the training steps train: models, their batches, and their twins in JAX.

All are classifiers under cross-entropy. Every way of a work begins with the same values, trains on the same batch with
AdamW and a warm-up schedule, and so has the same losses, step for step, as ``tests/test_bench.py`` checks.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import purestep as ps
from _report import Setting

# So small that the model stays near where it begins however many steps a run takes. In a model that has learnt its one
# batch, units die and their moments decay into denormal numbers, whose arithmetic is many times slower.
RATE = ps.schedules.warmup_cosine(peak=1e-6, warmup_steps=100, total_steps=1_000_000)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """A model and a batch.

    Attributes:
        name, title, sizes: as in :class:`_report.Bench`.
        module: builds the model; called under a fixed seed.
        examples: builds the batch, ``x`` and ``y`` with the examples in dimension 0.
        jax_logits: ``(jax, params, x) -> (rows, classes)``, the same function on the parameters of ``jax_layout``.
        jax_layout: ``(name, array) -> array``: a parameter as JAX's users lay it out.
        accumulate: micro-batches of a step.
        rate: a schedule of the learning rate.
    """

    name: str
    title: str
    module: Callable[[], nn.Module]
    examples: Callable[[], Batch]
    jax_logits: Callable[[Any, dict[str, Any], Any], Any]
    jax_layout: Callable[[str, Any], Any]
    accumulate: int = 1
    rate: Any = RATE
    sizes: dict[str, Any] = field(default_factory=dict)

    def model(self, setting: Setting, seed: int = 0) -> nn.Module:
        """The model with its first values."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.module().to(setting.device)

    def batch(self, setting: Setting) -> Batch:
        return {name: tensor.to(setting.device) for name, tensor in self.examples().items()}

    def parts(self, setting: Setting) -> list[Batch]:
        """The micro-batches; their lengths are equal, so the mean of their means is the mean."""
        batch = self.batch(setting)
        pieces = {name: tensor.chunk(self.accumulate) for name, tensor in batch.items()}
        return [{name: pieces[name][i] for name in batch} for i in range(self.accumulate)]


def losses(model: Any, batch: Batch, setting: Setting, *, reduction: str = "mean") -> Tensor:
    """The cross-entropy of a batch, 0-d, or of each of its rows."""
    with autocast(setting):
        logits = model(batch["x"])
        return F.cross_entropy(
            logits.flatten(0, -2) if logits.dim() > 2 else logits, batch["y"].flatten(), reduction=reduction
        )


def autocast(setting: Setting) -> Any:
    """Autocast for bf16. Without its cache of weights, which a captured graph and a functional step cannot use."""
    if setting.precision != "bf16":
        return nullcontext()
    return torch.autocast(setting.device.type, dtype=torch.bfloat16, cache_enabled=False)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- a three-layer MLP ------------------------------------------------------------------------------------------------


def mlp(
    batch: int = 32, inputs: int = 64, hidden: int = 64, classes: int = 10, *, accumulate: int = 1, rate: Any = RATE
) -> Work:
    """So small that a step's time is mostly what surrounds the mathematics."""

    def module() -> nn.Module:
        layers = (nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        return nn.Sequential(*layers, nn.Linear(hidden, classes))

    def examples() -> Batch:
        generator = _generator()
        x = torch.randn(batch, inputs, generator=generator)
        return {"x": x, "y": torch.randint(0, classes, (batch,), generator=generator)}

    def jax_logits(jax: Any, params: dict[str, Any], x: Any) -> Any:
        for layer in ("0", "2"):
            x = jax.nn.relu(x @ params[f"{layer}.weight"] + params[f"{layer}.bias"])
        return x @ params["4.weight"] + params["4.bias"]

    return Work(
        "accumulate" if accumulate > 1 else "step_overhead",
        f"Three-layer MLP, batch {batch}" + (f" in {accumulate} micro-batches" if accumulate > 1 else ""),
        module,
        examples,
        jax_logits,
        _transposed,
        accumulate,
        rate,
        {"batch": batch, "inputs": inputs, "hidden": hidden, "classes": classes, "accumulate": accumulate},
    )


def _transposed(name: str, array: Any) -> Any:
    return array.T if name.endswith("weight") and array.ndim == 2 else array


# --- a convolutional net on MNIST-size pictures -----------------------------------------------------------------------


def conv(batch: int = 64, channels: int = 16, hidden: int = 128, side: int = 28, *, rate: Any = RATE) -> Work:
    """Two convolutions with pooling and two linear layers, on synthetic pictures of one channel."""
    classes, left = 10, side // 4

    def module() -> nn.Module:
        first = (nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        second = (nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        head = (nn.Linear(2 * channels * left * left, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        return nn.Sequential(*first, *second, *head)

    def examples() -> Batch:
        generator = _generator()
        x = torch.rand(batch, 1, side, side, generator=generator)
        return {"x": x, "y": torch.randint(0, classes, (batch,), generator=generator)}

    def jax_logits(jax: Any, params: dict[str, Any], x: Any) -> Any:
        x = x.transpose(0, 2, 3, 1)  # channels last; of one channel, so nothing moves
        for layer in ("0", "3"):
            x = jax.lax.conv_general_dilated(
                x, params[f"{layer}.weight"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + params[f"{layer}.bias"])
            # Faster to differentiate than reduce_window, which gives the same numbers.
            x = x.reshape(x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, x.shape[3]).max(axis=(2, 4))
        x = jax.nn.relu(x.reshape(x.shape[0], -1) @ params["7.weight"] + params["7.bias"])
        return x @ params["9.weight"] + params["9.bias"]

    def jax_layout(name: str, array: Any) -> Any:
        if array.ndim == 4:
            return array.transpose(2, 3, 1, 0)
        if name == "7.weight":  # it reads the flattened pictures, whose channels come last there
            return array.reshape(-1, 2 * channels, left, left).transpose(2, 3, 1, 0).reshape(-1, len(array))
        return _transposed(name, array)

    return Work(
        "conv",
        f"Convolutional net, {batch} pictures of 1×{side}×{side}",
        module,
        examples,
        jax_logits,
        jax_layout,
        rate=rate,
        sizes={"batch": batch, "channels": channels, "hidden": hidden, "side": side},
    )


# --- a character GPT --------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm attention and a two-layer MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(rows, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Characters in, logits of the next ones out: ``(batch, length) -> (batch, length, characters)``."""

    def __init__(self, characters: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def text() -> str:
    """The text that Python's ``help()`` shows for its topics."""
    return "".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))


def gpt(
    batch: int = 8, context: int = 128, width: int = 128, layers: int = 4, heads: int = 4, *, rate: Any = RATE
) -> Work:
    """Some 0.8M parameters at these sizes."""
    words = text()
    alphabet = {character: number for number, character in enumerate(sorted(set(words)))}

    def examples() -> Batch:
        starts = torch.randint(0, len(words) - context - 1, (batch,), generator=_generator()).tolist()
        rows = [[alphabet[c] for c in words[start : start + context + 1]] for start in starts]
        tokens = torch.tensor(rows)
        return {"x": tokens[:, :-1].contiguous(), "y": tokens[:, 1:].contiguous()}

    def jax_logits(jax: Any, params: dict[str, Any], tokens: Any) -> Any:
        def normed(x: Any, name: str) -> Any:
            centred = x - x.mean(-1, keepdims=True)
            scale = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
            return centred * scale * params[f"{name}.weight"] + params[f"{name}.bias"]

        def linear(x: Any, name: str) -> Any:
            return x @ params[f"{name}.weight"] + params[f"{name}.bias"]

        x = params["token.weight"][tokens] + params["place.weight"][: tokens.shape[1]]
        for i in range(layers):
            at = f"blocks.{i}"
            qkv = linear(normed(x, f"{at}.norm1"), f"{at}.qkv").reshape(*tokens.shape, 3, heads, width // heads)
            mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
            x = x + linear(mixed.reshape(*tokens.shape, width), f"{at}.out")
            up = jax.nn.gelu(linear(normed(x, f"{at}.norm2"), f"{at}.up"), approximate=False)
            x = x + linear(up, f"{at}.down")
        return linear(normed(x, "norm"), "head").reshape(-1, len(alphabet))

    def jax_layout(name: str, array: Any) -> Any:
        return array if name in ("token.weight", "place.weight") else _transposed(name, array)

    return Work(
        "gpt",
        f"Character GPT, {batch} rows of {context} characters",
        lambda: GPT(len(alphabet), context, width, layers, heads),
        examples,
        jax_logits,
        jax_layout,
        rate=rate,
        sizes={"batch": batch, "context": context, "width": width, "layers": layers, "heads": heads},
    )
