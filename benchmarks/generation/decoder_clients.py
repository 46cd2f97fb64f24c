"""The engine of a model that continues texts, in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.generation.engine_clients import EngineClients
from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.prompts import Prompts
from benchmarks.token_speed import require_tokens
from serving.bundle import Bundle
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.sampling import Sampling
from serving.runtime.generation.step_graph import DecoderGraph
from serving.runtime.generation.text_stream import Detokenizer, text_streams


class DecoderClients(EngineClients[list[int]]):
    """A variant of a decoder. Its tokens come one by one."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the graph of ``job`` and start the engine."""
        settings = job.engine
        self._new_tokens, self._prompts = job.new_tokens, Prompts(bundle, settings.capacity, job.options.timed)
        self._capacity = settings.capacity
        self._detokenizer = Detokenizer(self._prompts.tokenizer)
        super().__init__(job, DecoderGraph(job.source, slots=settings.slots, capacity=settings.capacity, threads=settings.threads))

    def answer(self, prompts: Sequence[str]) -> list[list[int]]:
        """Answer prompts, as many at a time as there are slots."""
        answers: list[Sampling] = []
        for start in range(0, len(prompts), self._slots):
            part = prompts[start : start + self._slots]
            answers += [self._started(client, prompt) for client, prompt in enumerate(part)]
            for _ in part:
                self._take()
        return [list(answer.sequences()[0].token_ids) for answer in answers]

    def _submit(self, client: int, prompt: str) -> None:
        self._started(client, prompt)

    def _started(self, client: int, prompt: str) -> Sampling:
        times = [time.perf_counter_ns()]
        tokens = np.array(self._prompts.tokens(prompt), dtype=np.int64)
        options = self._prompts.task.generation_options
        text = text_streams(self._detokenizer, tokens.tolist(), options, streams=True)[0]

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
        client, times = super()._take()
        require_tokens(len(times) - 1, self._new_tokens)
        return client, times
