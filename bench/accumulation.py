"""Gradient accumulation side by side: whose update is the whole batch's?

One ragged batch of tokens, in micro-batches with different numbers of tokens that count, goes through each library's
own documented way of accumulating, in float64 with plain SGD at rate 1: an update is a gradient. What is printed is
each one's relative error against the gradient of the mean over all tokens, taken at once; the share of the right update
that it makes of a leftover, the one micro-batch that remains where an epoch ends before its window does; and what it
gives for the mean of 4, 5, 6, 7, 8 and 12, cut into five and one, which is 7.

    python bench/accumulation.py [--json bench/results/accumulation.json]

A peer that is not installed is left out: pip install optax jax lightning-fabric pytorch-lightning accelerate
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import purestep as ps

INPUTS, HIDDEN, CLASSES = 4, 8, 3
# Two examples make a micro-batch, of 23, 3, 11, 3 and (the leftover) 5 tokens.
LENGTHS, EXAMPLES, WINDOW = (12, 11, 1, 2, 6, 5, 2, 1, 4, 1), 2, 4


@dataclass(frozen=True)
class Problem:
    """A model and a loss of each token, in torch and in JAX; and padded examples, in the order they are taken in.

    Attributes:
        model: a fresh model, always the same one.
        losses: ``(model, x, y)`` to (examples, tokens).
        jax_losses: ``(parameters, x, y)`` to the same, where the parameters are a list of arrays in torch's order.
        x, y, mask: (examples, tokens, inputs), (examples, tokens) and, for what counts, (examples, tokens).
        examples: in a micro-batch.
        window: micro-batches in an update.
    """

    model: Callable[[], nn.Module]
    losses: Callable[..., Tensor]
    jax_losses: Callable[..., Any]
    x: Tensor
    y: Tensor
    mask: Tensor
    examples: int
    window: int

    def loader(self) -> DataLoader:
        return DataLoader(TensorDataset(self.x, self.y, self.mask), batch_size=self.examples)

    def mean_loss(self, model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """The mean over the tokens of a batch: what a user of each peer writes."""
        return self.losses(model, x, y)[mask].mean()

    def gradient(self, parameters: np.ndarray, first: int, last: int) -> np.ndarray:
        """The right one: of the mean over all tokens of the micro-batches from ``first`` up to ``last``, at once."""
        model, part = self.model(), slice(first * self.examples, last * self.examples)
        nn.utils.vector_to_parameters(torch.from_numpy(parameters), model.parameters())
        loss = self.mean_loss(model, self.x[part], self.y[part], self.mask[part])
        return np.concatenate([g.numpy().ravel() for g in torch.autograd.grad(loss, list(model.parameters()))])


def token_problem() -> Problem:
    """A classifier of tokens."""
    generator = torch.Generator().manual_seed(0)
    count, longest = len(LENGTHS), max(LENGTHS)
    x = torch.randn(count, longest, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (count, longest), generator=generator)

    def model() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).double()

    def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none").view_as(y)

    def jax_losses(parameters: list[Any], x: Any, y: Any) -> Any:
        import jax
        import optax

        first, bias, last, offset = parameters
        logits = jax.numpy.tanh(x @ first.T + bias) @ last.T + offset
        return optax.softmax_cross_entropy_with_integer_labels(logits, y)

    mask = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    return Problem(model, losses, jax_losses, x, y, mask, EXAMPLES, WINDOW)


def five_and_one() -> Problem:
    """The mean of 4, 5, 6, 7, 8 and 12, each times one parameter, in micro-batches of five and one."""
    x = torch.tensor([[4, 5, 6, 7, 8], [12, 0, 0, 0, 0]], dtype=torch.float64)[..., None]
    return Problem(
        lambda: nn.Linear(1, 1, bias=False).double(),
        lambda model, x, y: model(x).squeeze(-1),
        lambda parameters, x, y: (x @ parameters[0].T)[..., 0],
        x,
        torch.zeros(2, 5, dtype=torch.int64),
        torch.arange(5) < torch.tensor([5, 1])[:, None],
        examples=1,
        window=2,
    )


Trajectory = list[np.ndarray]  # the parameters, before the first micro-batch and after each


def flat(model: nn.Module) -> np.ndarray:
    return nn.utils.parameters_to_vector(model.parameters()).detach().numpy().copy()


def torch_loop(problem: Problem) -> Trajectory:
    """The loop that every tutorial has: the loss over k, and a step at every k-th micro-batch or at the end."""
    model, loader, k = problem.model(), problem.loader(), problem.window
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=1.0), [flat(model)]
    for index, batch in enumerate(loader):
        (problem.mean_loss(model, *batch) / k).backward()
        if (index + 1) % k == 0 or index + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()
        seen.append(flat(model))
    return seen


def optax_multi_steps(problem: Problem, *, known: bool = False) -> Trajectory:
    """``optax.MultiSteps(optimizer, every_k_schedule=k)``, which averages the gradients it is given; or, ``known``,
    with all that it can be told before: ``use_grad_mean=False``, sums over the number of tokens in the window, and a
    schedule of k by which the last window is shorter."""
    import jax
    import optax

    with jax.enable_x64(True):
        k, count = problem.window, len(problem.x) // problem.examples
        schedule = (lambda update: jax.numpy.minimum(k, count - k * update)) if known else k
        optimizer = optax.MultiSteps(
            optax.sgd(1.0), every_k_schedule=schedule, use_grad_mean=not known, accumulator_dtype=jax.numpy.float64
        )

        def loss(parameters: list[Any], x: Any, y: Any, mask: Any, tokens: float) -> Any:
            losses = problem.jax_losses(parameters, x, y)
            return jax.numpy.where(mask, losses, 0.0).sum() / tokens

        batches = [[jax.numpy.asarray(part.numpy()) for part in batch] for batch in problem.loader()]
        parameters = [jax.numpy.asarray(p.detach().numpy()) for p in problem.model().parameters()]
        state, seen = optimizer.init(parameters), [_joined(parameters)]
        for index, batch in enumerate(batches):
            window = batches[index - index % k :][:k] if known else [batch]
            gradient = jax.grad(loss)(parameters, *batch, float(sum(each[2].sum() for each in window)))
            updates, state = optimizer.update(gradient, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
            seen.append(_joined(parameters))
    return seen


def _joined(parameters: list[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(p).ravel() for p in parameters])


def fabric(problem: Problem) -> Trajectory:
    """Fabric's guide, "Efficient Gradient Accumulation". It leaves the scale of the loss to the user: over k here. (Its
    ``iteration % k != 0`` would step after the first micro-batch alone, so iterations are counted from 1.)"""
    from lightning_fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    plain = problem.model()
    model, optimizer = runner.setup(plain, torch.optim.SGD(plain.parameters(), lr=1.0))
    loader, k, seen = runner.setup_dataloaders(problem.loader()), problem.window, [flat(plain)]
    for iteration, batch in enumerate(loader, start=1):
        is_accumulating = iteration % k != 0
        with runner.no_backward_sync(model, enabled=is_accumulating):
            runner.backward(problem.mean_loss(model, *batch) / k)
        if not is_accumulating:
            optimizer.step()
            optimizer.zero_grad()
        seen.append(flat(plain))
    return seen


def lightning_trainer(problem: Problem) -> Trajectory:
    """``Trainer(accumulate_grad_batches=k)`` of PyTorch Lightning."""
    import pytorch_lightning as lightning

    seen: Trajectory = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = problem.model()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return problem.mean_loss(self.model, *batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1.0)

        def on_train_start(self) -> None:
            seen.append(flat(self.model))

        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(flat(self.model))

    lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        accumulate_grad_batches=problem.window,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    ).fit(Module(), problem.loader())
    return seen


def _accelerated(problem: Problem) -> tuple[Any, nn.Module, Any, Any]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=problem.window)
    model = problem.model()
    return accelerator, *accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0), problem.loader())


def accelerate_accumulate(problem: Problem) -> Trajectory:
    """accelerate's guide, "Performing gradient accumulation": ``with accelerator.accumulate(model)``."""
    accelerator, model, optimizer, loader = _accelerated(problem)
    seen = [flat(model)]
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(problem.mean_loss(model, *batch))
            optimizer.step()
            optimizer.zero_grad()
        seen.append(flat(model))
    return seen


