"""A report for the terminal: what is read first. The pages in the report's folder have the rest."""

from __future__ import annotations

from benchmarks.pages import tables
from benchmarks.pages.formatting import aligned
from benchmarks.pages.headline import verdict
from benchmarks.pages.tables import Table
from benchmarks.report import Report


def render(report: Report) -> str:
    """Every model at a glance, the loads on the server, the verdict and what must be known about it."""
    parts = [_told(tables.glance(report))]
    if report.served is not None:
        parts.append(_told(tables.served(report.served)))
    parts += [f"{'held' if gate.passed else 'FAILED'}: {gate.expression}: {gate}" for gate in report.gates]
    found = verdict(report)
    return "\n\n".join([*parts, "\n".join([found.told, *(f"the baseline: {note}" for note in found.notes)])])


def _told(table: Table) -> str:
    lines = [table.title, *aligned([list(table.head), *map(list, table.rows)], left=range(table.words)), *table.notes]
    return "\n".join(line for line in lines if line)
