"""What the tests of checkpoints share: a small state, and how to compare and to damage."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

import purestep as ps
from purestep.checkpoint import _manifest

MANIFEST = _manifest.NAME


def small_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def small_optimizer() -> ps.Optimizer:
    return ps.chain(ps.clip_by_global_norm(1.0), ps.adamw(1e-2, weight_decay=0.1))


def small_state(seed: int = 0) -> ps.TrainState:
    torch.manual_seed(seed)
    return ps.init_state(small_model(), small_optimizer(), seed=seed)


def with_aux(**tensors: Any) -> ps.TrainState:
    return small_state().replace(aux=TensorDict(tensors, batch_size=[]))


def leaves(state: Any) -> dict[str, Tensor]:
    return {str(key): leaf for key, leaf in state.items(include_nested=True, leaves_only=True)}


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    plain = [t.resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8) for t in (one, other)]
    return torch.equal(*plain)


def assert_same_bits(one: Any, other: Any) -> None:
    one, other = leaves(one), leaves(other)
    assert list(one) == list(other)
    for name, leaf in one.items():
        assert same_bits(leaf, other[name]), name


def data_file(path: Path) -> Path:
    """The one file of tensors in a checkpoint."""
    (found,) = path.glob("state-*.safetensors")
    return found


def files(path: Path) -> list[str]:
    """What is in a checkpoint's folder, but for its lock."""
    return sorted(name for name in os.listdir(path) if name != ".lock")


def forge(path: Path, change: Any, *, raw: bytes | None = None) -> None:
    """Let a function change what a manifest says, and write it with the hash that it then needs; or write ``raw``."""
    said = json.loads((path / MANIFEST).read_text())
    said.pop("sha256")
    change(said)
    (path / MANIFEST).write_bytes(_manifest._text(said).encode() if raw is None else raw)


def forge_data(path: Path, content: bytes, change: Any = lambda said: None) -> None:
    """Put other bytes in the place of a checkpoint's tensors, with a manifest that says that they are right."""
    data_file(path).unlink()
    sha256 = hashlib.sha256(content).hexdigest()
    name = _manifest.data_file(sha256)
    (path / name).write_bytes(content)

    def names(said: dict[str, Any]) -> None:
        said["files"] = {name: {"sha256": sha256, "bytes": len(content)}}
        change(said)

    forge(path, names)