def accelerate_counted(problem: Problem) -> Trajectory:
    """The same guide's recipe for samples of variable size: a window is read ahead and its tokens are counted, and the
    sums of losses are divided by that number (times k, which ``backward`` divides by)."""
    accelerator, model, optimizer, loader = _accelerated(problem)
    k, stream, seen = problem.window, iter(loader), [flat(model)]
    while window := list(itertools.islice(stream, k)):
        items = sum(mask.sum() for _, _, mask in window)
        for position, (x, y, mask) in enumerate(window):
            accelerator.backward(problem.losses(model, x, y)[mask].sum() * k / items)
            if position == len(window) - 1:
                optimizer.step()
                optimizer.zero_grad()
            seen.append(flat(model))
    return seen


def _objective(problem: Problem) -> Callable[..., ps.Mean]:
    def objective(model: nn.Module, batch: TensorDict) -> ps.Mean:
        return ps.mean(problem.losses(model, batch["x"], batch["y"]), where=batch["mask"])

    return objective


def purestep_accumulate(problem: Problem) -> Trajectory:
    """``train_step(accumulate=k)`` on a window at a time; a leftover is a batch like any other."""
    model, optimizer, seen = problem.model(), ps.sgd(1.0), []
    batch = TensorDict({"x": problem.x, "y": problem.y, "mask": problem.mask}, batch_size=[len(problem.x)])
    state = ps.init_state(model, optimizer, seed=0)
    seen.append(_joined(list(state.params.values())))
    for window in batch.split(problem.examples * problem.window):
        count = len(window) // problem.examples
        before = state
        state, _ = ps.train_step(model, _objective(problem), optimizer, accumulate=count)(state, window)
        for each in [before] * (count - 1) + [state]:
            seen.append(_joined(list(each.params.values())))
    return seen


