"""Recurrent networks, a layer at a time where there is dropout between them: torch's kernel is one opaque call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purestep.draws._dropout import masked
from purestep.draws._mode import Draws, draws


@draws(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
def _recurrent(mode: Draws, func: Any, input: Tensor, second: Any, *rest: Any) -> Any:
    """An RNN. Its arguments are ``(input, hx, weights, has_biases, layers, dropout, train, bidirectional,
    batch_first)``, or ``(data, batch_sizes, hx, weights, ...)`` without the last for packed sequences."""
    packed = isinstance(second, Tensor) and second.dtype == torch.int64 and not isinstance(rest[1], bool)
    before = (second,) if packed else ()
    hidden, weights, biases, layers, dropout, train, bidirectional, *last = rest if packed else (second, *rest)
    if not (train and dropout > 0 and layers > 1):
        return func(input, second, *rest)
    batch_first = bool(last and last[0])
    states = hidden if isinstance(hidden, (tuple, list)) else (hidden,)
    directions, each = 2 if bidirectional else 1, len(weights) // layers
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(layers):
        if layer:
            # In packed data, steps of sequences of different lengths follow each other: a place says nothing of its
            # example, and the draws are those of the place.
            along = 0 if packed or batch_first else 1
            input = masked(mode, input, input.shape, dropout, True, False, along=along)
        own = [state[layer * directions : (layer + 1) * directions] for state in states]
        given = own if isinstance(hidden, (tuple, list)) else own[0]
        own_weights = list(weights[layer * each : (layer + 1) * each])
        input, *final = func(input, *before, given, own_weights, biases, 1, 0.0, train, bidirectional, *last)
        finals.append(tuple(final))
    return (input, *(torch.cat(parts) for parts in zip(*finals, strict=True)))
