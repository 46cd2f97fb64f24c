"""How often and after which pauses a request is sent again."""

from __future__ import annotations

import random

from serving.failures import AttemptFailure, Retry

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Pause before the first retry in seconds, and its limit. It doubles with every further retry."""
JITTER = (0.5, 1.5)
"""Bounds of the random factor of every pause, so that many clients do not return at the same moment."""
LONGEST_WISH = 10.0
"""Limit in seconds of the pause that a server may ask for. A server that was restarted may be back earlier than it said."""
UNREACHED_RETRIES = 3
"""Retries while no connection can be opened to a server that this client has never reached: about 0.7 s."""
BROKEN_RETRIES = 5
"""Retries after a broken connection: a request that breaks more of them may itself be what ends the server."""
UNLOADED_RETRIES = 3
"""Retries while a server that does not end says that it has unloaded the model: behind one address, another server may have it."""


class RequestRetries:
    """The retries of one request."""

    def __init__(self, limit: int | None) -> None:
        """Start to count.

        Args:
            limit: Number of retries; None: as many as the time limit of the request allows.
        """
        self._limit = limit
        self._count = 0
        self._next = FIRST_PAUSE
        self._broken = 0
        self._unreached = 0
        self._unloaded = 0

    def pause(self, failure: AttemptFailure, *, reached: bool, live: bool) -> float | None:
        """Return the pause in seconds before the next attempt; None: there is none.

        Args:
            failure: The attempt that has just failed.
            reached: Whether this client has ever reached the server.
            live: Whether the server was live after it said that the model is unloaded.
        """
        self._count += 1
        self._broken += failure.retry is Retry.BROKEN
        self._unreached += failure.retry is Retry.UNREACHABLE and not reached
        self._unloaded += failure.retry is Retry.UNLOADED and live
        if failure.retry is Retry.NO:
            return None
        if self._limit is not None:
            if self._count > self._limit:
                return None
        elif self._broken > BROKEN_RETRIES or self._unreached > UNREACHED_RETRIES or self._unloaded > UNLOADED_RETRIES:
            return None
        own = self._next * random.uniform(*JITTER)  # noqa: S311 - no secret
        self._next = min(2 * self._next, LONGEST_PAUSE)
        return max(own, min(failure.retry_after, LONGEST_WISH) * random.uniform(1, JITTER[1]))  # noqa: S311 - no secret
