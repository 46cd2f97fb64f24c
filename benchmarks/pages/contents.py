"""What the pages show of a report, by the kind of its model."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.pages import generation_plots, generation_tables, headline, tables
from benchmarks.pages import plots as encoder_plots
from benchmarks.pages.drawing import Plot
from benchmarks.pages.headline import Key
from benchmarks.pages.table import Table
from benchmarks.report import Report


def glance(report: Report) -> Table:
    """Tabulate every model in one row."""
    return generation_tables.glance(report) if report.generates else tables.glance(report)


def loads(report: Report) -> list[Table]:
    """Tabulate the loads on the server; nothing without a server."""
    if report.served is None:
        return []
    if report.generates:
        return [generation_tables.served(report, report.served), generation_tables.serving_cost(report)]
    return [tables.served(report.served)]


def details(report: Report) -> Iterator[Table]:
    """Yield the tables of everything that was measured."""
    yield from generation_tables.details(report) if report.generates else tables.details(report)


def keys(report: Report) -> list[Key]:
    """List the key figures."""
    return generation_tables.keys(report) if report.generates else headline.keys(report)


def plots(report: Report) -> list[Plot]:
    """Draw every plot of the page."""
    return generation_plots.plots(report) if report.generates else encoder_plots.plots(report)
