"""The engine of a served model in this process, without Triton: requests join and leave a running batch."""

from __future__ import annotations

import itertools
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.token_speed import TokenTimes
from serving.runtime.generation.engine import Engine
from serving.runtime.generation.step_graph import StepGraph

Ended = tuple[int, list[int], BaseException | None]
"""A client, when its request was sent and its tokens came, and why there is no whole answer."""
Answer = TypeVar("Answer")


class EngineClients(ABC, Generic[Answer]):
    """An ONNX variant with the engine that runs inside Triton: as many requests in flight as a server would have clients.

    Args:
        job: The job.
        graph: Its graph with a cache.
    """

    file: Path
    threads: int

    def __init__(self, job: GenerationJob, graph: StepGraph) -> None:
        settings = job.engine
        self.file, self.threads, self._slots = job.source, settings.threads, settings.slots
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        self._engine = Engine(graph, chunk=settings.chunk, max_waiting=settings.max_waiting, on_failure=self._failed)
        self._engine.start()

    def precision(self) -> str:
        """Return nothing: the bundle's manifest has the precision, by the file's checksum."""
        return ""

    @abstractmethod
    def answer(self, prompts: Sequence[str]) -> list[Answer]:
        """Answer prompts, many at a time."""

    @abstractmethod
    def _submit(self, client: int, prompt: str) -> None:
        """Submit a timed request; its end goes to :attr:`_ended`."""

    def measure(self, prompts: Sequence[str], in_flight: int, seconds: float) -> TokenTimes:
        """Keep ``in_flight`` requests in flight until the time is over. All clients send equally many."""
        stream, rows, sent = itertools.cycle(prompts), [], [0] * in_flight
        deadline, turns = time.perf_counter_ns() + round(seconds * 1e9), 1
        for client in range(in_flight):
            self._submit(client, next(stream))
        running = in_flight
        while running:
            client, times = self._take()
            rows.append(times)
            running -= 1
            sent[client] += 1
            if sent[client] == turns and times[-1] < deadline:
                turns += 1
            if sent[client] < turns:
                self._submit(client, next(stream))
                running += 1
        return np.array(rows, dtype=np.int64)

    def _take(self) -> tuple[int, list[int]]:
        """Wait for the end of a request.

        Raises:
            RuntimeError: The engine failed.
        """
        client, times, error = self._ended.get()
        if error is not None:
            raise RuntimeError(f"the engine failed: {error}") from error
        return client, times

    def _failed(self, error: BaseException) -> None:
        self._ended.put((0, [], error))
