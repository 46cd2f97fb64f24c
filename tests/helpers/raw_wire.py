"""Requests byte by byte: HTTP/1.1 through a socket, HTTP/2 frames, and gRPC messages of any content."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from tritonclient.grpc import service_pb2

TIMEOUT = 30.0
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def exchange(port: int, parts: bytes | Iterable[bytes], *, timeout: float = TIMEOUT, wait: bool = True) -> bytes:
    """Send bytes and return what comes back until the answer is whole, the server closes, or the time is over."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            for part in [parts] if isinstance(parts, bytes) else parts:
                connection.sendall(part)
        if not wait:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        with contextlib.suppress(ConnectionResetError, TimeoutError):
            while not _is_whole(received):
                part = connection.recv(65536)
                if not part:
                    break
                received += part
    return received


def _is_whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    if separator and re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
        return body.endswith(b"0\r\n\r\n")
    return bool(separator and length and len(body) >= int(length[1]))


def outcome(received: bytes) -> str:
    """Return the status of an HTTP/1.1 answer and the beginning of its body, or that the connection was closed."""
    found = re.match(rb"HTTP/1\.[01] (\d{3})", received)
    if found is None:
        return "closed" if not received else f"bytes: {received[:30]!r}"
    return f"{found[1].decode()} {received.partition(bytes((13, 10, 13, 10)))[2][:90].decode(errors='replace').strip()}"


def post(path: str, body: bytes, headers: Mapping[str, str] | None = None, *, method: str = "POST") -> bytes:
    """Return an HTTP/1.1 request."""
    fields = {"Host": "x", "Content-Type": "application/json", "Content-Length": str(len(body))} | dict(headers or {})
    return f"{method} {path} HTTP/1.1\r\n".encode() + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode() + b"\r\n" + body


def chunked(path: str, chunks: Iterable[bytes]) -> bytes:
    """Return an HTTP/1.1 request in chunks."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def bytes_of(text: bytes) -> bytes:
    """Return a text as an element of a BYTES tensor."""
    return struct.pack("<I", len(text)) + text


# -- HTTP/2 and gRPC ----------------------------------------------------------------------------------------------------------


def http2_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def hpack(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return header fields, each as a literal without indexing."""
    encoded = b""
    for name, value in fields:
        encoded += b"\0" + _hpack_text(name.encode()) + _hpack_text(value.encode())
    return encoded


def _hpack_text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, encoded = len(text) - 127, b"\x7f"
    while rest >= 128:
        encoded += bytes((rest % 128 + 128,))
        rest //= 128
    return encoded + bytes((rest,)) + text


def grpc_headers(method: str, *more: tuple[str, str]) -> bytes:
    """Return the header fields of a call."""
    fixed = [(":method", "POST"), (":scheme", "http"), (":path", f"/inference.GRPCInferenceService/{method}"), (":authority", "x")]
    return hpack([*fixed, ("content-type", "application/grpc"), ("te", "trailers"), *more])


def grpc_frame(message: bytes, flag: int = 0) -> bytes:
    """Return a message with its flag and length in front."""
    return struct.pack(">BI", flag, len(message)) + message


def http2_exchange(port: int, frames: Iterable[bytes], *, timeout: float = 5.0) -> str:
    """Send frames after the preface. Return what became of stream 1, or that the connection was closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        received, deadline = b"", time.monotonic() + timeout
        try:
            connection.sendall(PREFACE + http2_frame(SETTINGS, 0, 0))
            for frame in frames:
                connection.sendall(frame)
            while time.monotonic() < deadline:
                part = connection.recv(65536)
                if not part:
                    return _http2_outcome(received) or "closed"
                received += part
                if found := _http2_outcome(received):
                    return found
        except (BrokenPipeError, ConnectionResetError):
            return _http2_outcome(received) or "closed"
        except TimeoutError:
            pass
    return "no answer"


def _http2_outcome(received: bytes) -> str | None:
    """Return the end of stream 1 or of the connection, if it has come."""
    data = 0
    while len(received) >= 9:
        length, kind, flags = int.from_bytes(received[:3]), received[3], received[4]
        stream, payload = int.from_bytes(received[5:9]), received[9 : 9 + length]
        if len(payload) < length:
            return None
        if kind == GOAWAY:
            return f"closed: GOAWAY {int.from_bytes(payload[4:8])}"
        if stream == 1 and kind == RST_STREAM:
            return f"closed: RST_STREAM {int.from_bytes(payload)}"
        data += length if stream == 1 and kind == DATA else 0
        if stream == 1 and flags & END_STREAM:
            return "answered" if data else "refused"
        received = received[9 + length :]
    return None


def text_message(model: str = "one", text: bytes = b"good film", **fields: object) -> service_pb2.ModelInferRequest:
    """Return a request for a text."""
    inputs = [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1]}]
    return service_pb2.ModelInferRequest(
        **({"model_name": model, "inputs": inputs, "raw_input_contents": [bytes_of(text)]} | fields)
    )


def compact(value: object) -> bytes:
    """Return a value as JSON."""
    return json.dumps(value).encode()
