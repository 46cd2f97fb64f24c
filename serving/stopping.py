"""How a supervisor is asked to stop, and how long its server goes on serving then."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType


class StopSignals:
    """Counts SIGTERM and SIGINT. Calling it tells whether one has come."""

    def __init__(self) -> None:
        """Begin without a signal."""
        self.count = 0

    def __call__(self) -> bool:
        """Return whether the server is to stop."""
        return self.count > 0

    def remember(self, _: int, __: FrameType | None) -> None:
        """Count a signal, as its handler."""
        self.count += 1


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Count SIGTERM and SIGINT while the block runs, instead of being ended by them."""
    signals = StopSignals()
    before = {number: signal.signal(number, signals.remember) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class GracePeriod:
    """The time for which a server goes on serving after it was asked to stop. Calling it tells whether the time is over.

    A further signal ends it.
    """

    def __init__(self, seconds: float, signals: StopSignals) -> None:
        """Begin the time.

        Args:
            seconds: How long it lasts.
            signals: The signals that have come so far, and that will come.
        """
        self._end = time.monotonic() + seconds
        self._signals = signals
        self._begun_with = signals.count

    def __call__(self) -> bool:
        """Return whether the server is to stop now."""
        return time.monotonic() >= self._end or self._signals.count > self._begun_with
