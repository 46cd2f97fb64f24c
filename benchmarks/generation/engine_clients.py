"""The engine of a served model in this process, without Triton: requests join and leave a running batch."""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.prompts import Prompts
from benchmarks.token_speed import TokenTimes
from serving.bundle import Bundle
from serving.runtime.generation.engine import Engine
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.sampling import Sampling
from serving.runtime.generation.step_graph import DecoderGraph
from serving.runtime.generation.text_stream import Detokenizer, TextStream

Ended = tuple[int, list[int], BaseException | None]
"""A client, when its request was sent and its tokens came, and why there is no whole answer."""


class EngineClients:
    """An ONNX variant with the engine that runs inside Triton: as many requests in flight as a server would have clients."""

    file: Path
    threads: int

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the graph of ``job`` and start the engine."""
        settings = job.engine
        self.file, self.threads = job.source, settings.threads
        self._new_tokens, self._prompts = job.new_tokens, Prompts(bundle, settings.capacity, job.options)
        self._capacity = settings.capacity
        self._detokenizer = Detokenizer(self._prompts.tokenizer)
        self._ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        graph = DecoderGraph(job.source, slots=settings.slots, capacity=settings.capacity, threads=settings.threads)
        self._engine = Engine(graph, chunk=settings.chunk, max_waiting=settings.max_waiting, on_failure=self._failed)
        self._slots = settings.slots
        self._engine.start()

    def precision(self) -> str:
        """Return nothing: the bundle's manifest has the precision, by the file's checksum."""
        return ""

    def answer(self, prompts: Sequence[str]) -> list[list[int]]:
        """Answer prompts, as many at a time as there are slots."""
        answers: list[Sampling] = []
        for start in range(0, len(prompts), self._slots):
            part = prompts[start : start + self._slots]
            answers += [self._submit(client, prompt) for client, prompt in enumerate(part)]
            for _ in part:
                self._take()
        return [list(answer.sequences()[0].token_ids) for answer in answers]

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

    def _submit(self, client: int, prompt: str) -> Sampling:
        times = [time.perf_counter_ns()]
        tokens = np.array(self._prompts.tokens(prompt), dtype=np.int64)
        options = self._prompts.task.generation_options
        text = TextStream(self._detokenizer, tokens.tolist(), stop_strings=options.stop_strings)

        def on_token(_sequence: int, token: int) -> bool:
            stopped = text.push(token)
            text.take()
            times.append(time.perf_counter_ns())
            return stopped

        def on_end(error: BaseException | None) -> None:
            text.finish()
            self._ended.put((client, times, error))

        limit = options.max_total_length(len(tokens), capacity=self._capacity)
        decoding = Sampling(options, tokens, max_length=limit, on_token=on_token)
        self._engine.submit(GenerationRequest(tokens, decoding, on_end))
        return decoding

    def _take(self) -> tuple[int, list[int]]:
        """Wait for the end of a request.

        Raises:
            RuntimeError: The engine failed, or the answer is shorter than it should be.
        """
        client, times, error = self._ended.get()
        if error is not None:
            raise RuntimeError(f"the engine failed: {error}") from error
        require_tokens(len(times) - 1, self._new_tokens)
        return client, times

    def _failed(self, error: BaseException) -> None:
        self._ended.put((0, [], error))


def require_tokens(found: int, wanted: int) -> None:
    """Check the length of an answer: figures of answers of different lengths cannot be compared.

    Raises:
        RuntimeError: It has another number of tokens.
    """
    if found != wanted:
        raise RuntimeError(f"an answer has {found} tokens instead of {wanted}: does the checkpoint have stop strings?")
