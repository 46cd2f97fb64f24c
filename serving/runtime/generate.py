"""Generates text: text → text, in one process. Triton's Python backend runs this file as ``<name>/1/model.py``.

The model is decoupled: a request gets one answer, or many parts of one if it asks for a stream.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .digest import row_digests
from .generation.answer import GenerationAnswer, Outbox
from .generation.beam_search import BeamSearch
from .generation.engine import Engine, GenerationRequest
from .generation.engine_settings import EngineSettings
from .generation.process_life import end_process, end_with_parent
from .generation.prompt_reader import PromptReader
from .generation.request_reader import read_fields
from .generation.responses import submit_each
from .generation.sampling import Sampling
from .generation.step_graph import DecoderGraph
from .generation.text_stream import Detokenizer, TextStream
from .tasks.text_generation import TextGeneration

TEXT_INPUT = "text_input"
FLAGS = ("stream", "exclude_input_in_output", "return_finish_reason", "return_num_output_tokens")
"""Optional inputs of Triton's vLLM backend: BOOL ``[1]``."""


class TritonPythonModel:
    """Reads requests; the engine's thread generates, and the outbox answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with its tokenizer, and start to generate."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        engine = EngineSettings.from_settings(settings)
        self._capacity, self._task = engine.capacity, TextGeneration.from_settings(settings["settings"])
        self._task.check_options()
        self._prompts = PromptReader(
            folder, self._task, capacity=engine.capacity, split_special_tokens=settings["split_special_tokens"]
        )
        self._detokenizer = Detokenizer(self._prompts.tokenizer)
        graph = DecoderGraph(folder / "model.onnx", slots=engine.slots, capacity=engine.capacity, threads=engine.threads)
        if self._task.vocab_size != graph.vocab_size:
            raise ValueError(f"settings.json says {self._task.vocab_size} tokens, but the graph scores {graph.vocab_size}")
        self._outbox = Outbox(_end)
        self._engine = Engine(graph, chunk=engine.chunk, max_waiting=engine.max_waiting, on_failure=_end)
        self._engine.start()
        end_with_parent()

    def execute(self, requests: list[Any]) -> None:
        """Let the engine answer requests. One that cannot be used is refused here."""
        submit_each(requests, self._submit)

    def finalize(self) -> None:
        """End what still runs, and send what is there."""
        self._engine.close()
        self._outbox.close()

    def _submit(self, request: Any, sender: Any) -> None:
        raw = _element(request, TEXT_INPUT)
        flags = {name: bool(value) for name in FLAGS if (value := _element(request, name)) is not None}
        fields = read_fields(flags, _element(request, "sampling_parameters") or b"", request.parameters(), self._task)
        prompt = self._prompts.read(raw, fields.task)
        options, tokens = fields.options, prompt.tokens
        if fields.task.stop_sequence is not None:
            options = options.ending_at(self._prompts.ids(fields.task.stop_sequence), vocab_size=self._task.vocab_size)
        max_length = options.max_total_length(len(tokens), capacity=self._capacity)
        texts = [
            TextStream(
                self._detokenizer,
                tokens.tolist(),
                stop_strings=options.stop_strings,
                include_stop_strings=options.include_stop_strings,
                streams=fields.stream,
            )
            for _ in range(options.num_return_sequences)
        ]
        digest = int(row_digests({TEXT_INPUT: [raw]})[0])
        answer = GenerationAnswer(sender, fields, prompt, digest, texts, self._outbox, frozenset(request.requested_output_names()))
        if options.num_beams > 1:
            answer.decoding = BeamSearch(options, tokens, max_length=max_length)
        else:
            answer.decoding = Sampling(options, tokens, max_length=max_length, on_token=answer.on_token)
        deadline = time.monotonic() + request.timeout() / 1e6 if request.timeout() else None
        self._engine.submit(GenerationRequest(tokens, answer.decoding, answer.on_end, sender.is_cancelled, deadline))


def _element(request: Any, name: str) -> Any:
    """Return the element of an input tensor; None if the request does not have the tensor.

    Raises:
        ValueError: It has no element, or several.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise ValueError(f"{name} must have one element, not {len(values)}")
    return values[0]


def _end(error: BaseException) -> None:
    end_process(error, pb_utils.Logger.log_error)
