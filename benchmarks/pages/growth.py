"""How cost grows with rows per call, tokens per row and clients: known laws fitted to the speeds of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Report
from benchmarks.speed import Speed
from serving.reporting import plural

LEAST = 3
"""Least number of points for a fit."""

Doubles = npt.NDArray[np.float64]
_Line = tuple[str, str, str, int | None]
"""Name, axis, way and rows in flight of a growth, see :class:`Growth`."""


@dataclass(frozen=True, kw_only=True)
class GrowthPoint:
    """One speed: ``x`` is rows per call, tokens per row or clients; throughput in rows per second."""

    x: int
    throughput: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A law fitted to points, weighted by relative error, as noise grows with the value.

    Attributes:
        coefficients: Coefficients by the letter that the law is known with.
        r2: Share of the variance that the law explains, of ms per call or of rows per second as the formula gives; None if there
            are no more points than coefficients, as any law fits then.
    """

    formula: str
    coefficients: dict[str, float]
    r2: float | None
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Speeds that differ in one thing.

    Attributes:
        axis: What differs: ``batch``, ``length`` or ``concurrency``.
        way: What they have in common.
        rows_in_flight: Rows that are worked on or wait at the same time; None if that is what differs.
        why: Why there is no law; empty if there is one.
    """

    name: str
    axis: str
    way: str
    rows_in_flight: int | None
    points: list[GrowthPoint]
    fit: Fit | None
    why: str

    def fitted(self, x: Doubles) -> Doubles:
        """Compute rows per second by the fitted law."""
        if self.fit is None:
            raise ValueError(f"{self.name} has no fit")
        return _fitted(self.axis, list(self.fit.coefficients.values()), self.rows_in_flight or 1, x)


def growths(report: Report) -> list[Growth]:
    """List every axis along which ``report`` has two speeds or more."""
    found: dict[_Line, list[GrowthPoint]] = {}
    for line, x, speed in _speeds(report):
        point = GrowthPoint(x=x, throughput=speed.throughput, low=speed.throughput_low, high=speed.throughput_high)
        found.setdefault(line, []).append(point)
    names = list(dict.fromkeys(name for name, *_ in found))
    lines = sorted(found, key=lambda line: (names.index(line[0]), line[1] == "length"))
    return [_growth(*line, found[line]) for line in lines if len({point.x for point in found[line]}) > 1]


def _speeds(report: Report) -> Iterator[tuple[_Line, int, Speed]]:
    """Yield every speed with the line that it is a point of, and its place there."""
    for model in report.in_process:
        for one in model.arrangements.values():
            way = f"{one.processes} × {one.threads} threads"
            if one.length is None:
                yield (model.name, "batch", way, one.processes), one.batch, one.speed
            else:
                way += f", {one.batch} rows per call" if one.batch > 1 else ""
                yield (model.name, "length", way, one.processes * one.batch), one.length, one.speed
    if report.served is None:
        return
    for load in report.served.loads:
        if load.concurrency is not None and load.length is None:
            yield (report.served.name, "concurrency", load.protocol, None), load.concurrency, load.speed
        elif load.concurrency is not None and load.length is not None:
            way = f"{load.protocol}, {load.concurrency} {plural(load.concurrency, 'client')}"
            yield (report.served.name, "length", way, load.concurrency), load.length, load.speed


def _growth(name: str, axis: str, way: str, rows: int | None, points: list[GrowthPoint]) -> Growth:
    points.sort(key=lambda point: point.x)
    fit, why = fitted_law(axis, points, rows or 1)
    return Growth(name=name, axis=axis, way=way, rows_in_flight=rows, points=points, fit=fit, why=why)


def fitted_law(axis: str, points: Sequence[GrowthPoint], rows_in_flight: int = 1) -> tuple[Fit | None, str]:
    """Fit the law of an axis to points.

    Time per call is fitted as ``1000 · rows in flight / throughput`` ms, the mean by Little's law: unlike the median of calls it
    counts long rows as what they cost. ``batch``: a + b · batch. ``length``: a + b · length + c · length², for attention. None of
    a, b, c is negative. ``concurrency``: see :func:`_scaling`.

    Returns:
        The fit, or None and the reason.
    """
    different = len({point.x for point in points})
    if different < LEAST:
        return None, f"{different} points, a fit needs {LEAST}"
    x = np.array([point.x for point in points], dtype=np.float64)
    throughput = np.array([point.throughput for point in points])
    if axis == "concurrency":
        found = _scaling(x, throughput)
        if found is None:
            return None, "the law of scaling does not converge on these points"
        observed, expected = throughput, _fitted(axis, found, 1, x)
    else:
        rows = rows_in_flight * x if axis == "batch" else np.full_like(x, rows_in_flight)
        observed = 1000 * rows / throughput
        found = _polynomial(x, observed, degree=1 if axis == "batch" else 2)
        expected = _milliseconds(found, x)
    letters = ("λ", "σ", "κ") if axis == "concurrency" else ("a", "b", "c")
    coefficients = dict(zip(letters, found, strict=False))
    r2 = _explained(observed, expected) if different > len(found) else None
    formula, meaning = _description(axis, coefficients, points[-1].x, rows_in_flight)
    return Fit(formula=formula, coefficients=coefficients, r2=r2, meaning=meaning), ""


def _polynomial(x: Doubles, milliseconds: Doubles, *, degree: int) -> list[float]:
    from scipy.optimize import nnls

    powers = x[:, None] ** np.arange(degree + 1)
    scale = powers.max(axis=0)  # the solver has one tolerance for all columns, but squares of lengths are large
    found, _ = nnls(powers / scale / milliseconds[:, None], np.ones(len(x)))
    return [float(value) for value in found / scale]


def _scaling(clients: Doubles, throughput: Doubles) -> list[float] | None:
    """λ, σ, κ of the universal scalability law, λN / (1 + σ(N − 1) + κN(N − 1)): N. J. Gunther, Guerrilla Capacity Planning, 2007.

    λ is the throughput of one client, σ the serial share of the work, κ the cost of coordination per pair of clients.
    """
    from scipy.optimize import curve_fit

    start = [float((throughput / clients).max()), 0.1, 0.001]
    try:
        found, _ = curve_fit(
            lambda n, *law: _fitted("concurrency", law, 1, n),
            clients,
            throughput,
            p0=start,
            sigma=throughput,
            absolute_sigma=True,
            bounds=([0, 0, 0], [np.inf, 1, np.inf]),
            x_scale="jac",
        )
    except RuntimeError:  # curve_fit found no minimum
        return None
    return [float(value) for value in found]


def _fitted(axis: str, law: Sequence[Any], rows_in_flight: int, x: Doubles) -> Doubles:
    fitted: Doubles
    if axis == "concurrency":
        alone, waiting, talking = law
        fitted = alone * x / (1 + waiting * (x - 1) + talking * x * (x - 1))
    else:
        fitted = 1000 * rows_in_flight * (x if axis == "batch" else 1) / _milliseconds(law, x)
    return fitted


def _milliseconds(law: Sequence[float], x: Doubles) -> Doubles:
    return np.asarray(np.polynomial.polynomial.polyval(x, np.array(law)), dtype=np.float64)


def _explained(observed: Doubles, expected: Doubles) -> float | None:
    total = float(((observed - observed.mean()) ** 2).sum())
    return 1 - float(((observed - expected) ** 2).sum()) / total if total > 0 else None


def _description(axis: str, law: dict[str, float], longest: int, rows_in_flight: int) -> tuple[str, str]:
    if axis == "concurrency":
        alone, waiting, talking = law.values()
        formula = f"rows/s = {alone:.3g} N / (1 + {waiting:.3g} (N − 1) + {talking:.3g} N (N − 1))"
        most = float(np.sqrt((1 - waiting) / talking)) if talking > 0 else None
        peak = "more clients never reduce the throughput" if most is None else f"the maximum is at {max(most, 1):.0f} clients"
        return formula, f"one client gets {alone:.0f} rows/s; {waiting:.0%} of the work is serialized; {peak}"
    if axis == "batch":
        formula = f"ms per call = {law['a']:.3g} + {law['b']:.3g} · batch"
        most = 1000 * rows_in_flight / law["b"] if law["b"] > 0 else None
        bound = "additional rows cost nothing" if most is None else f"no batch gets more than {most:.0f} rows/s"
        return formula, f"{law['a']:.3g} ms of every call do not depend on its rows; {bound}"
    formula = f"ms per call = {law['a']:.3g} + {law['b']:.3g} · length + {law['c']:.3g} · length²"
    square = law["c"] * longest**2
    whole = square + law["b"] * longest + law["a"]
    return formula, f"at {longest} tokens {square / whole:.0%} of the time grows with the square of the length"
