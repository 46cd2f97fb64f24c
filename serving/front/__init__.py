"""The front: what is between clients and Triton.

It is the Envoy proxy, unless the user turns it off. It refuses requests that harm Triton, bounds the queue, and checks that each
answer belongs to its request. :mod:`serving.front.bootstrap` configures it, the folder ``guard`` holds its filter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from serving.front.envoy import EnvoyFront
from serving.front.interface import Front
from serving.options import ServeOptions
from serving.triton_address import tcp_address

UNPROTECTED = (
    "--front none: clients reach Triton directly. Some requests end this server, nothing bounds its queue or the size of a "
    "request, and only TritonPipeline notices an answer that belongs to another request"
)


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
        direct = Front()
        direct.triton = tcp_address(options)
        yield direct
        return
    with EnvoyFront(options, log=log) as front:
        yield front
