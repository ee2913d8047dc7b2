"""Whether training with dropout from the state's key learns as with torch's own: curves of ten seeds each.

A perceptron on scikit-learn's digits, other seeds for each. It prints the mean test
loss and accuracy along the way, the difference of the means, and its standard error over the seeds; the difference
should be within 3 of them everywhere, and the same comparison of p = 0.7 with p = 0.3 should not be.

    python bench/dropout_curves.py [--seeds 10] [--steps 400]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import purestep as ps
from dropout import drawn_by_torch

EVERY = 50


def data() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


def objective(model: nn.Module, batch: dict[str, Tensor]) -> tuple[ps.Mean, dict[str, ps.Mean]]:
    logits = model(batch["x"])
    loss = ps.mean(F.cross_entropy(logits, batch["y"], reduction="none"))
    return loss, {"accuracy": ps.mean(logits.argmax(-1) == batch["y"])}


def curve(seed: int, steps: int, p: float, by_torch: bool) -> Tensor:
    """Return (points, 2): test loss and accuracy every so many steps."""
    train, test = data()
    layers = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(64, 128), nn.ReLU(), nn.Dropout(p), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(p), nn.Linear(128, 10)
    )
    model, optimizer = ps.init_params(layers, seed), ps.sgd(0.1, momentum=0.9)
    step, evaluate = ps.train_step(model, objective, optimizer), ps.eval_step(model, objective)
    state = ps.init_state(model, optimizer, seed=seed)
    order = ps.data.shuffled(len(train["y"]), seed=seed)
    torch.manual_seed(seed)
    points = []
    for number in range(steps):
        place = torch.arange(32) + 32 * (number % 37)
        indices = order(number // 37, place)
        batch = {name: tensor[indices] for name, tensor in train.items()}
        if by_torch:
            with drawn_by_torch():
                state, _ = step(state, batch)
        else:
            state, _ = step(state, batch)
        if (number + 1) % EVERY == 0:
            metrics = evaluate(state, test)
            points.append(torch.stack([metrics[name].value().double() for name in ("loss", "accuracy")]))
    return torch.stack(points).detach()


def compared(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of each, and their difference in standard errors."""
    error = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    return first.mean(0), second.mean(0), (first.mean(0) - second.mean(0)) / error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "dropout_curves.json")
    options = parser.parse_args()

    def runs(p: float, by_torch: bool, first: int = 0) -> Tensor:
        return torch.stack([curve(first + seed, options.steps, p, by_torch) for seed in range(options.seeds)])

    ours, theirs, other = runs(0.3, False), runs(0.3, True, 1000), runs(0.7, False, 2000)
    mean, torchs, apart = compared(ours, theirs)
    control = compared(ours, other)[2]
    print(f"{'step':>5}{'loss':>9}{'torch':>9}{'σ apart':>9}{'accuracy':>10}{'torch':>9}{'σ apart':>9}{'p=0.7':>9}")
    for i in range(len(mean)):
        print(
            f"{(i + 1) * EVERY:5}{mean[i, 0]:9.4f}{torchs[i, 0]:9.4f}{apart[i, 0]:9.2f}"
            f"{mean[i, 1]:10.4f}{torchs[i, 1]:9.4f}{apart[i, 1]:9.2f}{control[i, 0]:9.2f}"
        )
    worst, found = float(apart.abs().max()), float(control.abs().max())
    print(f"at most {worst:.2f} standard errors apart; p = 0.3 and 0.7 are {found:.1f} apart")
    options.json.write_text(
        json.dumps(
            {
                "seeds": options.seeds,
                "steps": options.steps,
                "every": EVERY,
                "worst": worst,
                "control": found,
                "purestep": mean.tolist(),
                "torch": torchs.tolist(),
            },
            indent=2,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
