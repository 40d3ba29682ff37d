"""The table of the demonstration, for a terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..installation import describe
from .methods import Measured
from .result import DemoResult

COLUMNS = (
    "forgetting by",
    "forget loss",
    "retain loss",
    "answer probability",
    "residual ρ",
    "KL ratio",
    "seconds",
    "log read",
)


def cells(row: Measured) -> list[str]:
    """One row of the table as text, in the order of COLUMNS."""
    return [
        row.title,
        f"{row.forget_loss:.3f}",
        f"{row.retain_loss:.3f}",
        f"{row.forget_probability:.3f}",
        f"{row.residual:.4f}",
        f"{row.kl_ratio:.4f}",
        "-" if row.key == "nothing" else f"{row.seconds:.2f}",
        f"{row.bytes_read / 1e6:.0f} MB" if row.bytes_read else "-",
    ]


def demo_table(result: DemoResult) -> Table:
    """The rows of `result`; our default in bold."""
    table = Table(title=Text(headline(result)), title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in result.rows:
        table.add_row(*cells(row), style="bold" if row.key == "default" else None)
    return table


def markdown(result: DemoResult) -> str:
    """The table for a README or an issue, with what it was measured on."""
    rule = ["---", *["---:"] * (len(COLUMNS) - 1)]
    lines = ["| " + " | ".join(line) + " |" for line in (COLUMNS, rule, *map(cells, result.rows))]
    measured = f"{headline(result)}; {result.total_seconds:.0f} s in all. Measured on {describe(result.environment)}."
    return "\n".join([*lines, "", measured, ""])


def headline(result: DemoResult) -> str:
    return (
        f"Forgetting {result.author}: {result.forgotten_samples} of {result.training_samples} samples, "
        f"{result.uses} uses in {result.steps} AdamW steps, {result.parameters / 1e6:.2f} M parameters"
    )
