"""Rewrites texts with an encoder-decoder, in one process. Triton's Python backend runs this file as ``<name>/1/model.py``.

The model is an ordinary one: a request gets one answer. It answers later, so that the rows of many requests are generated together.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .digest import row_digests
from .generation.decoding_choice import decoding_for
from .generation.encoder_decoder_step import EncoderDecoderGraph
from .generation.engine_request import GenerationRequest
from .generation.generation_options import GenerationOptions
from .generation.recipient import Recipient
from .generation.row_answers import EndedRow, RowAnswer, RowAnswers
from .generation.service import GenerationService, deadline_of, read_model
from .generation.source_reader import SourceReader
from .generation.text_stream import Detokenizer, text_streams
from .row_preparation import decoded
from .tasks import load_served
from .tasks._text2text import Text2TextTask
from .types import Integers, without_request_id

TEXT = "TEXT"


class TritonPythonModel:
    """Reads requests; the service generates and answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with its tokenizer, and start to generate."""
        folder, settings, engine = read_model(args)
        task = load_served(settings["task"], settings["settings"])
        if not isinstance(task, Text2TextTask):
            raise TypeError(f"settings.json is that of {task.name}, which is no task of an encoder-decoder")
        task.check_options()
        self._capacity, self._task = engine.capacity, task
        length = settings["max_length"]
        self._sources = SourceReader(folder, max_length=length, split_special_tokens=settings["split_special_tokens"])
        self._detokenizer = Detokenizer(self._sources.tokenizer)
        graph = EncoderDecoderGraph(
            folder / "encoder.onnx",
            folder / "decoder.onnx",
            slots=engine.slots,
            capacity=engine.capacity,
            source_capacity=length,
            threads=engine.threads,
        )
        if task.vocab_size != graph.vocab_size:
            raise ValueError(f"settings.json says {task.vocab_size} tokens, but the graph scores {graph.vocab_size}")
        self._service: GenerationService[EndedRow] = GenerationService(graph, engine, args)

    def execute(self, requests: list[Any]) -> None:
        """Have requests answered. One that cannot be used is refused here."""
        self._service.take(requests, self._read)

    def finalize(self) -> None:
        """End what still runs, and send what is there."""
        self._service.close()

    def _read(self, request: Any, recipient: Recipient) -> list[GenerationRequest]:
        raw = {TEXT: pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy().reshape(-1).tolist()}
        if not raw[TEXT]:
            raise ValueError(f"{TEXT} has no rows: send one text or more")
        task = self._task.with_options(without_request_id(json.loads(request.parameters() or "{}")))
        (texts,) = decoded(raw)
        sources = self._sources.read(texts, task)
        options = task.generation_options
        if task.stop_sequence is not None:
            options = options.ending_at([self._sources.first_token(task.stop_sequence)], vocab_size=task.vocab_size)
        start = np.array([task.decoder_start_token_id], dtype=np.int64)
        max_length = options.max_total_length(len(start), capacity=self._capacity)
        requested = frozenset(request.requested_output_names())
        answers = RowAnswers(recipient, row_digests(raw), sources.truncated, requested, self._service.outbox)
        deadline, made = deadline_of(request), []
        for place, source in enumerate(sources.tokens):
            row = self._row(options, start)
            row.decoding = decoding_for(options, start, max_length=max_length, on_token=row.on_token, encoder_ids=source)
            on_end = partial(answers.on_end, place, row)
            made.append(GenerationRequest(start, row.decoding, on_end, recipient, deadline, source))
        return made

    def _row(self, options: GenerationOptions, start: Integers) -> RowAnswer:
        """Prepare the answer to one row."""
        streams = text_streams(self._detokenizer, start.tolist(), options, streams=False) if options.stop_strings else []
        return RowAnswer(partial(self._sources.tokenizer.decode, skip_special_tokens=True), streams)
