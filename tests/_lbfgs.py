"""Functions to find the minimum of, and a point to move."""

from __future__ import annotations

import torch
from torch import nn


class Place(nn.Module):
    """A point to move, in two parameters."""

    def __init__(self, x):
        super().__init__()
        x = torch.as_tensor(x, dtype=torch.float64)
        self.first = nn.Parameter(x[:1].clone())
        self.rest = nn.Parameter(x[1:].clone())

    def forward(self):
        return torch.cat([self.first, self.rest])


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x):
    """Of condition 1000, and turned."""
    size = len(x)
    turned = x + 0.3 * x.roll(1)
    return 0.5 * (torch.logspace(-1.5, 1.5, size, dtype=x.dtype) * (turned - 1).square()).sum()


def least_squares(x):
    """Many rows, and one of them weighs most."""
    rows = torch.cos(torch.arange(1, 41, dtype=x.dtype)[:, None] * torch.arange(1, len(x) + 1, dtype=x.dtype))
    return (rows @ x - torch.sin(torch.arange(40, dtype=x.dtype))).square().mean() + 5 * (x.sum() - 2).square()


PROBLEMS = {
    "rosenbrock, 2": (rosenbrock, [-1.2, 1.0]),
    "rosenbrock, 10": (rosenbrock, [-1.2, 1.0] * 5),
    "quadratic": (quadratic, [0.0] * 12),
    "least squares": (least_squares, [0.0] * 6),
}
NOTHING = torch.zeros(1)


def objective_of(function):
    return lambda model, batch: function(model())
