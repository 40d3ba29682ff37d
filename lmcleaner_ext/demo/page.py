"""One self-contained HTML page: table, picture, answers, audit record, and what it was measured on."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from string import Template

from ..installation import describe
from .result import DemoResult
from .table import COLUMNS, cells

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Forgetting $author</title>
<style>
  :root { --ink: #1d2733; --quiet: #5d6875; --line: #e1e6eb; --paper: #fff; --tint: #f4f7fa; --accent: #2a6fb0; }
  * { box-sizing: border-box }
  body { margin: 0; background: var(--tint); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
  main { max-width: 1160px; margin: 0 auto; padding: 40px 32px 56px; background: var(--paper); min-height: 100vh }
  h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px } h2 { font-size: 19px; margin: 40px 0 10px }
  p { max-width: 76ch; margin: 8px 0 } .quiet { color: var(--quiet); font-size: 14px }
  .scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
  th, td { padding: 8px 12px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
  th { font-weight: 600; font-size: 13px; color: var(--quiet); white-space: nowrap }
  th:first-child, td:first-child, .answers th, .answers td { text-align: left }
  td { white-space: nowrap } .answers td { white-space: normal }
  tr.default td { font-weight: 650; background: #eef4fa } tr.default td:first-child { box-shadow: inset 3px 0 var(--accent) }
  .answers td { font-size: 14.5px } .answers td:first-child { width: 24% }
  img { width: 100%; height: auto; margin-top: 8px }
  pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: 14px; overflow-x: auto; font-size: 13px }
  summary { cursor: pointer; color: var(--accent) }
</style>
</head>
<body><main>
<h1>A language model forgets $author</h1>
<p>A Llama with $parameters parameters was fine-tuned on $samples question-answer pairs about fictitious authors while every
optimizer step was logged. Then the $forgotten pairs about $author were removed from its weights, without training
anything again. Retraining without them shows what the result should have been.</p>
<div class="scroll"><table><thead><tr>$header</tr></thead><tbody>
$rows
</tbody></table></div>
<p class="quiet">Losses in nats per token. Residual ρ: distance to the retrained parameters, as a share of the trained model's distance.
KL ratio: the same for the predictions on the forgotten answers.
In both, 1 means nothing was achieved and 0 that the retrained model was met exactly.
Seconds of optimizer replay include recomputing the gradients of the forgotten samples, which the log did not keep.</p>
<img alt="Loss, answer probability, residual and KL ratio of each method" src="data:image/png;base64,$picture">
<h2>What the models answer</h2>
<div class="scroll"><table class="answers">
<thead><tr><th>Question</th><th>In the training data</th><th>Trained</th>
<th>After forgetting</th><th>Retrained</th></tr></thead><tbody>
$answers
</tbody></table></div>
<p class="quiet">Greedy decoding. All models were pretrained on other fictitious authors, so the style of an answer survives;
what should go is what only the forgotten samples taught.</p>
<h2>Audit record of the deletion</h2>
<details><summary>show the record</summary><pre>$audit</pre></details>
<h2>Measured on</h2>
<p class="quiet">$environment. Seed $seed. Training with the log took $training s, the whole demonstration $total s.</p>
</main></body></html>
""")


def write_page(result: DemoResult, path: Path) -> None:
    """Write the page; it needs no other file and no network."""
    rows = "\n".join(
        f'<tr class="{row.key}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells(row)) + "</tr>"
        for row in result.rows
    )
    answers = "\n".join(
        "<tr>"
        + "".join(f"<td>{escape(text)}</td>" for text in (a.question, a.truth, a.trained, a.forgotten, a.retrained))
        + "</tr>"
        for a in result.answers
    )
    page = PAGE.substitute(
        author=escape(result.author),
        parameters=f"{result.parameters:,}",
        samples=result.training_samples,
        forgotten=result.forgotten_samples,
        header="".join(f"<th>{escape(column)}</th>" for column in COLUMNS),
        rows=rows,
        answers=answers,
        picture=base64.b64encode(result.picture.read_bytes()).decode(),
        audit=escape(json.dumps(result.audit, indent=2)),
        environment=escape(describe(result.environment)),
        seed=result.settings.seed,
        training=f"{result.training_seconds:.1f}",
        total=f"{result.total_seconds:.0f}",
    )
    path.write_text(page, encoding="utf-8")
