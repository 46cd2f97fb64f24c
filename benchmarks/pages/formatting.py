"""Values as text, the same on every page."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import JsonValue

from benchmarks.measurements import Estimate
from benchmarks.speed import Speed
from benchmarks.token_speed import TokenSpeed

WIDE = 1.5
"""Throughput of the fastest round over the slowest. Beyond this, a figure depends more on the machine than on the model."""
NONE = "—"


def throughput(speed: Speed) -> str:
    """Write the median of the rounds and, if they differ, the lowest and the highest, rows per second."""
    return ranged(speed.throughput, speed.throughput_low, speed.throughput_high)


def ranged(median: float, low: float, high: float) -> str:
    """Write a rate, and the lowest and the highest of the rounds if they differ."""
    return rate(median) + (f" ({rate(low)}–{rate(high)})" if rate(low) != rate(high) else "")


def rate(value: float) -> str:
    """Write rows per second with three significant digits or more."""
    return f"{value:.0f}" if value >= 20 else f"{value:.3g}"


def spread(speed: Speed) -> float:
    """Compute the throughput of the fastest round over that of the slowest."""
    return speed.throughput_high / speed.throughput_low


def marked(speed: Speed) -> str:
    """Write :func:`throughput`, with a warning if the rounds differ too much."""
    return throughput(speed) + warning(spread(speed))


def token_rate(tokens: TokenSpeed) -> str:
    """Write tokens per second, with a warning if the rounds differ too much."""
    low, high = tokens.tokens_per_second_low, tokens.tokens_per_second_high
    return ranged(tokens.tokens_per_second, low, high) + warning(high / low)


def warning(ratio: float) -> str:
    """Write a warning if the fastest round was more than :data:`WIDE` times as fast as the slowest."""
    return f" ⚠ rounds differ ×{ratio:.1f}" if ratio > WIDE else ""


def unsteady(speeds: Iterable[Speed]) -> str:
    """Write a warning if the rounds of some speeds differ too much; empty if none do."""
    found = [spread(speed) for speed in speeds]
    wide = [ratio for ratio in found if ratio > WIDE]
    if not wide:
        return ""
    return (
        f"⚠ The machine changed speed while measuring: rounds of {len(wide)} of {len(found)} speeds differ by more than "
        f"×{WIDE:g}, by up to ×{max(wide):.1f}. Compare by the gates' rounds, not by single figures."
    )


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
