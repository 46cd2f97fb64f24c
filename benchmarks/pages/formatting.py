"""Values as text, the same on every page."""

from __future__ import annotations

from pydantic import JsonValue

from benchmarks.measurements import Estimate
from benchmarks.speed import Speed

WIDE = 1.5
"""Throughput of the fastest round over the slowest. Beyond this, a figure depends more on the machine than on the model."""
NONE = "—"


def throughput(speed: Speed) -> str:
    """Write the median of the rounds and, if they differ, the lowest and the highest, rows per second."""
    low, high = rate(speed.throughput_low), rate(speed.throughput_high)
    return rate(speed.throughput) + (f" ({low}–{high})" if low != high else "")


def rate(value: float) -> str:
    """Write rows per second with three significant digits or more."""
    return f"{value:.0f}" if value >= 20 else f"{value:.3g}"


def spread(speed: Speed) -> float:
    """Compute the throughput of the fastest round over that of the slowest."""
    return speed.throughput_high / speed.throughput_low


def marked(speed: Speed) -> str:
    """Write :func:`throughput`, with a warning if the rounds differ too much."""
    return throughput(speed) + (f" ⚠ rounds differ ×{spread(speed):.1f}" if spread(speed) > WIDE else "")


def number(value: float | None, form: str = ".0f") -> str:
    """Write ``value`` in the format ``form``, or a dash for None."""
    return NONE if value is None else f"{value:{form}}"


def interval(estimate: Estimate | None, form: str = ".4f") -> str:
    """Write an estimate and its interval, with true minus signs: a range with hyphens cannot be read."""
    if estimate is None:
        return NONE
    value, low, high = (f"{part:{form}}".replace("-", "−") for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def clipped(text: str, most: int) -> str:
    """Truncate a text to ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def answer(value: JsonValue) -> str:
    """Write an answer or a label of any task: lists separated by semicolons, mappings with their names."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {answer(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(answer(part) for part in value) or "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
