"""Clients of encoder-decoders, which answer a request once, over gRPC or HTTP (``infer``).

They are those of streams in all but the request, so that figures of both kinds of models have one meaning.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from benchmarks.generation.server_clients import ServerClients
from serving.connection import Connection
from serving.runtime.types import JsonValue

TEXT, GENERATED = "TEXT", "GENERATED"


class WholeAnswerClients(ServerClients[str]):
    """Clients that have one request of one text at a time."""

    async def _request(self, connection: Connection, prompt: str, options: Mapping[str, JsonValue]) -> tuple[list[int], str]:
        """Send a text; return when it was sent and answered, and the answer."""
        sent = time.perf_counter_ns()
        result = await connection.infer(self._server.name, {TEXT: [prompt.encode()]}, options)
        answer: bytes = result.as_numpy(GENERATED).reshape(-1)[0]
        return [sent, time.perf_counter_ns()], answer.decode()
