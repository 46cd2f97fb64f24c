"""Progress of ``tritonize predict --input``: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from serving.reporting import console, logger, plural

REDRAWN = 0.2
"""Seconds between two updates of the bar."""
FIRST_LINE, LAST_PAUSE = 10.0, 300.0
"""Seconds before the first line in a log, and longest pause between two lines. The pauses grow with the duration of the run."""


class RowProgress:
    """Shows how many rows are answered, how many a second, and how long the others will take. Use it in a ``with`` block."""

    def __init__(self) -> None:
        """Prepare the bar."""
        shown = console().is_terminal
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console(), transient=True, disable=not shown)
        self._task = self._bar.add_task("", total=None)
        self._done = self._rows = 0
        self._total: int | None = None
        self._started = self._next = time.monotonic()

    def start(self, done: int, total: int | None) -> None:
        """Begin with the rows that the output has already."""
        self._done = self._rows = done
        self._total = total
        self._started = time.monotonic()
        self._next = self._started + (FIRST_LINE if self._bar.disable else 0)

    def advance(self) -> None:
        """Count one more row."""
        self._rows += 1
        now = time.monotonic()
        if now < self._next:
            return
        seconds = now - self._started
        if self._bar.disable:
            logger.info(self.describe(seconds))
            self._next = now + min(max(FIRST_LINE, seconds / 10), LAST_PAUSE)
        else:
            self._bar.update(self._task, completed=self._rows, total=self._total, description=self.describe(seconds))
            self._next = now + REDRAWN

    @property
    def counts(self) -> str:
        """How many rows are answered, such as ``1,234 of 20,000 rows``."""
        return f"{self._rows:,} {plural(self._rows, 'row')}" if self._total is None else f"{self._rows:,} of {self._total:,} rows"

    def describe(self, seconds: float) -> str:
        """Describe the progress after some seconds, such as ``1,234 of 20,000 rows, 412 rows/s, 0:45 left``."""
        rate = (self._rows - self._done) / seconds if seconds > 0 else 0.0
        text = f"{self.counts}, {rate:,.0f} rows/s"
        if self._total is None or not rate:
            return text
        minutes, left = divmod(round((self._total - self._rows) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{text}, {f'{hours}:{minutes:02}' if hours else minutes}:{left:02} left"

    def __enter__(self) -> Self:
        """Show the bar."""
        self._bar.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        """Remove the bar."""
        self._bar.stop()
