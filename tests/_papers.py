"""Optimizers that torch does not have, as their papers write them, in NumPy; and ours beside them."""

from __future__ import annotations

import math

import numpy as np
import torch
from tensordict import TensorDict

import purestep as ps
from purestep.optimizers.ademamix import ademamix
from purestep.optimizers.adopt import adopt
from purestep.optimizers.layerwise import lamb, lars
from purestep.optimizers.lion import lion
from purestep.optimizers.prodigy import prodigy
from purestep.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd
from purestep.updates import UpdateContext

STEPS = 50
SHAPES = {"scalar": (), "vector": (7,), "matrix": (5, 3), "kernel": (4, 3, 2, 2), "empty": (0, 3), "still": (4,)}


def parameters():
    generator = np.random.default_rng(0)
    params = {name: np.asarray(generator.normal(size=shape)) for name, shape in SHAPES.items()}
    params["zero"] = np.zeros(3)
    params["transposed"] = generator.normal(size=(6, 4)).T
    return params


def gradients():
    """Of many sizes, around a drift; one parameter never has any, and at step 7 none has."""
    generator = np.random.default_rng(1)
    steps = []
    for step in range(STEPS):
        sizes = {name: 10.0 ** (position - 4) for position, name in enumerate(parameters())}
        steps.append(
            {
                name: (0.3 + generator.normal(size=leaf.shape)) * sizes[name] * (step != 7 and name != "still")
                for name, leaf in parameters().items()
            }
        )
    return steps


def matrices(name, leaf):
    return leaf.ndim >= 2


# Each reference is the paper's algorithm in NumPy: (params, grads of each step, options) -> params after each step.
def lamb_reference(params, grads, rate=0.1, betas=(0.9, 0.999), eps=1e-6, decay=0.0, decays=None, trusts=None):
    x = {k: p.copy() for k, p in params.items()}
    m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for t, g in enumerate(grads, 1):
        for k in x:
            m[k] = betas[0] * m[k] + (1 - betas[0]) * g[k]
            v[k] = betas[1] * v[k] + (1 - betas[1]) * g[k] ** 2
            r = (m[k] / (1 - betas[0] ** t)) / (np.sqrt(v[k] / (1 - betas[1] ** t)) + eps)
            u = r + (decay if decays is None or decays(k, x[k]) else 0.0) * x[k]
            sizes = np.sqrt((x[k] ** 2).sum()), np.sqrt((u**2).sum())
            ratio = sizes[0] / sizes[1] if min(sizes) > 0 and (trusts is None or trusts(k, x[k])) else 1.0
            x[k] = x[k] - rate * ratio * u
        yield x


def lars_reference(params, grads, rate=0.1, momentum=0.9, trust=1e-3, decay=0.0, decays=None, trusts=None):
    x = {k: p.copy() for k, p in params.items()}
    b = {k: np.zeros_like(p) for k, p in params.items()}
    for g in grads:
        for k in x:
            own = decay if decays is None or decays(k, x[k]) else 0.0
            size = np.sqrt((x[k] ** 2).sum())
            below = np.sqrt((g[k] ** 2).sum()) + own * size
            local = trust * size / below if min(size, below) > 0 and (trusts is None or trusts(k, x[k])) else 1.0
            b[k] = momentum * b[k] + rate * local * (g[k] + own * x[k])
            x[k] = x[k] - b[k]
        yield x


def lion_reference(params, grads, rate=0.01, betas=(0.9, 0.99), decay=0.0, decays=None):
    x = {k: p.copy() for k, p in params.items()}
    m = {k: np.zeros_like(p) for k, p in params.items()}
    for g in grads:
        for k in x:
            update = np.sign(betas[0] * m[k] + (1 - betas[0]) * g[k])
            x[k] = x[k] - rate * (update + (decay if decays is None or decays(k, x[k]) else 0.0) * x[k])
            m[k] = betas[1] * m[k] + (1 - betas[1]) * g[k]
        yield x


