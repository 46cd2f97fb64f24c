"""Common style of all plots, and conversion of a figure into an SVG that takes colours and fonts from its page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

INK, FAINT, PAGE = "#010203", "#040506", "#070809"
"""Placeholders for the page's colours of text, grid and background; no series has them."""
COLOURS = {
    INK: "currentColor",
    FAINT: "var(--grid, #bbb)",
    PAGE: "var(--page, #fff)",
    "#0072b2": "var(--blue, #0072b2)",
    "#d55e00": "var(--vermilion, #d55e00)",
    "#009e73": "var(--green, #009e73)",
    "#cc79a7": "var(--purple, #cc79a7)",
    "#e69f00": "var(--orange, #e69f00)",
    "#56b4e9": "var(--sky, #56b4e9)",
    "#7f7f7f": "var(--grey, #7f7f7f)",
}
"""Replacement of each colour. The colours of series are Okabe and Ito's, which are distinguishable with colour blindness."""
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = list(COLOURS)[3:]
SERIES = tuple(zip((INK, GREEN, ORANGE, PURPLE, SKY, GREY, VERMILION, BLUE) * 2, "*^vDPXspo<>dhH8p", strict=True))
"""Colour and marker of each series; each of the two alone distinguishes the first ones."""

WIDTH = 4.6
"""Inches; on a screen of 360 pixels a typographic point is then one pixel."""
LINE = 0.17
"""Height of a line of a legend, inches."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "hatch.color": PAGE,
    "hatch.linewidth": 0.8,
    "lines.markersize": 5.5,
    "lines.linewidth": 1.6,
    "path.simplify": False,
    "text.parse_math": False,
}


@dataclass(kw_only=True)
class Plot:
    """A plot of the page.

    Attributes:
        description: Text for readers who cannot see the plot.
        missing: Why it was not drawn; empty if it was.
        svg: An ``svg`` element; empty if the plot was not drawn.
    """

    name: str
    title: str
    description: str = ""
    caption: str = ""
    missing: str = ""
    svg: str = field(default="", init=False)


@contextmanager
def drawn(plot: Plot, height: float, xlabel: str, ylabel: str = "", *, columns: int = 2) -> Iterator[Axes]:
    """Draw a plot on one pair of axes, ``height`` inches high without the legend, and give it its reproducible SVG."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": plot.name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        yield axes
        axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend(figure, columns)
        plot.svg = _as_svg(figure, plot.name)


def _legend(figure: Figure, columns: int) -> None:
    """Draw a legend below everything, in as many of ``columns`` as fit; none if nothing has a label."""
    names = {label for drawn in figure.axes for label in drawn.get_legend_handles_labels()[1]}
    if not names:
        return
    for count in range(columns, 0, -1):
        found = figure.legend(loc="outside lower center", ncols=count)
        if count == 1 or found.get_window_extent().width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + LINE * math.ceil(len(names) / count))
            return
        found.remove()


def logarithmic(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Make the axis ``which`` (``x``, ``y``) logarithmic with few, plain numbers."""
    axes.set(**{f"{which}scale": "log"})
    shown = [value for value in values if value > 0]  # others have no place on it
    ratio = max(shown) / min(shown) if shown else 1.0
    steps = (1.0,) if ratio > 1000 else (1.0, 2.0, 5.0) if ratio > 4 else (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def doubling(axes: Axes, values: Iterable[int]) -> None:
    """Make the x axis logarithmic to base 2 with ticks at the measured values."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: Any) -> str:
    return f"{value:g}"


def _as_svg(figure: Figure, name: str) -> str:
    """Convert a figure into a self-contained ``svg`` element whose ids begin with ``name``."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = file.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    size = re.search(r'viewBox="[^"]*"', drawn)
    assert size is not None  # matplotlib writes one into every file
    drawn = f"<svg {size.group()}" + drawn[drawn.index(">") :]
    drawn = re.sub(r"<style.*?</style>", "", drawn, count=1, flags=re.DOTALL)  # it would style the whole page
    drawn = drawn.replace("xlink:href=", "href=")
    drawn = re.sub(r'id="', f'id="{name}-', drawn)
    drawn = re.sub(r'href="#', f'href="#{name}-', drawn)
    drawn = re.sub(r"url\(#", f"url(#{name}-", drawn)
    drawn = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", drawn)
    for colour, own in COLOURS.items():
        drawn = drawn.replace(colour, own)
    return drawn.strip()
