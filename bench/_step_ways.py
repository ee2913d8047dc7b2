"""All the ways to take a training step, by the names that the tables have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import _jax_ways
import _peer_ways
import _pure_ways
import _torch_ways
from _report import Bench, Setting, Way
from _works import Work, mlp


def step_bench(work: Work, name: str) -> Bench:
    """A step of a work, each way."""
    return Bench(name, f"{work.title}; AdamW under a schedule", partial(step_ways, work), work.sizes)


def step_ways(work: Work, setting: Setting) -> dict[str, Callable[[], Way]]:
    """What makes each way of a step, by name; eager torch is first."""
    loop = partial(_torch_ways.loop, work, setting)
    pure = partial(_pure_ways.step, work, setting)
    ways: dict[str, Callable[[], Way]] = {
        "torch, eager, fused AdamW": loop,
        "torch, compiled model, fused AdamW": partial(loop, compile_model=True),
        "torch, compiled model and optimizer": partial(loop, compile_model=True, compile_optimizer=True),
        "torch, one graph by hand, cpp_wrapper": partial(_torch_ways.functional, work, setting),
        "Lightning Fabric": partial(_peer_ways.fabric, work, setting),
        "accelerate": partial(_peer_ways.accelerate, work, setting),
        "TorchOpt": partial(_peer_ways.torchopt, work, setting),
        "jax.jit + Optax, donated": partial(_jax_ways.step, work, setting),
        "purestep, eager": partial(pure, compiled=False),
        "purestep, compiled": pure,
        "purestep, compiled, donated": partial(pure, donate=True),
        "purestep, compiled, donated, cpp_wrapper": partial(pure, donate=True, cpp_wrapper=True),
    }
    if setting.device.type == "cuda":
        ways |= {
            "torch, compiled model, reduce-overhead": partial(loop, compile_model=True, mode="reduce-overhead"),
            "torch, eager, captured": lambda: _torch_ways.captured_loop(work, setting),
            "torch, one graph by hand, captured": lambda: _torch_ways.captured(_torch_ways.functional(work, setting)),
            "purestep, compiled, donated, captured": partial(pure, donate=True, capture=True),
        }
    return ways


def ensemble_bench(members: int = 64, work: Work | None = None) -> Bench:
    """A step of many small models of different seeds, on one batch."""
    work = work or mlp()
    title = f"{members} models ({work.title[0].lower()}{work.title[1:]}); AdamW under a schedule"
    return Bench("step_ensemble", title, partial(ensemble_ways, work, members), {**work.sizes, "members": members})


def ensemble_ways(work: Work, members: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    """What makes each way of a step of all members, by name."""
    pure = partial(_pure_ways.step, work, setting, members=members)

    def one_by_one() -> Way:
        loops = [_torch_ways.loop(work, setting, seed=seed) for seed in range(members)]
        return lambda: [loop() for loop in loops]

    return {
        "torch, eager, one after another": one_by_one,
        "torch, one graph by hand, vmap, cpp_wrapper": partial(_torch_ways.functional, work, setting, members=members),
        "jax.vmap + jit + Optax, donated": partial(_jax_ways.step, work, setting, members=members),
        "purestep, eager, vmap": partial(pure, compiled=False),
        "purestep, compiled, vmap, donated": partial(pure, donate=True),
        "purestep, compiled, vmap, donated, cpp_wrapper": partial(pure, donate=True, cpp_wrapper=True),
    }
