"""Every optimizer, with the grids of its options and its counterpart in torch: what the tests run over.

A row says how to make ours and torch's with the same options (torch's names where they differ), what the rule's
non-smooth points ask of a test, and which hyperparameters a meta-gradient goes by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import purestep as ps
from purestep import optimizers
from purestep.optimizers.ademamix import ademamix
from purestep.optimizers.adopt import adopt
from purestep.optimizers.layerwise import lamb, lars
from purestep.optimizers.lion import lion
from purestep.optimizers.prodigy import prodigy
from purestep.optimizers.schedule_free import schedule_free_adamw, schedule_free_sgd

# Our names where torch has others.
TORCH_NAMES = {"decoupled": "decoupled_weight_decay", "adjust": "adjust_lr_fn"}


@dataclass(frozen=True)
class Row:
    """One optimizer.

    Attributes:
        make: ``(rate, **options) -> Optimizer``.
        torch_class: its counterpart, or ``None``.
        grid: options to try, in our names.
        rate: one to try with.
        hyperparameters: by which a meta-gradient goes beside the rate, with their values; ``beta1`` and ``beta2`` stand
            for ``betas``.
        options: for meta-gradients and laws.
        smooth: whether differences have something to agree with.
        shapes: those that the counterpart takes, or ``None`` for all.
        skip: laws of ``check_optimizer`` that the rule cannot keep.
    """

    make: Callable[..., ps.Optimizer]
    torch_class: type[torch.optim.Optimizer] | None
    grid: Sequence[Mapping[str, Any]]
    rate: float = 0.03
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    smooth: bool = True
    shapes: Callable[[torch.Size], bool] = lambda shape: True
    skip: Sequence[str] = ()

    def ours(self, rate: Any, **options: Any) -> ps.Optimizer:
        return self.make(rate, **options)

    def theirs(self, params: Any, rate: float, **options: Any) -> torch.optim.Optimizer:
        options = {TORCH_NAMES.get(name, name): value for name, value in options.items()}
        if self.torch_class is not torch.optim.Muon:
            options["foreach"] = False
        return self.torch_class(params, lr=rate, **options)

    def with_hyperparameters(self, h: Mapping[str, Any]) -> ps.Optimizer:
        """Ours, by tensors of ``"rate"`` and of the row's hyperparameters."""
        options = {name: value for name, value in h.items() if name not in ("rate", "beta1", "beta2")}
        if "beta1" in h:
            options["betas"] = (h["beta1"], h["beta2"])
        return self.make(h["rate"], **{**self.options, **options})


def _decays(decoupled: bool = False) -> list[dict[str, Any]]:
    both = [{}, {"weight_decay": 0.1}, {"maximize": True}, {"maximize": True, "weight_decay": 0.3}]
    return both + [{"weight_decay": 0.2, "decoupled": True}] * decoupled


_ADAM_GRID = [
    *_decays(),
    {"weight_decay": 0.0},
    {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.3},
    {"betas": (0.0, 0.0), "maximize": True},
    {"amsgrad": True},
    {"amsgrad": True, "maximize": True, "weight_decay": 0.2},
]
_BETAS = {"beta1": 0.8, "beta2": 0.9}

