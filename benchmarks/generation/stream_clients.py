"""Clients of models that answer in streams, over gRPC or HTTP (``generate_stream``).

``perf_analyzer --streaming`` is not used. It knows gRPC only, and counts responses, of which each may hold several tokens.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing

from benchmarks.generation.server_clients import ServerClients
from benchmarks.token_speed import require_tokens
from serving.connection import Connection
from serving.generation_call import answer_parts
from serving.generation_request import TextRequest
from serving.runtime.types import JsonValue


class StreamClients(ServerClients[list[int]]):
    """Clients that have one stream at a time."""

    async def _request(self, connection: Connection, prompt: str, options: Mapping[str, JsonValue]) -> tuple[list[int], list[int]]:
        """Send a prompt; return when it was sent and each token came, and the tokens."""
        request = TextRequest.of(self._server.name, [prompt.encode()], options).streamed()
        times, tokens = [time.perf_counter_ns()], []
        async with aclosing(answer_parts(connection, request)) as parts:
            async for part in parts:
                now, found = time.perf_counter_ns(), part["token_ids"].reshape(-1).tolist()
                tokens += found
                times += [now] * len(found)
        require_tokens(len(tokens), self._new_tokens)
        return times, tokens
