"""Figures; matplotlib is imported when one is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from purestep.measure import _format


def _axes(title: str) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a figure needs matplotlib: pip install matplotlib") from error
    # Without pyplot: no window, no global state, nothing to close.
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_ratios(baseline: str, ratios: Mapping[str, tuple[float, float, float]]) -> Any:
    """Ratios to the baseline by name, ``(value, low, high)``, one line for each; gray where the interval holds 1."""
    figure, axes = _axes(f"time relative to {baseline}")
    for position, (value, low, high) in enumerate(ratios.values()):
        color = "tab:gray" if low <= 1 <= high else "tab:blue"
        axes.errorbar(value, position, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), list(ratios))
    axes.set_ylim(len(ratios) - 0.5, -0.5)
    axes.set_xlabel("ratio (below 1: faster)")
    return figure


def plot_roofline(title: str, *, flops: int, bytes_moved: int, seconds: float, peak: float, bandwidth: float) -> Any:
    """A point under the roof: FLOP/s against FLOPs for each byte. ``peak`` in FLOP/s, ``bandwidth`` in bytes/s."""
    figure, axes = _axes(title)
    intensity, reached = flops / bytes_moved, flops / seconds
    ridge = peak / bandwidth
    left, right = min(intensity, ridge) / 10, max(intensity, ridge) * 10
    axes.plot([left, ridge, right], [left * bandwidth, peak, peak], color="black", linewidth=1)
    axes.plot(intensity, reached, "o", color="tab:blue")
    share = _format.percent(reached / min(peak, intensity * bandwidth))
    axes.annotate(f"{share} of the roof", (intensity, reached), textcoords="offset points", xytext=(8, -4))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs a byte (least bytes moved)")
    axes.set_ylabel("FLOP/s")
    return figure
