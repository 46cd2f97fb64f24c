"""Whether a server is ready, whether it was ready once, and whether its supervisor works: what the health port tells.

A server is ready while every ensemble that it has loaded answers requests. Triton's own report is not enough: it says ready of a
model whose process died, and not ready of all models while one of them cannot be loaded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from serving.supervisor_metrics import metrics_page

LATELY_SECONDS = 30.0
"""An ensemble is ready if it answered within this time. The supervisor sends it a request every few seconds if no client does."""
STUCK_SECONDS = 120.0
"""A supervisor that watches a server looks at it several times a second. After this time without a look, it does not work."""
WATCHED_SECONDS = 60.0
"""Somebody watches the health port if it was asked within this time."""
STARTING, READY, RESTARTING, STOPPING = "starting", "ready", "restarting", "stopping"


@dataclass(frozen=True, kw_only=True)
class HealthReport:
    """The answer to a health check.

    Attributes:
        is_ok: Whether the check passes.
        content: What the answer says, as a JSON object. It names ensembles, but no files and no processes of the server.
    """

    is_ok: bool
    content: Mapping[str, object]


class Readiness:
    """What the supervisor knows of itself and of its server. It may be written and read in any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with a server that starts.

        Args:
            clock: Returns the time in seconds.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._state = STARTING
        self._has_been_ready = False
        self._answered: dict[str, float] = {}
        self._left_out: tuple[str, ...] = ()
        self._served: tuple[str, ...] = ()
        self._restarts = 0
        self._looked: float | None = None
        self._asked: float | None = None

    # -- what the supervisor says ---------------------------------------------------------------------------------------------

    def begin(self, ensembles: Iterable[str], left_out: Iterable[str]) -> None:
        """Say that a server has just answered for all of its ensembles.

        Args:
            ensembles: Their names.
            left_out: The names of the damaged ensembles, which it does not serve.
        """
        with self._lock:
            self._state = READY
            self._has_been_ready = True
            self._answered = dict.fromkeys(ensembles, self._clock())
            self._left_out = tuple(left_out)
            self._served = tuple(self._answered)

    def change(self, ensembles: Iterable[str], left_out: Iterable[str]) -> None:
        """Say that the server serves these ensembles from now on. A new one has just answered.

        Args:
            ensembles: Their names.
            left_out: The names of the damaged ensembles, which it does not serve.
        """
        with self._lock:
            now = self._clock()
            self._served, self._left_out = tuple(ensembles), tuple(left_out)
            if self._state != RESTARTING:  # else none of them answers
                self._answered = {name: self._answered.get(name, now) for name in self._served}

    def answered(self, ensemble: str) -> None:
        """Say that an ensemble has answered a request."""
        with self._lock:
            if ensemble in self._answered:  # otherwise it is no longer served
                self._answered[ensemble] = self._clock()

    def look(self) -> None:
        """Say that the supervisor has looked at the server."""
        with self._lock:
            self._looked = self._clock()

    def lose(self) -> None:
        """Say that the server has ended or must be restarted."""
        with self._lock:
            if self._state == READY:
                self._state = RESTARTING
                self._restarts += 1
            self._answered = {}
            self._looked = None

    def stop(self) -> bool:
        """Say that the server will stop, while it still serves. Return whether it was ready."""
        with self._lock:
            was_ready = self._state == READY
            self._state = STOPPING
            return was_ready

    # -- what the health port tells -------------------------------------------------------------------------------------------

    def live(self) -> HealthReport:
        """Return whether the supervisor works."""
        with self._lock:
            stuck = self._looked is not None and self._clock() - self._looked > STUCK_SECONDS
        return HealthReport(is_ok=not stuck, content={"live": not stuck})

    def started(self) -> HealthReport:
        """Return whether the server has been ready once."""
        with self._lock:
            return HealthReport(is_ok=self._has_been_ready, content={"started": self._has_been_ready, "state": self._state})

    def ready(self) -> HealthReport:
        """Return whether every ensemble answers, with the names of those that do not."""
        with self._lock:
            silent = self._silent()
            is_ready = self._state == READY and not silent
            content = {
                "ready": is_ready,
                "state": self._state,
                "ensembles": sorted(self._answered),
                "not_answering": silent,
                "left_out": sorted(self._left_out),
            }
        return HealthReport(is_ok=is_ready, content=content)

    def metrics(self) -> str:
        """Return the same for Prometheus, with the number of restarts. Packages are not ready while the server is restarted."""
        is_ready = self.ready().is_ok
        with self._lock:
            answering = set(self._answered) - set(self._silent())
            packages = {name: name in answering for name in (*self._served, *self._left_out)}
            return metrics_page(packages, is_ready=is_ready, restarts=self._restarts)

    def _silent(self) -> list[str]:
        now = self._clock()
        return sorted(name for name, answered in self._answered.items() if now - answered > LATELY_SECONDS)

    def was_asked(self) -> None:
        """Say that somebody has asked the health port."""
        with self._lock:
            self._asked = self._clock()

    def is_watched(self) -> bool:
        """Return whether somebody asks the health port, such as a proxy or an orchestrator."""
        with self._lock:
            return self._asked is not None and self._clock() - self._asked < WATCHED_SECONDS
