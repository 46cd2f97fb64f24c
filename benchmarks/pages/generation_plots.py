"""The plots of a report about a model that generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from benchmarks.measurements import Arrangement, Load
from benchmarks.pages.drawing import SERIES, Plot, doubling, drawn, logarithmic
from benchmarks.pages.formatting import rate
from benchmarks.pages.generation_tables import IN_PROCESS, engine_of, token_speed
from benchmarks.pages.plots import PROTOCOLS
from benchmarks.report import Report

Timed = Arrangement | Load
Percentiles = Callable[[Timed], tuple[float, float]]
"""The median and the 99th percentile of a wait, ms."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Speeds that differ in one thing, ``x``.

    Attributes:
        look: Colour, marker and line.
    """

    label: str
    look: tuple[str, str, str]
    points: list[tuple[int, Timed]]


def plots(report: Report) -> list[Plot]:
    """Draw every plot of the page; a plot without data has the reason instead."""
    clients = [curve for curve in _curves(report, by_length=False) if curve.points]
    lengths = [curve for curve in _curves(report, by_length=True) if len(curve.points) > 1]
    if report.answers_whole:
        return [_rates(clients), *_whole_waits(clients, lengths), _per_cpu_second(report)]
    return [
        _rates(clients),
        _waits(
            "first-token",
            "Time to first token",
            clients,
            _first,
            "A client that sends a prompt waits so long for the first word. It grows when clients wait for a slot, or for each "
            "other's prompts.",
        ),
        _waits(
            "between-tokens",
            "Time between tokens",
            clients,
            _between,
            "Below about 50 ms a text comes faster than people read. The 99th percentile is the pause that other prompts cause.",
        ),
        _per_cpu_second(report),
        _waits(
            "prompt-length",
            "Time to first token by length of the prompt",
            lengths,
            _first,
            "One prompt at a time.",
            axis="tokens of the prompt",
        ),
    ]


def _whole_waits(clients: Sequence[Curve], lengths: Sequence[Curve]) -> list[Plot]:
    """Draw how long an answer takes that comes whole."""
    return [
        _waits(
            "answer-time",
            "Time of an answer",
            clients,
            _whole,
            "A client waits so long for the whole text. It grows when clients wait for slots: an answer needs one for each beam.",
        ),
        _waits(
            "text-length",
            "Time of an answer by length of the text",
            lengths,
            _whole,
            "One text at a time.",
            axis="tokens of the text",
        ),
    ]


def _first(one: Timed) -> tuple[float, float]:
    speed = token_speed(one)
    return speed.ttft_p50_ms or 0.0, speed.ttft_p99_ms or 0.0


def _between(one: Timed) -> tuple[float, float]:
    speed = token_speed(one)
    return speed.itl_p50_ms or 0.0, speed.itl_p99_ms or 0.0


def _whole(one: Timed) -> tuple[float, float]:
    return one.speed.p50_ms, one.speed.p99_ms


def _curves(report: Report, *, by_length: bool) -> Iterator[Curve]:
    """Yield the served model by protocol, then the models in process."""
    if report.served is not None:
        for protocol, (label, colour, marker, line) in PROTOCOLS.items():
            loads = [load for load in report.served.loads if load.protocol == protocol]
            points = [point for load in loads if (point := _point(load, load.concurrency, by_length)) is not None]
            yield Curve(label=f"{report.served.name}, {label}", look=(colour, marker, line), points=sorted(points, key=_place))
    for model, (colour, marker) in zip(report.in_process, cycle(SERIES), strict=False):
        ways = model.arrangements.values()
        points = [point for one in ways if (point := _point(one, one.batch, by_length)) is not None]
        how = "in process" if model.kind == IN_PROCESS else "static batches"
        line = "-." if model.kind == IN_PROCESS else ":"
        yield Curve(label=f"{model.name}, {how}", look=(colour, marker, line), points=sorted(points, key=_place))


def _point(measured: Timed, in_flight: int | None, by_length: bool) -> tuple[int, Timed] | None:
    x = measured.length if by_length else in_flight if measured.length is None else None
    return None if x is None else (x, measured)


def _place(point: tuple[int, Timed]) -> int:
    return point[0]


def _rates(curves: Sequence[Curve]) -> Plot:
    most = {curve.label: max(token_speed(one).tokens_per_second for _, one in curve.points) for curve in curves}
    plot = Plot(
        name="tokens-clients",
        title="Tokens per second",
        description="; ".join(f"{label}: up to {rate:.0f} tokens/s" for label, rate in most.items()),
        caption="Requests in flight: clients of the server, requests in the engine, texts in a static batch. Bars: slowest and "
        "fastest round. The gap between the served model and the same model in process is the cost of serving.",
    )
    with drawn(plot, 3.4, "requests in flight", "tokens/s") as ax:
        for curve in curves:
            x = [place for place, _ in curve.points]
            speeds = [token_speed(one) for _, one in curve.points]
            y = np.array([speed.tokens_per_second for speed in speeds])
            low = y - [speed.tokens_per_second_low for speed in speeds]
            high = [speed.tokens_per_second_high for speed in speeds] - y
            colour, marker, line = curve.look
            ax.errorbar(x, y, yerr=np.clip([low, high], 0, None), color=colour, marker=marker, linestyle=line, elinewidth=0.8,
                        label=curve.label)  # fmt: skip
        doubling(ax, [x for curve in curves for x, _ in curve.points])
        logarithmic(ax, "y", [token_speed(one).tokens_per_second for curve in curves for _, one in curve.points])
    return plot


def _waits(
    name: str, title: str, curves: Sequence[Curve], percentiles: Percentiles, caption: str, axis: str = "requests in flight"
) -> Plot:
    if not curves:
        return Plot(name=name, title=title, missing=f"two numbers of {axis} or more were not measured")
    plot = Plot(
        name=name,
        title=title,
        description="; ".join(
            f"{curve.label}: {percentiles(curve.points[0][1])[0]:.3g} ms at {curve.points[0][0]}, "
            f"{percentiles(curve.points[-1][1])[0]:.3g} ms at {curve.points[-1][0]} {axis}"
            for curve in curves
        ),
        caption=f"{caption} Points: median; thin lines reach to the 99th percentile.",
    )
    ends: list[float] = []
    with drawn(plot, 3.4, axis, "ms, p50 up to p99") as ax:
        for curve in curves:
            found = np.array([percentiles(one) for _, one in curve.points])
            colour, marker, line = curve.look
            reach = np.array([np.zeros(len(found)), np.clip(found[:, 1] - found[:, 0], 0, None)])
            ax.errorbar([x for x, _ in curve.points], found[:, 0], yerr=reach, color=colour, marker=marker, linestyle=line,
                        elinewidth=0.7, label=curve.label)  # fmt: skip
            ends += found.ravel().tolist()
        doubling(ax, [x for curve in curves for x, _ in curve.points])
        logarithmic(ax, "y", ends)
    return plot


def _per_cpu_second(report: Report) -> Plot:
    name, title = "tokens-cpu", "Tokens per second of processor time"
    engine = None if report.served is None else engine_of(report, report.served)
    found = [
        (figure, token_speed(one).tokens_per_cpu_second or 0.0)
        for figure, one in report.measured()
        if one.length is None and token_speed(one).tokens_per_cpu_second
    ]
    if not found:
        return Plot(name=name, title=title, missing="the processes of the server are not visible from here")
    plot = Plot(
        name=name,
        title=title,
        description="; ".join(f"{figure}: {value:.0f}" for figure, value in found),
        caption="What one core gives. Of the served model, all processes of the server count, but not the clients."
        + (f" {engine.name} is the served graph in process." if engine is not None else ""),
    )
    colours = {model.name: look[0] for model, look in zip(report.in_process, cycle(SERIES), strict=False)}
    if report.served is not None:
        colours[report.served.name] = PROTOCOLS["grpc"][1]
    with drawn(plot, 0.7 + 0.22 * len(found), "tokens per second of processor time") as ax:
        for place, (figure, value) in enumerate(found):
            ax.barh(place, value, height=0.72, color=colours[_owner(figure)])
            ax.annotate(rate(value), (value, place), textcoords="offset points", xytext=(3, 0), va="center", fontsize=8.5)
        ax.set_yticks(range(len(found)), [figure for figure, _ in found])
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.12)
    return plot


def _owner(figure: str) -> str:
    return ".".join(figure.split(".")[:2])
