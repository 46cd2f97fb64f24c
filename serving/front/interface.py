"""What is between clients and Triton, and what it can do."""

from __future__ import annotations

import time

from serving.triton_address import TritonAddress


class Front:
    """Nothing is between clients and Triton, so nothing can refuse their requests. Subclasses can.

    Attributes:
        triton: Where tritonserver must listen.
        most_in_flight: Requests that Triton has at the same time; None: there is no limit.
    """

    triton: TritonAddress
    most_in_flight: int | None = None

    def open(self) -> None:
        """Let requests pass."""

    def close(self) -> None:
        """Refuse new requests. Those that have passed go on."""

    def hold(self, *, on: bool) -> None:
        """Refuse inference, or let it pass again. Reads and health checks pass."""

    def release(self) -> None:
        """Ask clients to connect anew for further requests, which pass as before."""

    def wait_idle(self, seconds: float) -> None:
        """Wait until no request that has passed is left, for at most that many seconds."""

    def shut_down(self) -> None:
        """End for good. Triton then need not wait for idle connections before it ends."""

    def revive(self) -> None:
        """Start again what has ended or hangs."""

    def wait_for_alarm(self, seconds: float) -> str | None:
        """Wait until it is seen that Triton cannot be trusted any more, for at most that many seconds.

        Returns:
            What was seen, as the rest of a sentence about Triton, or None.
        """
        time.sleep(seconds)
        return None