def ademamix_reference(
    params, grads, rate=0.01, betas=(0.9, 0.999, 0.9999), alpha=5.0, warmup=None, eps=1e-8, decay=0.0
):
    x = {k: p.copy() for k, p in params.items()}
    slow, fast, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(3))
    b1, b2, b3 = betas
    for t, g in enumerate(grads, 1):
        share, beta = alpha, b3
        if warmup is not None:
            share = min(t * alpha / warmup, alpha)
            below = (1 - t / warmup) * math.log(b3) + (t / warmup) * math.log(b1)
            beta = min(math.exp(math.log(b1) * math.log(b3) / below), b3) if t < warmup else b3
        for k in x:
            fast[k] = b1 * fast[k] + (1 - b1) * g[k]
            slow[k] = beta * slow[k] + (1 - beta) * g[k]
            v[k] = b2 * v[k] + (1 - b2) * g[k] ** 2
            step = (fast[k] / (1 - b1**t) + share * slow[k]) / (np.sqrt(v[k] / (1 - b2**t)) + 1e-8)
            x[k] = x[k] - rate * (step + decay * x[k])
        yield x


def adopt_reference(params, grads, rate=0.01, betas=(0.9, 0.9999), eps=1e-6, power=0.25, decay=0.0):
    x = {k: p * (1 - rate * decay) for k, p in params.items()}
    m = {k: np.zeros_like(p) for k, p in params.items()}
    v = {k: g**2 for k, g in grads[0].items()}
    yield x
    for t, g in enumerate(grads[1:], 1):
        for k in x:
            step = g[k] / np.maximum(np.sqrt(v[k]), eps)
            if power is not None:
                step = np.clip(step, -(t**power), t**power)
            m[k] = betas[0] * m[k] + (1 - betas[0]) * step
            x[k] = x[k] - rate * (m[k] + decay * x[k])
            v[k] = betas[1] * v[k] + (1 - betas[1]) * g[k] ** 2
        yield x


def schedule_free_reference(params, grads, rate=0.1, beta=0.9, beta2=None, eps=1e-8, r=0.0, power=2.0, decay=0.0):
    """All three sequences are kept; yields y and x."""
    x, y, z = ({k: p.copy() for k, p in params.items()} for _ in range(3))
    v = {k: np.zeros_like(p) for k, p in params.items()}
    largest, total = 0.0, 0.0
    for t, g in enumerate(grads, 1):
        gamma = rate(t) if callable(rate) else rate
        if beta2 is not None:
            gamma *= math.sqrt(1 - beta2**t)
        largest = max(largest, gamma)
        weight = t**r * largest**power
        total += weight
        c = weight / total if total else 0.0
        for k in x:
            direction = g[k]
            if beta2 is not None:
                v[k] = beta2 * v[k] + (1 - beta2) * g[k] ** 2
                direction = g[k] / (np.sqrt(v[k]) + eps)
            z[k] = z[k] - gamma * direction - gamma * decay * y[k]
            x[k] = (1 - c) * x[k] + c * z[k]
            y[k] = (1 - beta) * z[k] + beta * x[k]
        yield {**y, **{f"{k} averaged": leaf for k, leaf in x.items()}}


def prodigy_reference(params, grads, rate=1.0, betas=(0.9, 0.999), eps=1e-8, d=1e-6, factor=1.0, decay=0.0, bc=False):
    x = {k: p.copy() for k, p in params.items()}
    m, v, s = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(3))
    r, root = 0.0, math.sqrt(betas[1])
    for t, g in enumerate(grads, 1):
        r = root * r + (1 - root) * rate * d**2 * sum((g[k] * (params[k] - x[k])).sum() for k in x)
        correction = math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) if bc else 1.0
        for k in x:
            m[k] = betas[0] * m[k] + (1 - betas[0]) * d * g[k]
            v[k] = betas[1] * v[k] + (1 - betas[1]) * d**2 * g[k] ** 2
            s[k] = root * s[k] + (1 - root) * rate * d**2 * g[k]
            x[k] = (1 - rate * d * decay) * x[k] - rate * d * correction * m[k] / (np.sqrt(v[k]) + d * eps)
        size = sum(np.abs(leaf).sum() for leaf in s.values())
        d = max(d, factor * r / size) if size else d
        yield {**x, "d": d}


