"""The plots of a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import cycle

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from benchmarks.measurements import InProcess, Load, Quality
from benchmarks.pages.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAGE,
    PURPLE,
    SERIES,
    SKY,
    VERMILION,
    Plot,
    doubling,
    drawn,
    logarithmic,
)
from benchmarks.pages.growth import Growth, growths
from benchmarks.pages.headline import original
from benchmarks.report import Report
from benchmarks.samples import Samples

PROTOCOLS = {"grpc": ("gRPC", BLUE, "o", "-"), "http": ("HTTP", VERMILION, "s", "--")}
MANY_CLIENTS = 16
"""Clients of the busy server whose latencies are drawn beside those of one client; the nearest measured number is used."""
BUSY_SHARE = 0.8
PARTS = {
    "client": (GREY, ""),
    "network": (SKY, ".."),
    "queue": (ORANGE, "//"),
    "preprocess": (GREEN, ""),
    "model": (BLUE, ""),
    "postprocess": (PURPLE, "\\\\"),
    "ensemble": (VERMILION, "xx"),
}
AXES = {
    "batch": ("rows per call", "Rows per call", "Where a line goes flat, larger batches only make callers wait."),
    "length": ("tokens per row", "Length of rows", "Twice the tokens cost more than twice the time where attention outweighs the "
               "rest: it grows with the square."),
    "concurrency": ("clients", "Clients", "Past the top of the curve more clients only wait longer, or even slow each other down."),
}  # fmt: skip


def plots(report: Report) -> list[Plot]:
    """Draw every plot of the page; a plot without data has the reason instead."""
    found = growths(report)
    return [
        _latency_against_throughput(report),
        _quality_against_speed(report),
        _latencies(report),
        _time_split(report),
        *(_growth(axis, [growth for growth in found if growth.axis == axis], _looks(report)) for axis in AXES),
    ]


def _shown(report: Report) -> list[InProcess]:
    """The models that the served one is compared with: the original, the fastest ONNX file, and the pipeline."""
    first = original(report)
    onnx = [model for model in report.in_process if model.kind in ("onnx", "tensorrt")]
    best = [max(onnx, key=lambda model: model.best.speed.throughput)] if onnx else []
    return [*([first] if first else []), *best, *(model for model in report.in_process if model.kind == "pipeline")]


def _loads(report: Report) -> list[Load]:
    """Loads on rows as they are."""
    return [load for load in report.served.loads if load.length is None] if report.served is not None else []


def _looks(report: Report) -> dict[str, tuple[str, str]]:
    """Colour and marker of every model, the same in all plots."""
    names = [model.name for model in (*_shown(report), *report.in_process)]
    looks = dict(zip(dict.fromkeys(names), cycle(SERIES)))
    return looks | ({report.served.name: PROTOCOLS["grpc"][1:3]} if report.served is not None else {})


def _latency_against_throughput(report: Report) -> Plot:
    name, title = "latency-throughput", "Latency against throughput"
    loads = _loads(report)
    if not loads:
        return Plot(name=name, title=title, missing="nothing was served")
    best = max((load for load in loads if load.concurrency), key=lambda load: load.speed.throughput, default=loads[0])
    plot = Plot(
        name=name,
        title=title,
        description=f"The served model answers up to {best.speed.throughput:.0f} rows a second, at a median latency of "
        f"{best.speed.p50_ms:.1f} ms ({best.name}).",
        caption="Right is more rows per second, down is quicker. Lines: the server with as many clients as the numbers say, each "
        "waiting for its answer; thin lines reach to the 99th percentile. Hollow: requests at random moments, as users send them. "
        "Where a line turns upwards the server is full. In process a call carries up to a whole batch.",
    )
    every = [load.speed for load in loads]
    with drawn(plot, 3.7, "rows/s", "p50 ms of a call, up to p99") as ax:
        for index, protocol in enumerate(dict.fromkeys(load.protocol for load in loads)):
            _sweep(ax, protocol, [load for load in loads if load.protocol == protocol], above=index % 2 == 1)
        for model in _shown(report):
            colour, marker = _looks(report)[model.name]
            speeds = [one.speed for one in model.on_real_rows]
            ax.scatter([one.throughput for one in speeds], [one.p50_ms for one in speeds], s=26, color=colour, marker=marker,
                       label=f"{model.name}, in process", zorder=2)  # fmt: skip
            every += speeds
        logarithmic(ax, "x", [speed.throughput for speed in every])
        logarithmic(ax, "y", [speed.p50_ms for speed in every])
    return plot


def _sweep(ax: Axes, protocol: str, loads: list[Load], *, above: bool) -> None:
    label, colour, marker, style = PROTOCOLS[protocol]
    closed = sorted((load for load in loads if load.concurrency), key=lambda load: load.concurrency or 0)
    opened = [load for load in loads if not load.concurrency]
    for some, line, filled, how in ((closed, style, colour, "closed loop"), (opened, "", "none", "open loop")):
        if not some:
            continue
        x, p50 = [load.speed.throughput for load in some], [load.speed.p50_ms for load in some]
        tail = np.array([[0.0, load.speed.p99_ms - load.speed.p50_ms] for load in some]).T
        ax.errorbar(x, p50, yerr=tail, linestyle=line, color=colour, marker=marker, mfc=filled, elinewidth=0.7, zorder=3,
                    label=f"{label}, {how}")  # fmt: skip
    for load in closed:
        ax.annotate(f"{load.concurrency}", (load.speed.throughput, load.speed.p50_ms), textcoords="offset points",
                    xytext=(-6, 4) if above else (6, -4), ha="right" if above else "left", va="bottom" if above else "top",
                    color=INK, fontsize=8.5)  # fmt: skip


def _quality_against_speed(report: Report) -> Plot:
    name, title, metric = "quality-speed", "Quality against throughput", report.main_metric
    evaluated = list(_evaluated(report))
    if not evaluated:
        return Plot(name=name, title=title, missing=f"no answers were evaluated by {metric}")
    without = [model.name for model in report.in_process if metric not in model.quality.metrics]
    plot = Plot(
        name=name,
        title=title,
        description="; ".join(f"{label}: {one.metrics[metric]:.4f} at {rate:.0f} rows/s" for label, rate, one in evaluated),
        caption="Right is faster, up is better; bars are 95 % intervals over the rows where there are any, the dotted line is the "
        "original. Bars overlap more than the variants differ, as all answer the same rows: go by the drop and its own interval."
        + (f" Left out, as it tells no {metric}: {', '.join(without)}." if without else ""),
    )
    with drawn(plot, 3.2, "rows/s at best", metric) as ax:
        for label, throughput, quality in evaluated:
            colour, marker = _looks(report)[label]
            value, main = quality.metrics[metric], quality.main
            interval = None if main is None else np.array([[value - main.low], [main.high - value]]).clip(min=0)
            ax.errorbar([throughput], [value], yerr=interval, linestyle="", color=colour, marker=marker, elinewidth=1.0, capsize=2,
                        label=label, ms=7)  # fmt: skip
        first = original(report)
        if first is not None and metric in first.quality.metrics:
            ax.axhline(first.quality.metrics[metric], color=INK, linewidth=0.8, linestyle=":")
        logarithmic(ax, "x", [throughput for _, throughput, _ in evaluated])
        ax.margins(x=0.08)
    return plot


def _evaluated(report: Report) -> Iterator[tuple[str, float, Quality]]:
    for model in report.in_process:
        if report.main_metric in model.quality.metrics:
            yield model.name, model.best.speed.throughput, model.quality
    closed = [load.speed.throughput for load in _loads(report) if load.concurrency]
    if report.served is not None and closed and report.main_metric in report.served.quality.metrics:
        yield report.served.name, max(closed), report.served.quality


def _latencies(report: Report) -> Plot:
    name, title = "latencies", "Distribution of latencies"
    found = {figure: took for figure in _answering(report) if (took := _took(report.samples, figure)).size}
    if not found:
        return Plot(name=name, title=title, missing="the report came without its samples")
    described = (f"{label}: half within {np.median(took):.1f} ms, 99 % within {np.quantile(took, 0.99):.1f} ms"
                 for label, took in found.items())  # fmt: skip
    plot = Plot(
        name=name,
        title=title,
        description="; ".join(described),
        caption="The further left and the steeper, the better. A tail to the right is the wait of a few callers; "
        "a step means two kinds of calls, such as those that waited behind another in the queue.",
    )
    with drawn(plot, 3.1, "ms per call", "% of calls answered by then") as ax:
        for (label, took), (colour, _), style in zip(found.items(), cycle(SERIES), cycle(("-", "--", "-.", ":")), strict=False):
            shares = np.concatenate([np.linspace(0, 0.99, 100), np.linspace(0.991, 1, 10)])
            ax.plot(np.quantile(took, shares), 100 * shares, color=colour, linestyle=style, label=label)
        ax.set_yticks((0, 25, 50, 75, 90, 99))
        logarithmic(ax, "x", [float(np.quantile(took, share)) for took in found.values() for share in (0, 1)])
    return plot


def _answering(report: Report) -> list[str]:
    """Names of the arrangements and loads whose latencies are compared."""
    found = [f"{model.name}.{model.quickest.name}" for model in _shown(report)]
    if report.served is None:
        return found
    loads = [load for load in _loads(report) if load.protocol == _loads(report)[0].protocol]
    closed = sorted((load for load in loads if load.concurrency), key=lambda load: load.concurrency or 0)
    chosen = closed[:1]
    if closed:
        chosen.append(min(closed, key=lambda load: abs((load.concurrency or 0) - MANY_CLIENTS)))
    if opened := [load for load in loads if load.share is not None]:
        chosen.append(min(opened, key=lambda load: abs((load.share or 0) - BUSY_SHARE)))
    return found + [f"{report.served.name}.{name}" for name in dict.fromkeys(load.name for load in chosen)]


def _took(samples: Samples, figure: str) -> npt.NDArray[np.float64]:
    """Durations of the calls of all rounds and processes, ms."""
    own = [spans["took_us"] for key, spans in samples.items() if key.startswith(f"{figure}.r")]
    return np.concatenate(own) / 1e3 if own else np.empty(0)


def _time_split(report: Report) -> Plot:
    name, title = "time-split", "Where the time of a request goes"
    splits = {load.name: load.split for load in _loads(report) if load.split is not None}
    if not splits:
        return Plot(name=name, title=title, missing="nothing was served")
    shares = {name: {part: 100 * value / one.total for part, value in asdict(one).items()} for name, one in splits.items()}
    plot = Plot(
        name=name,
        title=title,
        description="; ".join(f"{name}: {one['model']:.0f} % model, {one['queue']:.0f} % queue" for name, one in shares.items()),
        caption="One bar for each load: c16 is 16 clients, load80 is 80 % of what the server can do, at random moments. "
        "Long queues call for more instances or fewer clients; with long pre- and postprocessing, a faster model does not help.",
    )
    with drawn(plot, 0.8 + 0.23 * len(splits), "% of the mean latency, which stands at the right", columns=4) as ax:
        left = np.zeros(len(splits))
        for part, (colour, hatch) in PARTS.items():
            width = np.array([share[part] for share in shares.values()])
            ax.barh(range(len(splits)), width, left=left, height=0.78, color=colour, hatch=hatch, edgecolor=PAGE, linewidth=0.6,
                    label=part)  # fmt: skip
            left += width
        for index, one in enumerate(splits.values()):
            ax.annotate(f"{one.total / 1e3:.1f} ms", (100, index), textcoords="offset points", xytext=(4, 0), va="center",
                        color=INK, fontsize=8.5, annotation_clip=False)  # fmt: skip
        ax.set_yticks(range(len(splits)), list(shares))
        ax.invert_yaxis()
        ax.set_xlim(0, 100)
        ax.grid(visible=False)
        ax.tick_params(axis="y", length=0)
    return plot


def _growth(axis: str, found: list[Growth], looks: Mapping[str, tuple[str, str]]) -> Plot:
    label, title, caption = AXES[axis]
    name = f"growth-{axis}"
    if not found:
        return Plot(name=name, title=title, missing=f"no speed was measured at two or more {label}")
    fits = "; ".join(f"{growth.name}, {growth.way}: {growth.fit.formula}" for growth in found if growth.fit is not None)
    plot = Plot(name=name, title=f"{title}: rows per second", description=fits or "No law could be fitted.",
                caption=f"{caption} Dashed: the fitted law; bars: slowest and fastest round.")  # fmt: skip
    with drawn(plot, 3.1, label, "rows/s") as ax:
        for growth in found:
            alone = sum(other.name == growth.name for other in found) == 1 and not growth.name.startswith("served")
            look = PROTOCOLS[growth.way][1:3] if axis == "concurrency" else looks[growth.name]
            _points(ax, growth, *look, growth.name if alone else f"{growth.name}, {growth.way}")
        doubling(ax, [point.x for growth in found for point in growth.points])
        if axis == "concurrency":
            ax.set_ylim(bottom=0)
        else:
            logarithmic(ax, "y", [end for growth in found for point in growth.points for end in (point.low, point.high)])
    return plot


def _points(ax: Axes, growth: Growth, colour: str, marker: str, label: str) -> None:
    x = np.array([float(point.x) for point in growth.points])
    y = np.array([point.throughput for point in growth.points])
    ends = [y - [point.low for point in growth.points], np.array([point.high for point in growth.points]) - y]
    ax.errorbar(x, y, yerr=np.clip(ends, 0, None), linestyle="" if growth.fit else ":", color=colour, marker=marker, elinewidth=0.8,
                label=label)  # fmt: skip
    if growth.fit is not None:
        between = np.geomspace(x[0], x[-1], 60)
        ax.plot(between, growth.fitted(between), linestyle="--", linewidth=1.1, color=colour)
