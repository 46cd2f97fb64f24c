"""A report as one page of HTML that needs nothing beside it: to be read on a phone, printed, kept."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from benchmarks.pages import tables
from benchmarks.pages.conditions import conditions, machine, method
from benchmarks.pages.drawing import Plot
from benchmarks.pages.formatting import answer, clipped, number
from benchmarks.pages.headline import keys, verdict
from benchmarks.pages.plots import plots
from benchmarks.pages.tables import Table
from benchmarks.report import Report
from benchmarks.samples import Samples

TEMPLATE = "report.html.jinja"
MOST_SHOWN, MOST_TEXT = 160, 4000
"""Characters of a text that are shown at once, and when it is unfolded."""


def render(report: Report, samples: Samples) -> str:
    """The whole page. Without ``samples`` it has no distributions of latencies."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = plots(report, samples)
    return environment.get_template(TEMPLATE).render(
        report=report,
        verdict=verdict(report),
        keys=keys(report),
        judged=[table for table in (tables.gates(report), tables.regressions(report)) if table.rows],
        glance=tables.glance(report),
        plots=[plot for plot in drawn if plot.svg],
        missing=[plot for plot in drawn if not plot.svg],
        details=list(tables.details(report)),
        moved=tables.moved(report),
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
    """What is drawn is markup, made here; what it is called is not."""
    label = Markup('<svg role="img" aria-label="{}"').format(f"{plot.title}. {plot.told}")
    return label + Markup(plot.svg.removeprefix("<svg"))  # noqa: S704 - matplotlib escapes the texts in it


def _is_words(table: Table, column: int) -> bool:
    return column < table.words
