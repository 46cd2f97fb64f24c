"""Progress of long steps of an export: a bar on a terminal, lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from serving.reporting import console, logger

REDRAWN = 0.1
"""Seconds between two updates of the bar. No thread draws it, which would disturb what is measured."""
PAUSE, SHARE = 10.0, 0.1
"""Seconds before the first line in a log and between two lines at least, and the share of the time so far that a pause takes."""

T = TypeVar("T")


def tracked(items: Sequence[T], title: str) -> Iterator[T]:
    """Yield items, and report how many of them are done.

    Args:
        items: What a step works on, one after the other.
        title: What the step does, such as ``verifying fp32``.
    """
    shown = console().is_terminal
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    started = time.monotonic()
    due = started + (0.0 if shown else PAUSE)
    with Progress(*columns, console=console(), transient=True, auto_refresh=False, disable=not shown) as bar:
        task = bar.add_task(title, total=len(items))
        for done, item in enumerate(items):
            now = time.monotonic()
            if now >= due:
                if shown:
                    bar.update(task, completed=done, refresh=True)
                else:
                    logger.info(f"{title}: {done} of {len(items)}")
                due = now + (REDRAWN if shown else max(PAUSE, SHARE * (now - started)))
            yield item
