"""A report as one self-contained page of HTML, to read on a phone, to print, to keep."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from benchmarks.pages import tables
from benchmarks.pages.conditions import conditions, machine, method
from benchmarks.pages.drawing import Plot
from benchmarks.pages.formatting import answer, clipped, number
from benchmarks.pages.headline import conclusion, keys
from benchmarks.pages.plots import plots
from benchmarks.pages.tables import Table
from benchmarks.report import Report

TEMPLATE = "report.html.jinja"
MOST_SHOWN, MOST_TEXT = 160, 4000
"""Characters of a text that are shown, folded and unfolded."""


def render(report: Report) -> str:
    """Render the page. A report without samples has no distributions of latencies."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = plots(report)
    return environment.get_template(TEMPLATE).render(
        report=report,
        conclusion=conclusion(report),
        keys=keys(report),
        results=[table for table in (tables.gates(report), tables.regressions(report)) if table.rows],
        glance=tables.glance(report),
        plots=[plot for plot in drawn if plot.svg],
        missing=[plot for plot in drawn if not plot.svg],
        details=list(tables.details(report)),
        changed=tables.changed_answers(report),
        machine=machine(report),
        method=method(report),
        conditions=conditions(report),
        svg=_svg,
        words=_is_words,
        number=number,
        answer=answer,
        clipped=clipped,
        most_shown=MOST_SHOWN,
        most_text=MOST_TEXT,
    ) + "\n"  # fmt: skip


def _svg(plot: Plot) -> Markup:
    """The drawing is markup made here; its title and description are escaped."""
    label = Markup('<svg role="img" aria-label="{}"').format(f"{plot.title}. {plot.description}")
    return label + Markup(plot.svg.removeprefix("<svg"))  # noqa: S704 - matplotlib escapes the texts in it


def _is_words(table: Table, column: int) -> bool:
    return column < table.words
