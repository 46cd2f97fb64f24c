"""A report for the terminal: the most important tables. The pages in the report's folder have the rest."""

from __future__ import annotations

from benchmarks.pages import contents
from benchmarks.pages.headline import conclusion
from benchmarks.pages.table import Table
from benchmarks.report import Report
from serving.text_table import aligned


def render(report: Report) -> str:
    """Render every model at a glance, the loads on the server, the gates and the conclusion."""
    parts = [_text(table) for table in (contents.glance(report), *contents.loads(report))]
    parts += [f"{'held' if gate.passed else 'FAILED'}: {gate.expression}: {gate}" for gate in report.gates]
    found = conclusion(report)
    return "\n\n".join([*parts, "\n".join([found.text, *(f"the baseline: {note}" for note in found.notes)])])


def _text(table: Table) -> str:
    lines = [table.title, *aligned([list(table.head), *map(list, table.rows)], left=range(table.words)), *table.notes]
    return "\n".join(line for line in lines if line)
