"""Saving and loading a state of 1 GB: purestep's checkpoints beside plain safetensors, and saving beside training.

save: to the disk, flushed, as the plain file is. load: from the page cache, into tensors of their own. call: what
``save`` of an asynchronous manager takes until it returns, beside a plain copy. loop: steps with one save among them.

Files are where ``TMPDIR`` says.

    python bench/checkpoint.py [save] [load] [call] [loop]
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import purestep as ps
from _report import Bench, Setting, Way, main

SIZE = 1 << 30
LAYERS = 16
LOOP = 6.0  # seconds that the steps of a loop take, longer than a write


def benches(size: int = SIZE, loop: float = LOOP) -> list[Bench]:
    said, sizes = f"{size / (1 << 30):.3g} GB of state", {"bytes": size, "layers": LAYERS}
    steps = {**sizes, "loop_seconds": loop}
    return [
        Bench("checkpoint_save", f"Saving {said}, flushed to the disk", partial(saving, size), sizes),
        Bench("checkpoint_load", f"Loading {said} from the page cache", partial(loading, size), sizes),
        Bench("checkpoint_call", f"What a step waits for {said} to be taken over", partial(calling, size), sizes),
        Bench("checkpoint_loop", f"{loop:g} s of steps, with {said} saved once", partial(looping, size, loop), steps),
    ]


def new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="purestep-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_state(size: int, device: torch.device) -> ps.TrainState:
    """A state of about ``size`` bytes: square layers, AdamW's moments."""
    side = max(int((size / (3 * 4 * LAYERS)) ** 0.5), 1)
    with torch.device(device):
        model = nn.Sequential(*(nn.Linear(side, side, bias=False) for _ in range(LAYERS)))
    return ps.init_state(model, ps.adamw(1e-3), seed=0)


def by_path(state: ps.TrainState) -> dict[str, Tensor]:
    return {"/".join((key,) if isinstance(key, str) else key): leaf for key, leaf in state.items(True, True)}


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def saving(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    state, folder = make_state(size, setting.device), new_folder()
    tensors = by_path(state)

    def plain() -> Way:
        def way() -> None:
            (folder / "plain").unlink(missing_ok=True)  # as a new checkpoint is a new file
            save_file(tensors, folder / "plain")
            flush(folder / "plain")

        return way

    def ours() -> Way:
        numbers = count()

        def way() -> None:
            ps.checkpoint.save(folder / "ours", numbered(state, numbers))

        return way

    return {"safetensors, save_file and fsync": plain, "purestep, checkpoint.save": ours}


def loading(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    state, folder = make_state(size, setting.device), new_folder()

    def plain(*, checked: bool) -> Way:
        save_file(by_path(state), folder / "plain")

        def way() -> None:
            if checked:
                with open(folder / "plain", "rb") as file:
                    hashlib.file_digest(file, "sha256")
            # The tensors are views of the mapped file: they are copied, as a state that will be trained is.
            kept = [leaf.clone() for leaf in load_file(folder / "plain", device=str(setting.device)).values()]
            assert kept

        return way

    def ours() -> Way:
        path = ps.checkpoint.save(folder / "ours", state)
        return lambda: ps.checkpoint.load(path, like=state)

    return {
        "safetensors, load_file and a copy": partial(plain, checked=False),
        "safetensors, load_file, a copy and SHA-256": partial(plain, checked=True),
        "purestep, checkpoint.load": ours,
    }


class Unwritten(ps.checkpoint.Manager):
    """A manager whose thread has nothing to do, so that a call never waits for the write before it."""

    def _write(self, number: int, what: Any) -> None:
        pass


def numbered(state: ps.TrainState, numbers: count[int]) -> ps.TrainState:
    """The state of the next step: another number each time, as in training."""
    return state.replace(calls=torch.full_like(state.calls, next(numbers)))


def synchronized(setting: Setting, way: Way) -> Way:
    def waits() -> None:
        way()
        if setting.device.type == "cuda":
            torch.cuda.synchronize()

    return waits


def calling(size: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    state = make_state(size, setting.device)

    def copy() -> Way:
        leaves = list(by_path(state).values())
        kept = [torch.empty_like(leaf, device="cpu", pin_memory=leaf.is_cuda) for leaf in leaves]

        def way() -> None:
            for to, leaf in zip(kept, leaves, strict=True):
                to.copy_(leaf, non_blocking=True)

        return synchronized(setting, way)

    def clone() -> Way:
        return synchronized(setting, lambda: state.cpu() if setting.device.type == "cuda" else state.clone())

    def ours() -> Way:
        manager, numbers = Unwritten(new_folder(), asynchronous=True), count()
        return synchronized(setting, lambda: manager.save(numbered(state, numbers)))

    return {
        "torch, a copy into memory that is kept": copy,
        "torch, a copy into new memory": clone,
        "purestep, Manager.save, asynchronous": ours,
    }


def looping(size: int, seconds: float, setting: Setting) -> dict[str, Callable[[], Way]]:
    state = make_state(size, setting.device)
    weight = torch.randn(1024, 1024, device=setting.device)

    def step() -> None:
        synchronized(setting, lambda: weight @ weight)()

    step()
    began = perf_counter()
    step()
    steps = max(int(seconds / (perf_counter() - began)), 1)

    def loop(save: Callable[[], object]) -> None:
        save()
        for _ in range(steps):
            step()

    def unsaved() -> Way:
        return lambda: loop(lambda: None)

    def saved(**changes: Any) -> Way:
        manager, numbers = ps.checkpoint.Manager(new_folder(), keep_last=1, **changes), count()

        def way() -> None:
            loop(lambda: manager.save(numbered(state, numbers)))
            manager.wait()

        return way

    return {
        "no save": unsaved,
        "purestep, Manager, asynchronous": partial(saved, asynchronous=True),
        "purestep, Manager": saved,
    }


if __name__ == "__main__":
    main(__doc__, benches(), max_time=60.0)
