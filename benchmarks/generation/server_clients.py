"""The load generator for models that generate: the project's own client, many requests in flight on one event loop."""

from __future__ import annotations

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.token_speed import TokenTimes
from serving.access import ClientAccess
from serving.bundle import Bundle
from serving.connection import Connection
from serving.runtime.types import JsonValue

TIMEOUT = 600.0
"""Longest wait for a response, seconds: many clients of a slow model wait long for a slot."""
COMPARED_TOGETHER = 16
"""Requests in flight where answers are compared: quality is measured under load, as in production."""
Answer = TypeVar("Answer")
T = TypeVar("T")


class ServerClients(ABC, Generic[Answer]):
    """Clients of a running server. Each has one request at a time, over gRPC or HTTP."""

    file: Path
    threads = 1

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:  # noqa: ARG002 - the server has its own tokenizer
        """Prepare to connect to the server of ``job``."""
        assert job.server is not None
        self._server, self._options, self._new_tokens = job.server, job.options, job.new_tokens
        self.file = job.source

    def precision(self) -> str:
        """Return nothing: the bundle's manifest has the precision, by the file's checksum."""
        return ""

    @abstractmethod
    async def _request(self, connection: Connection, prompt: str, options: Mapping[str, JsonValue]) -> tuple[list[int], Answer]:
        """Send a prompt; return when it was sent and its tokens or its answer came, and the answer."""

    def answer(self, prompts: Sequence[str]) -> list[Answer]:
        """Answer prompts, :data:`COMPARED_TOGETHER` at a time."""

        async def ask() -> list[Answer]:
            room = asyncio.Semaphore(COMPARED_TOGETHER)
            connection = self._connection(COMPARED_TOGETHER)

            async def one(prompt: str) -> Answer:
                async with room:
                    return (await self._request(connection, prompt, self._options.compared))[1]

            return await _all([one(prompt) for prompt in prompts], connection)

        return asyncio.run(ask())

    def measure(self, prompts: Sequence[str], in_flight: int, seconds: float) -> TokenTimes:
        """Keep ``in_flight`` requests in flight until the time is over. All clients send equally many."""
        stream, turns = itertools.cycle(prompts), 1

        async def load() -> list[list[list[int]]]:
            connection, deadline = self._connection(in_flight), time.perf_counter_ns() + round(seconds * 1e9)

            async def client() -> list[list[int]]:
                nonlocal turns
                found: list[list[int]] = []
                while len(found) < turns:
                    found.append((await self._request(connection, next(stream), self._options.timed))[0])
                    if len(found) == turns and found[-1][-1] < deadline:
                        turns += 1
                return found

            return await _all([client() for _ in range(in_flight)], connection)

        return np.array([times for client in asyncio.run(load()) for times in client], dtype=np.int64)

    def _connection(self, concurrency: int) -> Connection:
        server = self._server
        return Connection(
            server.url,
            protocol=server.protocol,
            concurrency=concurrency,
            timeout=TIMEOUT,
            retries=0,
            access=ClientAccess(**asdict(server.access)),
        )


async def _all(clients: Sequence[Coroutine[Any, Any, T]], connection: Connection) -> list[T]:
    """Run all clients and close the connection. If one fails, the others are cancelled.

    Raises:
        RequestError: The server refused a request, or is not there.
    """
    tasks = [asyncio.ensure_future(client) for client in clients]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()