MASKS = {"decays": matrices, "trusts": matrices}
OUR_MASKS = {"decay_mask": ps.matrices_only, "trust_mask": ps.matrices_only}
CASES = {
    "lamb": (lambda: lamb(0.1, weight_decay=0.0), lamb_reference, {}),
    "lamb with decay": (lambda: lamb(0.05, betas=(0.5, 0.7), weight_decay=0.1), lamb_reference,
                        {"rate": 0.05, "betas": (0.5, 0.7), "decay": 0.1}),
    "lamb, masked": (lambda: lamb(0.1, eps=1e-3, weight_decay=0.2, **OUR_MASKS), lamb_reference,
                     {"eps": 1e-3, "decay": 0.2, **MASKS}),
    "lars": (lambda: lars(0.1), lars_reference, {}),
    "lars, masked": (lambda: lars(2.0, momentum=0.5, trust_coefficient=0.02, weight_decay=0.1, **OUR_MASKS),
                     lars_reference, {"rate": 2.0, "momentum": 0.5, "trust": 0.02, "decay": 0.1, **MASKS}),
    "lion": (lambda: lion(0.01), lion_reference, {}),
    "lion, masked": (lambda: lion(0.01, betas=(0.5, 0.8), weight_decay=0.3, decay_mask=ps.matrices_only),
                     lion_reference, {"betas": (0.5, 0.8), "decay": 0.3, "decays": matrices}),
    "ademamix": (lambda: ademamix(0.01), ademamix_reference, {}),
    "ademamix with warm-ups": (lambda: ademamix(0.01, betas=(0.8, 0.9, 0.99), alpha=2.0, warmup_steps=30,
                                                weight_decay=0.1),
                               ademamix_reference,
                               {"betas": (0.8, 0.9, 0.99), "alpha": 2.0, "warmup": 30, "decay": 0.1}),
    "adopt": (lambda: adopt(0.01), adopt_reference, {}),
    "adopt, not clipped": (lambda: adopt(0.01, betas=(0.5, 0.9), eps=1e-3, clip_exponent=None, weight_decay=0.1),
                           adopt_reference, {"betas": (0.5, 0.9), "eps": 1e-3, "power": None, "decay": 0.1}),
    "schedule_free_sgd": (lambda: schedule_free_sgd(0.1), schedule_free_reference, {}),
    "schedule_free_sgd with a warm-up": (
        lambda: schedule_free_sgd(ps.schedules.linear(start=0.0, end=0.3, steps=10), momentum=0.7,
                                  weight_power=1.0, weight_decay=0.1),
        schedule_free_reference,
        {"rate": lambda t: 0.3 * min((t - 1) / 10, 1.0), "beta": 0.7, "r": 1.0, "decay": 0.1}),
    "schedule_free_sgd with a decay": (
        lambda: schedule_free_sgd(ps.schedules.linear(start=0.3, end=0.03, steps=40)),
        schedule_free_reference, {"rate": lambda t: 0.3 - 0.27 * min((t - 1) / 40, 1.0)}),
    "schedule_free_adamw": (lambda: schedule_free_adamw(0.01), schedule_free_reference, {"rate": 0.01, "beta2": 0.999}),
    "schedule_free_adamw with powers": (
        lambda: schedule_free_adamw(0.02, betas=(1.0, 0.9), eps=1e-3, weight_power=2.0, weight_rate_power=0.5,
                                    weight_decay=0.2),
        schedule_free_reference,
        {"rate": 0.02, "beta": 1.0, "beta2": 0.9, "eps": 1e-3, "r": 2.0, "power": 0.5, "decay": 0.2}),
    "prodigy": (lambda: prodigy(), prodigy_reference, {}),
    "prodigy with corrections": (
        lambda: prodigy(0.5, betas=(0.8, 0.9), initial_distance=1e-3, distance_factor=2.0, bias_correction=True,
                        weight_decay=0.1),
        prodigy_reference, {"rate": 0.5, "betas": (0.8, 0.9), "d": 1e-3, "factor": 2.0, "bc": True, "decay": 0.1}),
}  # fmt: skip


def run(optimizer, dtype=torch.float64):
    """Yield what the reference yields: the parameters, the averaged ones and the estimate of the distance."""
    params = TensorDict({name: torch.tensor(leaf, dtype=dtype) for name, leaf in parameters().items()})
    state = optimizer.init(params)
    for step, grads in enumerate(gradients()):
        grads = TensorDict({name: torch.tensor(leaf, dtype=dtype) for name, leaf in grads.items()})
        context = UpdateContext(torch.tensor(step), ps.random.key(0))
        params, state = optimizer.update(grads, state, params, context)
        yield {
            **dict(params.items()),
            **{f"{name} averaged": leaf for name, leaf in optimizer.eval_params(params, state).items()},
            **({"d": state["distance"]} if "distance" in state.keys() else {}),  # noqa: SIM118
        }
