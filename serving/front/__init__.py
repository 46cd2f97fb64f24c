"""The front: what is between clients and Triton.

It is the Envoy proxy, unless the user turns it off. It refuses requests that harm Triton, bounds the queue, and checks that each
answer belongs to its request. :mod:`serving.front.bootstrap` configures it, the folder ``guard`` holds its filter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from serving.front.envoy import EnvoyFront
from serving.options import ServeOptions
from serving.triton_address import TritonAddress, tcp_address

UNPROTECTED = (
    "--front none: clients reach Triton directly. Some requests end this server, nothing bounds its queue or the size of a "
    "request, and only TritonPipeline notices an answer that belongs to another request"
)


class Front(Protocol):
    """What is between clients and Triton.

    Attributes:
        triton: Where tritonserver must listen.
        most_in_flight: Requests that Triton has at the same time; None: there is no limit.
    """

    triton: TritonAddress
    most_in_flight: int | None

    def open(self) -> None:
        """Let requests pass."""
        ...

    def close(self) -> None:
        """Refuse new requests. Those that have passed go on."""
        ...

    def hold(self, *, on: bool) -> None:
        """Refuse inference, or let it pass again. Reads and health checks pass."""
        ...

    def wait_idle(self, seconds: float) -> None:
        """Wait until no request that has passed is left, for at most that many seconds."""
        ...

    def shut_down(self) -> None:
        """End for good. Triton then need not wait for idle connections before it ends."""
        ...

    def revive(self) -> None:
        """Start the front again if it has ended."""
        ...

    def wait_for_alarm(self, seconds: float) -> str | None:
        """Wait until the front sees that Triton cannot be trusted any more, for at most that many seconds.

        Returns:
            What it has seen, as the rest of a sentence about Triton, or None.
        """
        ...


@contextlib.contextmanager
def start_front(options: ServeOptions, *, log: Callable[[str], None]) -> Iterator[Front]:
    """Run the front that the options name while the block runs. It is closed at first.

    Args:
        options: The options of ``tritonize serve``.
        log: Called with every line that the front prints.

    Raises:
        ServerError: The front could not be started.
        SetupError: There is no Envoy on this machine.
    """
    if options.front == "none":
        yield DirectFront(options)
        return
    with EnvoyFront(options, log=log) as front:
        yield front


class DirectFront:
    """Nothing is between clients and Triton, so nothing can refuse their requests."""

    def __init__(self, options: ServeOptions) -> None:
        """Take the address that clients use."""
        self.triton = tcp_address(options)
        self.most_in_flight: int | None = None

    def open(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def hold(self, *, on: bool) -> None:
        """Do nothing."""

    def wait_idle(self, seconds: float) -> None:
        """Do nothing: Triton's own drain waits."""

    def shut_down(self) -> None:
        """Do nothing."""

    def revive(self) -> None:
        """Do nothing."""

    def wait_for_alarm(self, seconds: float) -> str | None:
        """Wait. Nothing sees the answers."""
        time.sleep(seconds)
        return None
