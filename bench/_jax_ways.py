"""The step in JAX: ``jax.jit`` over ``jax.value_and_grad`` and Optax's AdamW, with donated state.

The parameters are the torch model's own, laid out as JAX's users lay them out.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from _report import LeftOut, Setting, Way, needed
from _torch_ways import BETA1, BETA2, DECAY, EPS
from _works import Work


def setup(setting: Setting) -> tuple[Any, Any]:
    """Import ``(jax, optax)`` for a setting; XLA reads its number of threads when it starts, and only then."""
    if "jax" not in sys.modules:
        os.environ["NPROC"] = os.environ["PJRT_NPROC"] = str(setting.threads)
        # On a GPU it would otherwise take most of the memory, which torch needs too.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        if setting.device.type == "cpu":
            os.environ.setdefault("JAX_PLATFORMS", "cpu")
    jax, optax = needed("jax"), needed("optax")
    if setting.device.type == "cpu":
        # A step is then computed by the thread that asks for it: waiting for another one would only add to it.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        return jax, optax
    if jax.default_backend() == "cpu":
        raise LeftOut("this jax is built without CUDA")
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if setting.precision == "tf32" else "highest")
    return jax, optax


def step(work: Work, setting: Setting, *, members: int = 0) -> Way:
    """One jitted step. With ``members``, that many models of different seeds under ``jax.vmap``.

    Each call waits for its result. On CUDA, torch's events see that wait and nothing else of it.
    """
    jax, optax = setup(setting)
    optimizer = adamw(optax, work.rate)
    models = [parameters(work, seed) for seed in range(max(1, members))]
    params = {name: jax.numpy.stack([model[name] for model in models]) for name in models[0]} if members else models[0]
    parts = {name: _micro(work, tensor) for name, tensor in work.batch(Setting()).items()}
    half = jax.numpy.bfloat16 if setting.precision == "bf16" else None

    def loss_of(params: Any, x: Any, y: Any) -> Any:
        if half is not None:
            params = {name: value.astype(half) for name, value in params.items()}
            x = x.astype(half) if x.dtype == jax.numpy.float32 else x
        logits = work.jax_logits(jax, params, x).astype(jax.numpy.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y.reshape(-1)).mean()

    def gradient(params: Any, parts: dict[str, Any]) -> Any:
        once = jax.value_and_grad(loss_of)
        if work.accumulate == 1:
            return once(params, parts["x"][0], parts["y"][0])

        def add(sums: Any, part: Any) -> Any:
            return jax.tree.map(lambda a, b: a + b / work.accumulate, sums, once(params, *part)), None

        zeros = jax.numpy.zeros(()), jax.tree.map(jax.numpy.zeros_like, params)
        return jax.lax.scan(add, zeros, (parts["x"], parts["y"]))[0]

    def one(params: Any, state: Any, parts: dict[str, Any]) -> Any:
        loss, grads = gradient(params, parts)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    run = jax.jit(jax.vmap(one, in_axes=(0, 0, None)) if members else one, donate_argnums=(0, 1))
    state = (jax.vmap(optimizer.init) if members else optimizer.init)(params)

    def advance() -> Any:
        nonlocal params, state
        params, state, loss = run(params, state, parts)
        return loss.block_until_ready()

    return advance


def update(jax: Any, optax: Any, optimizer: Any, values: dict[str, Any], grads: dict[str, Any]) -> Way:
    """An update alone by an optimizer of Optax, jitted, of torch's tensors by name; parameters and state donated."""
    # Copies: an array that shares torch's memory could not be donated.
    params, given = (
        {name: jax.numpy.array(leaf.cpu().numpy(), copy=True) for name, leaf in tree.items()}
        for tree in (values, grads)
    )
    state = optimizer.init(params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        moves, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, moves), state

    run = jax.jit(update, donate_argnums=(0, 1))

    def advance() -> None:
        nonlocal params, state
        params, state = run(params, state, given)
        jax.block_until_ready(params)

    return advance


def adamw(optax: Any, rate: Any) -> Any:
    """Optax's AdamW under the same schedule."""
    has = rate.hyperparameters
    schedule = optax.warmup_cosine_decay_schedule(
        has["initial"], has["peak"], has["warmup_steps"], has["total_steps"], has["floor"], has["power"]
    )
    return optax.adamw(schedule, b1=BETA1, b2=BETA2, eps=EPS, weight_decay=DECAY)


def parameters(work: Work, seed: int = 0) -> dict[str, Any]:
    """The torch model's parameters in JAX's layout, on JAX's device."""
    jax = needed("jax")
    net = work.model(Setting(), seed)
    # A copy: an array that shares torch's memory could not be donated.
    return {
        name: jax.numpy.array(work.jax_layout(name, p.detach().numpy()).copy(), copy=True)
        for name, p in net.named_parameters()
    }


def _micro(work: Work, tensor: torch.Tensor) -> Any:
    """``(micro-batches, examples, ...)``; integers as JAX has them."""
    jax = needed("jax")
    array = tensor.numpy()
    array = array.astype("int32") if tensor.dtype == torch.int64 else array
    return jax.numpy.array(array.reshape(work.accumulate, -1, *array.shape[1:]))
