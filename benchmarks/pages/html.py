"""A report as one self-contained page of HTML, to read on a phone, to print, to keep."""

from __future__ import annotations

from pathlib import Path

import jinja2

from benchmarks.pages import contents, tables
from benchmarks.pages.conditions import conditions, machine, method
from benchmarks.pages.formatting import answer, clipped, number
from benchmarks.pages.headline import conclusion
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
    drawn = contents.plots(report)
    return environment.get_template(TEMPLATE).render(
        report=report,
        conclusion=conclusion(report),
        keys=contents.keys(report),
        results=[table for table in (tables.gates(report), tables.regressions(report)) if table.rows],
        glance=contents.glance(report),
        plots=[plot for plot in drawn if plot.svg],
        missing=[plot for plot in drawn if not plot.svg],
        details=list(contents.details(report)),
        changed=tables.changed_answers(report),
        machine=machine(report),
        method=method(report),
        conditions=conditions(report),
        number=number,
        answer=answer,
        clipped=clipped,
        most_shown=MOST_SHOWN,
        most_text=MOST_TEXT,
    ) + "\n"  # fmt: skip