TORCH = {
    "sgd": Row(
        optimizers.sgd,
        torch.optim.SGD,
        [
            *_decays(),
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.4},
            {"momentum": 0.9, "nesterov": True, "weight_decay": 0.02},
            {"momentum": 0.5, "dampening": 1.0, "maximize": True},
        ],
        hyperparameters={"momentum": 0.7, "weight_decay": 0.1, "dampening": 0.2},
    ),
    "adam": Row(optimizers.adam, torch.optim.Adam, _ADAM_GRID, hyperparameters={**_BETAS, "weight_decay": 0.2}),
    "adamw": Row(optimizers.adamw, torch.optim.AdamW, _ADAM_GRID, hyperparameters={**_BETAS, "weight_decay": 0.2}),
    "adamax": Row(
        optimizers.adamax,
        torch.optim.Adamax,
        [*_decays(), {"betas": (0.5, 0.6), "eps": 1e-3}, {"betas": (0.0, 0.0)}],
        hyperparameters={**_BETAS, "weight_decay": 0.2},
    ),
    "nadam": Row(
        optimizers.nadam,
        torch.optim.NAdam,
        [
            *_decays(True),
            {"betas": (0.5, 0.6), "eps": 1e-3},
            {"betas": (0.0, 0.0)},
            {"momentum_decay": 0.5, "decoupled": True, "maximize": True},
            {"momentum_decay": 0.0},
        ],
        hyperparameters={**_BETAS, "weight_decay": 0.2, "momentum_decay": 0.3},
    ),
    "radam": Row(
        optimizers.radam,
        torch.optim.RAdam,
        [
            *_decays(True),
            {"betas": (0.5, 0.6), "eps": 1e-3},
            {"betas": (0.0, 0.0)},
            {"betas": (0.8, 0.9), "decoupled": True, "maximize": True},
        ],
        hyperparameters={"beta1": 0.8, "beta2": 0.93, "weight_decay": 0.2},
    ),
    "adagrad": Row(
        optimizers.adagrad,
        torch.optim.Adagrad,
        [*_decays(), {"lr_decay": 0.1}, {"initial_accumulator_value": 0.3, "eps": 1e-3}, {"lr_decay": 2.0, "eps": 0.1}],
        hyperparameters={"lr_decay": 0.3, "weight_decay": 0.2},
    ),
    "adadelta": Row(
        optimizers.adadelta,
        torch.optim.Adadelta,
        [*_decays(), {"rho": 0.5, "eps": 1e-3}, {"rho": 0.0}, {"rho": 1.0}],
        rate=0.7,
        hyperparameters={"rho": 0.8, "weight_decay": 0.2},
        options={"eps": 1e-3},
    ),
    "rmsprop": Row(
        optimizers.rmsprop,
        torch.optim.RMSprop,
        [
            *_decays(),
            {"alpha": 0.5, "eps": 1e-3},
            {"momentum": 0.9},
            {"centered": True},
            {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "maximize": True},
        ],
        hyperparameters={"alpha": 0.8, "momentum": 0.7, "weight_decay": 0.2},
        options={"centered": True, "eps": 1e-3},
    ),
    "asgd": Row(
        optimizers.asgd,
        torch.optim.ASGD,
        [*_decays(), {"lambd": 0.1, "alpha": 0.5}, {"t0": 3.0}, {"t0": 0.0, "lambd": 0.3, "maximize": True}],
        hyperparameters={"lambd": 0.1, "alpha": 0.6, "weight_decay": 0.1},
        smooth=False,  # in float32 its scalars are rounded
    ),
    "rprop": Row(
        optimizers.rprop,
        torch.optim.Rprop,
        [{}, {"maximize": True}, {"etas": (0.3, 1.7)}, {"step_sizes": (0.01, 0.2), "etas": (0.9, 1.1)}],
        smooth=False,
        skip=("rates",),  # the first rate alone counts, as in torch
    ),
    "adafactor": Row(
        optimizers.adafactor,
        torch.optim.Adafactor,
        [*_decays(), {"beta2_decay": -0.3, "eps": (1e-4, 0.1)}, {"d": 3.0, "weight_decay": 0.2}, {"beta2_decay": 0.0}],
        hyperparameters={"beta2_decay": -0.5, "weight_decay": 0.2},
        options={"d": 100.0},
        shapes=lambda shape: shape.numel() > 0,
    ),
    "muon": Row(
        optimizers.muon,
        torch.optim.Muon,
        [
            {},
            {"weight_decay": 0.0, "nesterov": False},
            {"momentum": 0.5, "adjust": "match_rms_adamw"},
            {"ns_steps": 2, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 1e-3, "weight_decay": 0.3},
        ],
        hyperparameters={"momentum": 0.7, "weight_decay": 0.2},
        options={"ns_dtype": None},  # torch's bfloat16 is neither smooth nor the same in an ensemble
        shapes=lambda shape: len(shape) == 2,
    ),
}

# Those that torch does not have; test_optimizers_beyond.py holds them against their papers.
BEYOND = {
    "lamb": Row(lamb, None, [{}, {"weight_decay": 0.0}], options={"weight_decay": 0.0}),
    "lars": Row(lars, None, [{}, {"weight_decay": 0.1}], options={"trust_coefficient": 1.0}),
    "lion": Row(lion, None, [{}, {"weight_decay": 0.1}], smooth=False),
    "schedule_free_sgd": Row(schedule_free_sgd, None, [{}, {"momentum": 0.5}, {"weight_power": 1.0}]),
    "schedule_free_adamw": Row(schedule_free_adamw, None, [{}, {"weight_decay": 0.1}]),
    "ademamix": Row(ademamix, None, [{}, {"warmup_steps": 20}], options={"betas": (0.9, 0.999, 0.99)}),
    "adopt": Row(adopt, None, [{}, {"clip_exponent": None}]),
    "prodigy": Row(prodigy, None, [{}, {"bias_correction": True}], rate=1.0),
}
