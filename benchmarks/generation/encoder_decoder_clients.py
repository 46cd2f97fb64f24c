"""The engine of an encoder-decoder, in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.generation.engine_clients import EngineClients
from benchmarks.generation.generation_jobs import GenerationJob
from benchmarks.generation.source_texts import SourceTexts
from benchmarks.token_speed import require_tokens
from serving.bundle import Bundle
from serving.runtime.generation.decoding_choice import decoding_for
from serving.runtime.generation.encoder_decoder_step import EncoderDecoderGraph
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.generation_options import GenerationOptions

ENCODER = "encoder.onnx"
"""The other file of a variant, beside its decoder."""


class EncoderDecoderClients(EngineClients[str]):
    """A variant of an encoder-decoder. Its answers come whole."""

    def __init__(self, job: GenerationJob, bundle: Bundle) -> None:
        """Load the graphs of ``job`` and start the engine."""
        settings = job.engine
        self._new_tokens, self._capacity = job.new_tokens, settings.capacity
        self._texts = SourceTexts(bundle, job.options.timed)
        self._timed: GenerationOptions = self._texts.task.generation_options
        self._compared = bundle.generation_task.with_options(job.options.compared).generation_options
        graph = EncoderDecoderGraph(
            job.source.with_name(ENCODER),
            job.source,
            slots=settings.slots,
            capacity=settings.capacity,
            source_capacity=bundle.max_length,
            threads=settings.threads,
        )
        super().__init__(job, graph)

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """Answer sources, as many at a time as there are slots; those that need several wait."""
        answers: list[str] = [""] * len(prompts)
        for start in range(0, len(prompts), self._slots):
            part = prompts[start : start + self._slots]
            for place, prompt in enumerate(part, start):
                self._ask(place, prompt, self._compared, answers)
            for _ in part:
                self._take()
        return answers

    def _submit(self, client: int, prompt: str) -> None:
        self._ask(client, prompt, self._timed, None)

    def _ask(self, client: int, prompt: str, options: GenerationOptions, texts: list[str] | None) -> None:
        """Submit a request. Its text goes to its place in ``texts``; a timed one has none, and its length is checked."""
        sent = time.perf_counter_ns()
        source = np.array(self._texts.tokens(prompt), dtype=np.int64)
        start = np.array([self._texts.task.decoder_start_token_id], dtype=np.int64)
        limit = options.max_total_length(len(start), capacity=self._capacity)
        decoding = decoding_for(options, start, max_length=limit, encoder_ids=source)

        def on_end(error: BaseException | None) -> None:
            try:
                if error is None:
                    tokens = decoding.sequences()[0].token_ids
                    text = self._texts.decode(tokens)
                    if texts is None:
                        require_tokens(len(tokens), self._new_tokens)
                    else:
                        texts[client] = text
            except Exception as own:  # it must not be lost in the engine's thread
                error = own
            self._ended.put((client, [sent, time.perf_counter_ns()], error))

        self._engine.submit(GenerationRequest(start, decoding, on_end, source=source))
