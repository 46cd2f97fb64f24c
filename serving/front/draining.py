"""Waits until the requests that have passed the proxy are answered, and ends the streams that take longer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
STANDSTILL_SECONDS = 10
"""gRPC streams may stay open without a request: after so many seconds without an answer in any, they are not waited for."""
CANCEL_SECONDS = 3
"""How long streams are given to tell their clients that they end, in seconds. The guard looks for it once a second."""
CLOSED, CANCELLED = "closed", "cancelled"
"""What the guard reads in its stop file: that new requests in streams are refused, and that the running ones end with an error."""


@dataclass(frozen=True)
class Activity:
    """What passes the proxy at a moment.

    Attributes:
        requests: Requests that are not answered to the end, without gRPC streams.
        grpc_streams: Open gRPC streams.
        received_bytes: Bytes of their answers so far.
    """

    requests: int
    grpc_streams: int
    received_bytes: int


def drain(read_activity: Callable[[], Activity], stop_file: Path, seconds: float) -> None:
    """Wait until all requests are answered, for at most that many seconds. Then end the streams that are left with an error.

    Args:
        read_activity: Returns what passes now.
        stop_file: The file that the guard reads.
        seconds: The longest time to wait.

    Raises:
        OSError: The proxy did not answer.
    """
    stop_file.write_text(CLOSED, encoding="utf-8")
    deadline = time.monotonic() + seconds
    before, changed = None, time.monotonic()
    while time.monotonic() < deadline:
        activity = read_activity()
        if activity != before:
            before, changed = activity, time.monotonic()
        if not activity.requests and (not activity.grpc_streams or time.monotonic() - changed > STANDSTILL_SECONDS):
            return
        time.sleep(POLL_SECONDS)
    stop_file.write_text(CANCELLED, encoding="utf-8")
    deadline = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < deadline and (activity := read_activity()).requests + activity.grpc_streams:
        time.sleep(POLL_SECONDS)
