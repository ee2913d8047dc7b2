"""Draw the curves of docs/schedules.md into docs/schedules/*.svg.

python docs/draw_schedules.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

import purestep.schedules as ps
from purestep.schedules import Schedule

FOLDER = Path(__file__).parent / "schedules"
STEPS = 100

# Of each figure: its panels, and of each panel the curves by what tells them apart.
FIGURES: dict[str, dict[str, dict[str, Schedule]]] = {
    "one_phase": {
        "constant": {"": ps.constant(0.5)},
        "linear": {"": ps.linear(1.0, 0.2, 80)},
        "polynomial": {
            "power=0.5": ps.polynomial(1.0, 80, power=0.5),
            "power=3": ps.polynomial(1.0, 80, power=3),
            "k_decay=3": ps.polynomial(1.0, 80, k_decay=3),
        },
        "cosine": {
            "": ps.cosine(1.0, 80),
            "power=3": ps.cosine(1.0, 80, power=3),
            "floor=0.2": ps.cosine(1.0, 80, floor=0.2),
        },
    },
    "decays": {
        "exponential": {
            "": ps.exponential(1.0, 0.5, every=20),
            "staircase": ps.exponential(1.0, 0.5, every=20, staircase=True),
            "floor=0.3": ps.exponential(1.0, 0.5, every=20, floor=0.3),
        },
        "step_decay": {"rate=0.5": ps.step_decay(1.0, 25, rate=0.5)},
        "tanh_decay": {"": ps.tanh_decay(1.0, 80)},
        "sigmoid_decay": {"": ps.sigmoid_decay(1.0, 80), "steepness=30": ps.sigmoid_decay(1.0, 80, steepness=30)},
        "one_minus_sqrt": {"": ps.one_minus_sqrt(1.0, 80)},
    },
    "pieces": {
        "piecewise_constant": {"": ps.piecewise_constant([0.3, 1.0, 0.1], [20, 70])},
        "piecewise_interpolate": {
            "": ps.piecewise_interpolate([0.3, 1.0, 0.1], [20, 70]),
            "cosine": ps.piecewise_interpolate([0.3, 1.0, 0.1], [20, 70], kind="cosine"),
        },
        "multi_step": {"rate=0.5": ps.multi_step(1.0, [20, 70, 85], rate=0.5)},
        "multiplicative": {"": ps.multiplicative(1.0, [1 - 1 / (t + 10) for t in range(1, 80)])},
    },
    "cycles": {
        "warm_restarts": {
            "multiplier=2": ps.warm_restarts(1.0, 14, multiplier=2),
            "decay=0.6, cycles=3": ps.warm_restarts(1.0, 25, decay=0.6, cycles=3),
        },
        "one_cycle": {
            "": ps.one_cycle(1.0, 90),
            "linear, three_phase": ps.one_cycle(1.0, 90, anneal="linear", three_phase=True, start_divisor=5.0),
        },
        "one_cycle_momentum": {"": ps.one_cycle_momentum(0.85, 0.95, 90)},
        "cyclic": {
            "": ps.cyclic(0.1, 1.0, 10, down_steps=20),
            "triangular2": ps.cyclic(0.1, 1.0, 10, down_steps=20, mode="triangular2"),
            "exp_range": ps.cyclic(0.1, 1.0, 10, down_steps=20, mode="exp_range", gamma=0.97),
        },
        "cyclic_momentum": {"": ps.cyclic_momentum(0.85, 0.95, 10, down_steps=20)},
    },
    "warmups": {
        "warmup": {
            kind: ps.warmup(ps.cosine(1.0, 70), 30, initial=0.05, kind=kind)  # type: ignore[arg-type]
            for kind in ("linear", "exponential", "constant", "cosine")
        },
        "warmup_constant": {"": ps.warmup_constant(1.0, 30)},
        "warmup_linear": {"": ps.warmup_linear(1.0, 30, 90)},
        "warmup_cosine": {"": ps.warmup_cosine(1.0, 30, 90)},
        "warmup_exponential": {"": ps.warmup_exponential(1.0, 30, 0.5, every=20)},
        "resnet_warmup": {"": ps.resnet_warmup(1.0, 30, warm=0.1)},
    },
    "phases": {
        "noam": {"": ps.noam(512, 30)},
        "inverse_sqrt": {"": ps.inverse_sqrt(1.0, 30), "timescale=5": ps.inverse_sqrt(1.0, 30, timescale=5)},
        "wsd": {
            decay: ps.wsd(1.0, 20, 35, 40, decay=decay)  # type: ignore[arg-type]
            for decay in ("linear", "cosine", "one_minus_sqrt")
        },
        "tri_stage": {"": ps.tri_stage(1.0, 20, 25, 45)},
        "swa_anneal": {"": ps.swa_anneal(ps.cosine(1.0, 200), 0.4, 50, 30)},
    },
    "functions": {
        "function": {"": ps.function(lambda step: 1 / (1 + step / 20))},
        "noise": {
            "normal": ps.noise(ps.cosine(1.0, 90), 7, scale=0.3, spread=0.15),
            "uniform": ps.noise(ps.constant(0.4), 8, scale=0.3, kind="uniform", start=20, stop=80),
        },
    },
}


def draw(panels: dict[str, dict[str, Schedule]]) -> plt.Figure:
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.0 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (name, curves) in zip(axes.flat, panels.items(), strict=False):
        for label, schedule in curves.items():
            schedule.plot(STEPS, ax=ax, label=label or "defaults", linewidth=1.2)
        ax.set_title(name, fontsize="small", family="monospace")
        ax.tick_params(labelsize="x-small")
        ax.margins(x=0.01)
        if legend := ax.get_legend():
            legend.remove()
        if len(curves) > 1:
            ax.legend(fontsize="x-small", frameon=False)
    return figure


def main() -> None:
    matplotlib.use("svg")
    # The same file whenever it is drawn, and text as text, which a browser sets.
    plt.rcParams.update({"svg.hashsalt": "purestep", "svg.fonttype": "none"})
    FOLDER.mkdir(exist_ok=True)
    for name, panels in FIGURES.items():
        figure = draw(panels)
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