def purestep_merge(problem: Problem) -> Trajectory:
    """``grad_step`` of each micro-batch as it comes, ``ps.merge``, and ``update_step`` when the window ends."""
    model, optimizer, k = problem.model(), ps.sgd(1.0), problem.window
    gradient_of, update = ps.grad_step(model, _objective(problem)), ps.update_step(optimizer)
    state, gradient, loader = ps.init_state(model, optimizer, seed=0), None, problem.loader()
    seen = [_joined(list(state.params.values()))]
    for index, (x, y, mask) in enumerate(loader, start=1):
        part = gradient_of(state, TensorDict({"x": x, "y": y, "mask": mask}, batch_size=[len(x)]))
        gradient = part if gradient is None else ps.merge(gradient, part)
        if index % k == 0 or index == len(loader):
            (state, _), gradient = update(state, gradient), None
        seen.append(_joined(list(state.params.values())))
    return seen


# What is shown, the packages it needs, and the way.
WAYS: dict[str, tuple[tuple[str, ...], Callable[[Problem], Trajectory]]] = {
    "torch, loss / k": ((), torch_loop),
    "optax.MultiSteps": (("optax", "jax"), optax_multi_steps),
    "optax.MultiSteps, tokens and windows told before": (
        ("optax", "jax"),
        lambda problem: optax_multi_steps(problem, known=True),
    ),
    "Lightning Fabric, no_backward_sync, loss / k": (("lightning-fabric",), fabric),
    "Lightning Trainer, accumulate_grad_batches": (("pytorch-lightning",), lightning_trainer),
    "accelerate, accumulate(model)": (("accelerate",), accelerate_accumulate),
    "accelerate, recipe with a token count": (("accelerate",), accelerate_counted),
    "purestep, train_step(accumulate=k)": ((), purestep_accumulate),
    "purestep, grad_step and merge": ((), purestep_merge),
}


def missing(packages: tuple[str, ...]) -> list[str]:
    """The packages that are not installed."""

    def absent(package: str) -> bool:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return True
        return False

    return [package for package in packages if absent(package)]


def judge(problem: Problem, way: Callable[[Problem], Trajectory]) -> dict[str, float]:
    """Return the relative error of the first window's update, and of what follows it the share of the right update
    (the part along it, over its length): 1 is right, 0 is no update."""
    with _quiet():
        seen = way(problem)
    k, count = problem.window, len(problem.x) // problem.examples
    right, made = -problem.gradient(seen[0], 0, k), seen[k] - seen[0]
    result = {"error": float(np.linalg.norm(made - right) / np.linalg.norm(right))}
    if count > k:
        right, made = -problem.gradient(seen[k], k, count), seen[count] - seen[k]
        result["leftover"] = float(made @ right / (right @ right))
    return result


def mean_of_six(way: Callable[[Problem], Trajectory]) -> float:
    """What a way makes of the mean of 4, 5, 6, 7, 8 and 12, which is 7."""
    with _quiet():
        seen = way(five_and_one())
    return float((seen[0] - seen[-1]).item())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Trainers greet; what they say is no result."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "accumulation.json")
    path = options.parse_args().json
    problem, rows = token_problem(), {}
    counts = problem.mask.sum(1).view(-1, EXAMPLES).sum(1).tolist()
    table = Table(title=f"Micro-batches of {', '.join(map(str, counts))} tokens, windows of {WINDOW}, float64")
    for column in ("way", "error of the update", "share of a leftover", "mean of six (7)"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, (packages, way) in WAYS.items():
        if absent := missing(packages):
            table.add_row(name, f"not installed: {', '.join(absent)}", "", "")
            continue
        row = rows[name] = {**judge(problem, way), "mean_of_six": mean_of_six(way)}
        table.add_row(name, f"{row['error']:.2g}", f"{row['leftover']:.3g}", f"{row['mean_of_six']:.12g}")
    Console(width=120).print(table)
    packages = sorted({package for needed, _ in WAYS.values() for package in needed if not missing((package,))})
    result = {
        "benchmark": "accumulation",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "purestep", *packages)},
        "settings": {"tokens": counts, "window": WINDOW, "dtype": "float64"},
        "results": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
