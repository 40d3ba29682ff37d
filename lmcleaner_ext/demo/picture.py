"""The picture: what each way to forget leaves of the author, and how far it ends from the model that never met her."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .methods import Measured
from .result import DemoResult

INK, QUIET, GRID = "#1d2733", "#66717e", "#e3e7ec"
COLOURS = {
    "nothing": "#b8c0ca",
    "gradient_step": "#d98c5f",
    "default": "#2a6fb0",
    "exact": "#17406d",
    "retrained": "#4c9a6a",
}
LABELS = {
    "nothing": "nothing done",
    "gradient_step": "gradient steps\nsubtracted",
    "default": "optimizer replay\n(default)",
    "exact": "optimizer replay,\nexact curvature",
    "retrained": "retrained without\nthe author",
}
BACKING = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}  # keeps figures readable over lines
FLOOR = 1e-4  # the left end of the logarithmic axis


def draw_picture(result: DemoResult, path: Path) -> None:
    """Write a PNG of three panels: forget loss, answer probability, residual and KL ratio."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "font.size": 10,
            "font.family": "DejaVu Sans",
            "text.color": INK,
            "axes.edgecolor": GRID,
            "axes.titlesize": 10.5,
        }
    ):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11.5, 4.3), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        loss, probability, distance = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
        rows = list(result.rows)
        ideal = result["retrained"]
        _bars(loss, rows, [row.forget_loss for row in rows], "{:.2f}")
        _target(loss, ideal.forget_loss)
        loss.set_title("Loss on the answers, nats/token", loc="left")
        _bars(probability, rows, [100 * row.forget_probability for row in rows], "{:.1f} %")
        _target(probability, 100 * ideal.forget_probability)
        probability.set_title("Probability of the answers", loc="left")
        probability.set_yticklabels([])
        _distances(distance, [row for row in rows if row.key != "retrained"])
        figure.suptitle(
            f"Forgetting {result.author}: {result.forgotten_samples} of {result.training_samples} samples, "
            f"{result.uses} uses in {result.steps} AdamW steps",
            fontsize=12.5,
            fontweight="bold",
            x=0.008,
            ha="left",
        )
        figure.savefig(path, metadata={"Software": None})


def _plain(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(which="both", length=0, colors=QUIET)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=GRID, linewidth=0.8)


def _bars(axes: Any, rows: Sequence[Measured], values: Sequence[float], form: str) -> None:
    places = range(len(rows))
    axes.barh(places, values, height=0.62, color=[COLOURS[row.key] for row in rows])
    axes.set_yticks(places, [LABELS[row.key] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(values))
    for place, value in zip(places, values, strict=True):
        axes.annotate(form.format(value), (value, place), (4, 0), textcoords="offset points", va="center", bbox=BACKING)
    _plain(axes)
    axes.tick_params(axis="y", colors=INK)


def _target(axes: Any, value: float) -> None:
    axes.axvline(value, color=COLOURS["retrained"], linewidth=1.4, linestyle=(0, (4, 3)), zorder=3)


def _distances(axes: Any, rows: Sequence[Measured]) -> None:
    """Residual and KL ratio side by side; logarithmic, because a good deletion is orders of magnitude below 1."""
    places = range(len(rows))
    for offset, name, alpha in ((-0.19, "residual", 1.0), (0.19, "kl_ratio", 0.55)):
        values = [max(getattr(row, name), FLOOR) for row in rows]
        axes.barh([p + offset for p in places], values, height=0.34, color=[COLOURS[r.key] for r in rows], alpha=alpha)
        for place, value in zip(places, values, strict=True):
            text = f"{'ρ' if name == 'residual' else 'KL'} {value:.3f}" if value > FLOOR else f"KL ≤ {FLOOR:g}"
            axes.annotate(
                text, (value, place + offset), (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=BACKING
            )
    axes.set_xscale("log")
    axes.set_xlim(FLOOR, 8)
    axes.set_yticks(places, [LABELS[row.key] for row in rows])
    axes.invert_yaxis()
    axes.axvline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5)
    axes.set_title("Residual ρ and KL ratio to retraining", loc="left")
    _plain(axes)
    axes.tick_params(axis="y", colors=INK)
