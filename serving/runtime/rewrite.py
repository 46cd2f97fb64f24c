"""Rewrites texts with an encoder-decoder, in one process. Triton's Python backend runs this file as ``<name>/1/model.py``.

The model is an ordinary one: a request gets one answer. It answers later, so that the rows of many requests are generated together.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .digest import row_digests
from .generation.beam_search import BeamSearch
from .generation.encoder_decoder_step import EncoderDecoderGraph
from .generation.engine import Engine, GenerationRequest
from .generation.engine_settings import EngineSettings
from .generation.generation_options import GenerationOptions
from .generation.process_life import end_process, end_with_parent
from .generation.responses import submit_each
from .generation.row_answers import RowAnswer, RowAnswers
from .generation.sampling import Sampling
from .generation.source_reader import SourceReader
from .generation.text_stream import Detokenizer, TextStream
from .row_preparation import decoded
from .tasks import load_served
from .tasks._text2text import Text2TextTask
from .types import Integers

TEXT = "TEXT"


class TritonPythonModel:
    """Reads requests; the engine's thread generates and answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with its tokenizer, and start to generate."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        engine, task = EngineSettings.from_settings(settings), load_served(settings["task"], settings["settings"])
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
        self._engine = Engine(graph, chunk=engine.chunk, max_waiting=engine.max_waiting, on_failure=_end)
        self._engine.start()
        end_with_parent()

    def execute(self, requests: list[Any]) -> None:
        """Let the engine answer requests. One that cannot be used is refused here."""
        submit_each(requests, self._submit)

    def finalize(self) -> None:
        """End what still runs."""
        self._engine.close()

    def _submit(self, request: Any, sender: Any) -> None:
        raw = {TEXT: pb_utils.get_input_tensor_by_name(request, TEXT).as_numpy().reshape(-1).tolist()}
        if not raw[TEXT]:
            raise ValueError(f"{TEXT} has no rows: send one text or more")
        task = self._task.with_options(json.loads(request.parameters() or "{}"))
        (texts,) = decoded(raw)
        sources = self._sources.read(texts, task)
        options = task.generation_options
        if task.stop_sequence is not None:
            options = options.ending_at([self._sources.first_token(task.stop_sequence)], vocab_size=task.vocab_size)
        start = np.array([task.decoder_start_token_id], dtype=np.int64)
        max_length = options.max_total_length(len(start), capacity=self._capacity)
        answers = RowAnswers(sender, row_digests(raw), sources.truncated, frozenset(request.requested_output_names()))
        deadline = time.monotonic() + request.timeout() / 1e6 if request.timeout() else None
        rows = [self._row(options, start, source, max_length) for source in sources.tokens]
        submitted = []
        for place, (answer, source) in enumerate(zip(rows, sources.tokens, strict=True)):
            assert answer.decoding is not None
            cancelled, on_end = partial(answers.is_cancelled, sender.is_cancelled), partial(answers.on_end, place, answer)
            submitted.append(GenerationRequest(start, answer.decoding, on_end, cancelled, deadline, source))
        self._engine.submit(*submitted)

    def _row(self, options: GenerationOptions, start: Integers, source: Integers, max_length: int) -> RowAnswer:
        """Prepare the answer to one row."""
        streams = [
            TextStream(
                self._detokenizer,
                start.tolist(),
                stop_strings=options.stop_strings,
                include_stop_strings=options.include_stop_strings,
                streams=False,
            )
            for _ in range(options.num_return_sequences if options.stop_strings else 0)
        ]
        answer = RowAnswer(partial(self._sources.tokenizer.decode, skip_special_tokens=True), streams)
        if options.num_beams > 1:
            answer.decoding = BeamSearch(options, start, max_length=max_length, encoder_ids=source)
        else:
            answer.decoding = Sampling(options, start, max_length=max_length, encoder_ids=source, on_token=answer.on_token)
        return answer


def _end(error: BaseException) -> None:
    end_process(error, pb_utils.Logger.log_error)
