"""The requests that wait inside Triton although their clients have gone."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor

from serving.probe import pending_requests
from serving.server import TritonServer
from serving.triton_address import fetch

CHECK_SECONDS = 0.2
"""How often the number of waiting requests is read, in seconds."""
ANSWER_SECONDS = 5
"""Time limit of reading it, in seconds."""


class Backlog:
    """Finds out whether more requests wait inside Triton than clients wait for.

    The front lets only so many requests pass at the same time. It forgets a request whose client gives up, but Triton computes it
    all the same: no client's leaving reaches the steps of an ensemble. Without a limit, such requests pile up, and every answer
    comes too late. The number is read in a thread, so that a server that hangs does not delay the supervisor.
    """

    def __init__(self, server: TritonServer, most_in_flight: int) -> None:
        """Begin with a server that has no backlog.

        Args:
            server: The server.
            most_in_flight: Requests that the front lets pass at the same time.
        """
        self._server = server
        self._most = most_in_flight
        self._executor = ThreadPoolExecutor(1, "backlog")
        self._reading: Future[int] | None = None
        self._next = 0.0
        self._too_long = False

    def is_too_long(self) -> bool:
        """Return whether inference must wait: from more waiting requests than can be in flight, until half of them are left."""
        if self._reading is not None and self._reading.done():
            reading, self._reading = self._reading, None
            with contextlib.suppress(OSError):  # whether the server still answers is not decided here
                self._too_long = reading.result() > (self._most // 2 if self._too_long else self._most)
        if self._reading is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + CHECK_SECONDS
            self._reading = self._executor.submit(self._read)
        return self._too_long

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False)

    def _read(self) -> int:
        """Read how many requests wait for a step.

        Raises:
            OSError: The server did not answer.
        """
        _, content = fetch(self._server.address.metrics, "/metrics", timeout=ANSWER_SECONDS)
        models = {model for probe in self._server.probes for model in probe.models}
        return sum(count for model, count in pending_requests(content.decode()).items() if model in models)
