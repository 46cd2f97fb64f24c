"""What gRPC, Envoy and OpenSSL say about a connection: the status of an error does not tell one cause from another."""

from __future__ import annotations

import re

UNREACHABLE = re.compile(r"failed to connect to|errors resolving|DNS resolution failed")
"""gRPC's messages about a connection that it could not open."""
BROKEN = re.compile(r"Socket closed|[Cc]onnection reset|RST_STREAM|GOAWAY|Broken pipe|disconnect/reset|ended the call before")
"""The messages of gRPC, Envoy and :data:`SAID_PLAINLY` about a connection that broke while the server had the request."""
SAID_PLAINLY = {"Internal error from Core": "the server ended the call before it had the whole request"}
"""gRPC's message, in plain words, where a server ended a call while the client still sent its request: what it said is lost."""
TLS_REFUSED = re.compile(r"SSL_ERROR|TSI_DATA_CORRUPTED|\[SSL: \w*ALERT")
"""What gRPC and OpenSSL say where one side does not trust the certificate of the other. In TLS 1.3, a server that wants one of the
client says so after the handshake: if the client is still writing then, it only sees that the connection breaks."""
