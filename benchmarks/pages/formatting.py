"""Figures in words: how a report's values are written, on every page alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report import Estimate
from benchmarks.speed import Speed

WIDE = 1.5
"""Fastest round over slowest, from which on a figure says more about the machine than about what was measured."""
NONE = "—"


def throughput(speed: Speed) -> str:
    """The median of the rounds and, where they differ, the lowest and the highest, rows per second."""
    low, high = rate(speed.throughput_low), rate(speed.throughput_high)
    return rate(speed.throughput) + (f" ({low}–{high})" if low != high else "")


def rate(value: float) -> str:
    """Rows per second, with as many digits as they are worth."""
    return f"{value:.0f}" if value >= 20 else f"{value:.3g}"


def spread(speed: Speed) -> float:
    """Throughput of the fastest round over that of the slowest."""
    return speed.throughput_high / speed.throughput_low


def marked(speed: Speed) -> str:
    """:func:`throughput`, and a mark where the rounds differ too much to trust it."""
    return throughput(speed) + (f" ⚠ rounds differ ×{spread(speed):.1f}" if spread(speed) > WIDE else "")


def number(value: float | None, form: str = ".0f") -> str:
    """``value`` in the format ``form``, a dash where there is none."""
    return NONE if value is None else f"{value:{form}}"


def interval(estimate: Estimate | None, form: str = ".4f") -> str:
    """An estimate and its interval. A minus sign is one: a range beside a hyphen cannot be read."""
    if estimate is None:
        return NONE
    value, low, high = (f"{part:{form}}".replace("-", "−") for part in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def clipped(text: str, most: int) -> str:
    """At most ``most`` characters of ``text``."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def answer(value: Any) -> str:
    """An answer or a reference, whatever its task: the parts of a list beside each other, those of a mapping with their names."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {answer(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(answer(part) for part in value) or "nothing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(rows: Sequence[Sequence[str]], *, left: Sequence[int] = (0,)) -> list[str]:
    """A table for the terminal, a line a row: the columns in ``left`` are words, all others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
