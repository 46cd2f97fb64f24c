"""Drawing: what all plots have in common, and a figure as an SVG that takes its colours and letters from the page it stands in."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

INK, FAINT, PAGE = "#010203", "#040506", "#070809"
"""Stand for the page's colours of text, grid and background: no series is drawn in them."""
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
"""What becomes of each colour; the series' are those of Okabe and Ito, which the colour-blind can tell apart."""
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = list(COLOURS)[3:]
SERIES = tuple(zip((INK, GREEN, ORANGE, PURPLE, SKY, GREY, VERMILION, BLUE) * 2, "*^vDPXspo<>dhH8p", strict=True))
"""Colour and marker of each series: either alone tells the first of them apart."""

WIDTH = 4.6
"""Inches; on a screen 360 pixels wide a point of a letter is then a pixel."""
LINE = 0.17
"""Of a legend, inches."""
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


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot of the page.

    Args:
        name: of the place it has in the page.
        description: what is drawn, for those who cannot see it.
        caption: what to look for.
        svg: an ``svg`` element; empty where it was not drawn.
        missing: why it was not drawn; empty where it was.
    """

    name: str
    title: str
    description: str = ""
    caption: str = ""
    svg: str = ""
    missing: str = ""


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """Figures made and saved in the block look like each other, and the same each time they are drawn."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        yield


def axes(height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, ``height`` inches high with all that is written beside them."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def legend(figure: Figure, *, columns: int = 2) -> None:
    """A legend below everything, where it hides nothing, in as many of ``columns`` as there is room for."""
    names = {label for drawn in figure.axes for label in drawn.get_legend_handles_labels()[1]}
    for count in range(columns, 0, -1):
        found = figure.legend(loc="outside lower center", ncols=count)
        if count == 1 or found.get_window_extent().width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + LINE * math.ceil(len(names) / count))
            return
        found.remove()


def logarithmic(axes: Axes, which: str, values: Sequence[float]) -> None:
    """Make the axis ``which`` (``x``, ``y``) logarithmic, its numbers written out and few enough to be read."""
    axes.set(**{f"{which}scale": "log"})
    shown = [value for value in values if value > 0]  # others have no place on it
    ratio = max(shown) / min(shown) if shown else 1.0
    steps = (1.0,) if ratio > 1000 else (1.0, 2.0, 5.0) if ratio > 4 else (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(base=10, subs=steps))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


def doubling(axes: Axes, values: Iterable[int]) -> None:
    """An x axis on which twice as much is a step, its ticks where something was measured and nowhere else."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _: Any) -> str:
    return f"{value:g}"


def as_svg(figure: Figure, name: str) -> str:
    """``figure`` as an ``svg`` element without anything from outside, its ids beginning with ``name``."""
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
