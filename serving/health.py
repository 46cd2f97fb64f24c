"""Whether a running server still answers: from its own counts, and by a real request to each ensemble that answered nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from serving.errors import TritonizeError
from serving.probe import ask
from serving.server import TritonServer

CHECK_SECONDS = 3
"""How often the supervisor looks whether requests are answered, in seconds."""
ANSWER_SECONDS = 5
"""How long a server that uses no processor time may take to answer a probe, in seconds."""
BUSY_SECONDS = 120
"""How long a server that is busy may take to answer a probe, in seconds."""
IDLE_SHARE = 0.05
"""Share of one core below which a server is not busy."""


class ServerHealth:
    """Finds out whether a server still answers: from its own counts, and by a real request to each ensemble that answered nothing.

    A refused request is no answer: a server whose steps have failed refuses all. The request runs in a thread, so that
    the supervisor sees meanwhile whether the server ends.
    """

    def __init__(self, server: TritonServer, on_answer: Callable[[str], None]) -> None:
        """Begin with a server that has just answered.

        Args:
            server: The server.
            on_answer: Called with the name of each ensemble that is found to have answered a request.
        """
        self._server = server
        self._on_answer = on_answer
        self._checked = time.monotonic()
        self._answered: dict[str, int] = {}
        self._asking: Future[None] | None = None
        self._asked = 0.0
        self._processor_seconds = 0.0
        self._executor = ThreadPoolExecutor(1, "probe")

    def failure(self) -> str | None:
        """Return why the server does not answer any more, as the rest of a sentence about it, or None."""
        now = time.monotonic()
        if self._asking is not None:
            return self._unanswered(now)
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            self._processor_seconds = self._server.processor_seconds()
            self._asked = now
            self._asking = self._executor.submit(self._check)
        return None

    def close(self) -> None:
        """End the thread. A request that it still waits for ends with the server."""
        self._executor.shutdown(wait=False)

    def _check(self) -> None:
        """Ask for the counts, and send a request to every ensemble that has answered none since the last time.

        Raises:
            OSError: The server did not answer.
            RequestError: It refused the request.
        """
        before, self._answered = self._answered, self._server.traffic(timeout=BUSY_SECONDS).answered
        if not before:  # the first time: every ensemble has just answered
            return
        probes = [probe for probe in self._server.probes if probe.ensemble in self._answered]  # releases change them
        asked_last = sorted(probes, key=lambda probe: self._answered[probe.ensemble] == before.get(probe.ensemble))
        for probe in asked_last:  # those that wait for a probe must not look silent because another one does not answer
            if self._answered[probe.ensemble] == before.get(probe.ensemble):
                ask(self._server.address.http, probe, timeout=BUSY_SECONDS)
                self._answered[probe.ensemble] += 1
            self._on_answer(probe.ensemble)

    def _unanswered(self, now: float) -> str | None:
        assert self._asking is not None
        if self._asking.done():
            error = self._asking.exception()
            self._asking = None
            self._checked = now
            if isinstance(error, OSError | TritonizeError):
                return f"does not answer a request: {error}"
            if error is not None:
                return f"could not be asked: {type(error).__name__}: {error}"
            return None
        waited = now - self._asked
        if waited > BUSY_SECONDS:
            return f"did not answer a request within {BUSY_SECONDS} s"
        if waited > ANSWER_SECONDS:
            used = self._server.processor_seconds()
            if used - self._processor_seconds < IDLE_SHARE * waited:
                return f"did not answer a request within {ANSWER_SECONDS} s, and does nothing"
        return None
