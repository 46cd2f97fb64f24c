"""Tells whether an address answers another protocol: HTTP at the port for gRPC, gRPC at the port for HTTP, or only TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
from urllib.parse import urlsplit

import aiohttp

from serving.errors import RequestError

ANSWERED_HTTP = re.compile(r'Trying to connect an http1\.x server|^\{"error": ?"there is nothing at this path')
"""What gRPC says about a server of HTTP 1, and what the front answers at its ports for HTTP."""
CHECK_SECONDS = 2.0
"""Time limit of each question to a port."""
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 sends first, with empty settings."""
FRAME_HEADER, FRAME_TYPE, SETTINGS = 9, 3, 4
"""Size of a frame's header in bytes, the place of its type, and the type of the settings, which a server of HTTP/2 sends first."""
TLS_ALERT = b"\x15\x03"
"""What an alert of TLS begins with: its type and the version."""
HTTP1_REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def answers_http(url: str) -> RequestError:
    """Return the error of a client of gRPC at a port for HTTP."""
    return RequestError(
        f"{url} answers HTTP, not gRPC",
        status="FAILED_PRECONDITION",
        hint='choose HTTP (--protocol http, protocol="http"), or give the port for gRPC, by default 8001',
    )


def answers_grpc(url: str) -> RequestError:
    """Return the error of a client of HTTP at a port for gRPC."""
    return RequestError(
        f"{url} answers gRPC, not HTTP",
        status="FAILED_PRECONDITION",
        hint='choose gRPC (--protocol grpc, protocol="grpc"), or give the port for HTTP, by default 8000',
    )


def may_be_grpc(error: Exception) -> bool:
    """Return whether an error of HTTP may come from a port for gRPC: the answer was none, or no HTTP."""
    other = aiohttp.ClientConnectorError | aiohttp.ClientPayloadError | aiohttp.InvalidURL
    return isinstance(error, aiohttp.ClientError) and not isinstance(error, other)


async def is_grpc_port(url: str) -> bool:
    """Return whether a port without TLS speaks HTTP/2 and does not speak HTTP 1.1, as only ports for gRPC do.

    HTTP/2 is asked for first: a server that just ends or starts may refuse one of the two connections, but one that takes HTTP/2
    and then refuses HTTP 1.1 does not take it at all.

    Args:
        url: ``host:port``.
    """
    if not _is_http2(await _answer(url, HTTP2_PREFACE)):
        return False
    answer = await _answer(url, HTTP1_REQUEST)
    return answer is not None and not answer.startswith(b"HTTP/1")


async def is_http_port(url: str) -> bool:
    """Return whether a port without TLS speaks HTTP 1.1 and does not speak HTTP/2; see :func:`is_grpc_port`."""
    if not (await _answer(url, HTTP1_REQUEST) or b"").startswith(b"HTTP/1"):
        return False
    answer = await _answer(url, HTTP2_PREFACE)
    return answer is not None and not _is_http2(answer)


async def closes_connections(url: str) -> bool:
    """Return whether a port closes a connection without TLS at once, as one that wants TLS does.

    gRPC does not always say so: where a name has several addresses, it tells only how one of them failed.

    Args:
        url: ``host:port``.
    """
    answer = await _answer(url, HTTP2_PREFACE)
    return answer is not None and (not answer or answer.startswith(TLS_ALERT))


def _is_http2(answer: bytes | None) -> bool:
    return answer is not None and len(answer) == FRAME_HEADER and answer[FRAME_TYPE] == SETTINGS


async def _answer(url: str, sent: bytes) -> bytes | None:
    """Return the first bytes that a port answers; none if it closes the connection. None: it could not be asked, or waits."""
    address = urlsplit(f"//{url}")
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            reader, writer = await asyncio.open_connection(address.hostname, address.port or 80)
            writer.write(sent)
            return await _first_bytes(reader)
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _first_bytes(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readexactly(FRAME_HEADER)
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    except ConnectionError:
        return b""
