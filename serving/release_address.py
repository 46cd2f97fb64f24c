"""The address of the one server that a release is about."""

from __future__ import annotations

import re
import socket
from collections import Counter
from urllib.parse import urlsplit

from serving.errors import ServerError

ANY_SERVER = re.compile(r"dns:///([^/]+)")
"""gRPC's way to write a name for all of its addresses. Other clients then send their requests to all of them in turn."""
HINT = "give the gRPC address of one server as HOST:PORT, such as 127.0.0.1:8001"


def one_address(url: str) -> str:
    """Return the gRPC address of a server.

    A name that has several addresses is refused: each connection of a release could reach another server.

    Args:
        url: ``host:port``, or ``dns:///host:port``.

    Raises:
        ServerError: It is no such address, or the name has no address, or several.
    """
    found = ANY_SERVER.fullmatch(url)
    address = found[1] if found is not None else url
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:  # the port is not a number, or out of range
        host = port = None
    if not host or not port or set("/@?#") & set(address):
        raise ServerError(f"--url {url} is not HOST:PORT", hint=HINT)
    try:
        known = {(family, where[0]) for family, *_, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except UnicodeError as error:  # a name that DNS cannot have
        raise ServerError(f"--url {url} is not HOST:PORT", hint=HINT) from error
    except OSError as error:
        raise ServerError(f"--url {url}: {error.strerror}", hint=HINT) from error
    if max(Counter(family for family, _ in known).values()) > 1:  # one of IPv4 and one of IPv6 are the same server
        addresses = ", ".join(sorted(str(where) for _, where in known))
        raise ServerError(f"--url {url}: {host} has several addresses ({addresses}), and a release is about one server", hint=HINT)
    return address
