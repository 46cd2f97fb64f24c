"""Run the graphs of an encoder-decoder as they are served: with the engine, its cache and its ways of decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from export import graph
from export.generation.slotted_decoder import Logits
from export.long_steps import tracked
from serving.errors import ExportError, first_line
from serving.runtime.generation.decoding_choice import decoding_for
from serving.runtime.generation.encoder_decoder_step import EncoderDecoderGraph
from serving.runtime.generation.engine import Engine
from serving.runtime.generation.engine_request import GenerationRequest
from serving.runtime.generation.generation_options import GenerationOptions
from serving.runtime.generation.step_graph import PromptChunk
from serving.runtime.types import JsonValue


class ServedEncoderDecoder:
    """Two graphs with room for some rows.

    Args:
        encoder: The file ``encoder.onnx``.
        decoder: The file ``decoder.onnx``.
        start: Tokens that the decoder begins with.
        rows: Most rows at a time.
        capacity: Most tokens of a row, start tokens included.
        source_capacity: Most tokens of a source.
        threads: Threads of one operator; 0: all cores.

    Raises:
        ExportError: ONNX Runtime cannot load the graphs.
    """

    def __init__(
        self,
        encoder: Path,
        decoder: Path,
        start: Sequence[int],
        *,
        rows: int,
        capacity: int,
        source_capacity: int,
        threads: int = 0,
    ) -> None:
        self.start = np.array(start, dtype=np.int64)
        sizes = {"slots": rows, "capacity": capacity, "source_capacity": source_capacity}
        try:
            self.graph = EncoderDecoderGraph(encoder, decoder, **sizes, threads=threads)
        except (*graph.FAILURES, RuntimeError) as error:
            raise ExportError(f"ONNX Runtime cannot load the graphs: {first_line(error)[:400]}") from error

    def logits(self, sources: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Logits]:
        """Compute the logits of each token of some answers, given those before it: all rows together, token by token.

        Args:
            sources: Tokens of each source.
            answers: Tokens of each answer, without the start tokens.

        Returns:
            ``[tokens, vocabulary]`` of each row.
        """
        found: list[Logits] = []
        for first in tracked(range(0, len(sources), self.graph.slots), "tokens of the variant"):
            of_batch = slice(first, first + self.graph.slots)
            found += self._batch_logits(sources[of_batch], answers[of_batch])
        return found

    def _batch_logits(self, sources: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Logits]:
        counts = [len(answer) for answer in answers]
        tokens = np.zeros((len(answers), max(counts)), dtype=np.int64)
        for row, answer in zip(tokens, answers, strict=True):
            row[: len(answer)] = answer
        chunks = [PromptChunk(self.start, source=np.array(source, dtype=np.int64)) for source in sources]
        steps = [self.graph.prefill(0, chunks).copy()]
        for place in range(max(counts) - 1):
            lengths = np.full(len(answers), len(self.start) + place)
            steps.append(self.graph.step(tokens[:, place], lengths).copy())
        together = np.stack(steps, axis=1)
        return [logits[:count] for logits, count in zip(together, counts, strict=True)]

    def answers(self, sources: Sequence[Sequence[int]], settings: Mapping[str, JsonValue]) -> list[list[int]]:
        """Generate an answer to each source, all at once.

        Args:
            sources: Tokens of each source.
            settings: Options of generation.

        Returns:
            Tokens of each answer, without the start tokens.

        Raises:
            ExportError: An answer could not be generated.
        """
        options = GenerationOptions.from_settings(settings, vocab_size=self.graph.vocab_size)
        limit = options.max_total_length(len(self.start), capacity=self.graph.capacity)
        ended: list[BaseException | None] = []
        engine = Engine(self.graph, chunk=len(self.start) * self.graph.slots, max_waiting=len(sources), on_failure=ended.append)
        decodings = []
        for source in sources:
            ids = np.array(source, dtype=np.int64)
            decoding = decoding_for(options, self.start, max_length=limit, encoder_ids=ids)
            engine.submit(GenerationRequest(self.start, decoding, ended.append, source=ids))
            decodings.append(decoding)
        while len(ended) < len(sources):
            engine.round()
        for why in ended:
            if why is not None:
                raise ExportError(f"an answer could not be generated: {type(why).__name__}: {why}") from why
        return [list(decoding.sequences()[0].token_ids) for decoding in decodings]
