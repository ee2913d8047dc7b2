"""One update of each optimizer over 200 tensors, eagerly: purestep's against torch's, TorchOpt's and Optax's.

The update alone: gradients are given. torch's foreach path, which works in place, is what ratios are to; "loop" is its
other one, whose bits purestep has. Optax's runs compiled, with donated arguments.

    python bench/optimizers.py [adamw sgd ...] [--only torch purestep]
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

import _jax_ways
import purestep as ps
from _report import Bench, LeftOut, Setting, Way, main, needed
from purestep import optimizers

LAYERS, WIDTH = 100, 64  # a matrix and a vector each
RATE = 1e-6

# Ours, torch's class, its options and ours, TorchOpt's name and Optax's (with their options).
RULES: dict[str, tuple[Callable[..., ps.Optimizer], type, dict[str, Any], str | None, str | None]] = {
    "sgd": (optimizers.sgd, torch.optim.SGD, {"momentum": 0.9}, "sgd", "sgd"),
    "adam": (optimizers.adam, torch.optim.Adam, {}, "adam", "adam"),
    "adamw": (optimizers.adamw, torch.optim.AdamW, {}, "adamw", "adamw"),
    "adamax": (optimizers.adamax, torch.optim.Adamax, {}, "adamax", "adamax"),
    "nadam": (optimizers.nadam, torch.optim.NAdam, {}, None, "nadam"),
    "radam": (optimizers.radam, torch.optim.RAdam, {}, "radam", "radam"),
    "adagrad": (optimizers.adagrad, torch.optim.Adagrad, {}, "adagrad", "adagrad"),
    "adadelta": (optimizers.adadelta, torch.optim.Adadelta, {}, "adadelta", "adadelta"),
    "rmsprop": (optimizers.rmsprop, torch.optim.RMSprop, {}, "rmsprop", "rmsprop"),
    "asgd": (optimizers.asgd, torch.optim.ASGD, {}, None, None),
    "rprop": (optimizers.rprop, torch.optim.Rprop, {}, None, "rprop"),
    "adafactor": (optimizers.adafactor, torch.optim.Adafactor, {}, None, "adafactor"),
    "muon": (optimizers.muon, torch.optim.Muon, {}, None, None),
}


def benches(layers: int = LAYERS, width: int = WIDTH) -> list[Bench]:
    return [
        Bench(
            f"optimizer_{name}",
            f"An update by {name} of {_count(name, layers)} float32 tensors of width {width}",
            partial(ways, name, layers, width),
            {"layers": layers, "width": width},
        )
        for name in RULES
    ]


def ways(name: str, layers: int, width: int, setting: Setting) -> dict[str, Callable[[], Way]]:
    generator = torch.Generator(setting.device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return 0.02 * torch.randn(*shape, generator=generator, device=setting.device)

    shapes = {f"{i:03d}.weight": (width, width) for i in range(layers)}
    if name != "muon":
        shapes |= {f"{i:03d}.bias": (width,) for i in range(layers)}
    values = {key: drawn(*shape) for key, shape in shapes.items()}
    grads = {key: drawn(*shape) for key, shape in shapes.items()}
    ours, theirs, options, torchopt, optax = RULES[name]
    kinds = {"foreach": True}, {"foreach": False}
    made = {
        f"torch, {'foreach' if kind['foreach'] else 'loop'}": partial(
            torch_update, theirs, values, grads, **options, **({} if name == "muon" else kind)
        )
        for kind in kinds
        if name != "muon" or kind["foreach"]
    }
    made["purestep"] = partial(pure_update, ours(RATE, **options), values, grads)
    made["TorchOpt"] = partial(torchopt_update, torchopt, options, values, grads)
    made["Optax, compiled"] = partial(optax_update, optax, options, values, grads, setting)
    return made


def torch_update(theirs: Any, values: dict[str, Tensor], grads: dict[str, Tensor], **options: Any) -> Way:
    parameters = [nn.Parameter(value.clone()) for value in values.values()]
    for parameter, grad in zip(parameters, grads.values(), strict=True):
        parameter.grad = grad
    return theirs(parameters, lr=RATE, **options).step


def pure_update(rule: ps.Optimizer, values: dict[str, Tensor], grads: dict[str, Tensor]) -> Way:
    params, given = TensorDict(values), TensorDict(grads)
    state = rule.init(params)
    context = ps.UpdateContext(torch.zeros((), dtype=torch.int64), ps.random.key(0))

    def advance() -> None:
        nonlocal params, state
        params, state = rule.update(given, state, params, context)

    return advance


def torchopt_update(
    name: str | None, options: dict[str, Any], values: dict[str, Tensor], grads: dict[str, Tensor]
) -> Way:
    if name is None:
        raise LeftOut("TorchOpt has no such optimizer")
    peer = needed("torchopt")
    rule = getattr(peer, name)(RATE, **options)
    params = {key: value.clone() for key, value in values.items()}
    state = rule.init(params)

    def advance() -> None:
        nonlocal params, state
        moves, state = rule.update({key: grad.clone() for key, grad in grads.items()}, state, params=params)
        params = peer.apply_updates(params, moves, inplace=True)

    return advance


def optax_update(
    name: str | None, options: dict[str, Any], values: dict[str, Tensor], grads: dict[str, Tensor], setting: Setting
) -> Way:
    if name is None:
        raise LeftOut("Optax has no such optimizer, or none without contrib")
    jax, optax = _jax_ways.setup(setting)
    return _jax_ways.update(jax, optax, getattr(optax, name)(RATE, **options), values, grads)


def _count(name: str, layers: int) -> int:
    return layers if name == "muon" else 2 * layers


if __name__ == "__main__":
    main(__doc__, benches(), max_time=2.0)
