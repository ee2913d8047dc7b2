"""Call sites: which module draws, in which of its calls, and for the how-manyeth time.

Hooks on the modules of a structure tell the mode that is drawing where the forward is. A site is a number of 61 bits,
made of the dotted name of the module that runs, the calls that led to it, and an ordinal among its draws. So a module
added elsewhere changes no mask, and a module that is called twice draws twice.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

_BITS = 61
_MODULUS = 1 << _BITS
# Odd, so each is a bijection modulo a power of two; of no pattern, so sums of them meet only by chance (2^-61 a pair).
_OF_CALLER, _OF_CALL, _OF_DRAW = 0x9E3779B97F4A7C15 % _MODULUS, 0xC2B2AE3D27D4EB4F % _MODULUS, 0x165667B19E3779F9
# Leaves of torch.nn that never draw: a hook on them would cost time and tell nothing.
_NEVER_DRAW = frozenset(
    getattr(nn, name)
    for name in (
        *("Identity", "Flatten", "Unflatten", "Linear", "Bilinear", "Embedding", "EmbeddingBag"),
        *("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Fold", "Unfold"),
        *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm", "RMSNorm", "LocalResponseNorm"),
        *("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
        *("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "GLU", "Softplus"),
        *("Tanh", "Sigmoid", "LogSigmoid", "Hardtanh", "Hardswish", "Hardsigmoid", "Softmax", "LogSoftmax", "Softsign"),
        *("MaxPool1d", "MaxPool2d", "MaxPool3d", "AvgPool1d", "AvgPool2d", "AvgPool3d", "Upsample", "PixelShuffle"),
        *("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d"),
    )
)


class Call:
    """One call of a module under way: its number, how often it drew, and how often it called each module below."""

    __slots__ = ("calls", "draws", "number")

    def __init__(self, number: int, draws: int = 0) -> None:
        self.number, self.draws = number, draws
        self.calls: dict[int, int] = {}

    def inner(self, module: int) -> Call:
        """Return the next call, from here, of the module with this number."""
        nth = self.calls.get(module, 0)
        self.calls[module] = nth + 1
        return Call((self.number * _OF_CALLER + module + nth * _OF_CALL) % _MODULUS)

    def next_site(self) -> int:
        """Return the site of the next draw."""
        self.draws += 1
        return (self.number + self.draws * _OF_DRAW) % _MODULUS


class SiteMode(TorchFunctionMode):
    """A mode that knows which call of which module runs under it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.trail = [call]


def current_mode(kind: Any = SiteMode) -> Any:
    """Return the innermost mode of a kind, or ``None``."""
    for mode in reversed(_get_current_function_mode_stack()):
        if isinstance(mode, kind):
            return mode
    return None


def name_calls(structure: nn.Module) -> None:
    """Hook the modules of a structure, so that a :class:`SiteMode` around its forward knows where it is."""
    for path, module in structure.named_modules():
        if type(module) in _NEVER_DRAW or isinstance(module, torch.jit.ScriptModule):
            continue
        module.register_forward_pre_hook(_entering(_number(path)), prepend=True)
        module.register_forward_hook(_leaving)


def _number(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little") % _MODULUS


def _entering(number: int) -> Any:
    def enter(module: nn.Module, args: Any) -> None:
        mode = current_mode()
        if mode is not None:
            mode.trail.append(mode.trail[-1].inner(number))

    return enter


def _leaving(module: nn.Module, args: Any, result: Tensor) -> None:
    mode = current_mode()
    if mode is not None:
        mode.trail.pop()
