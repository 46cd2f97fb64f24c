"""Generates text: text → text, in one process. Triton's Python backend runs this file as ``<name>/1/model.py``.

The model is decoupled: a request gets one answer, or many parts of one if it asks for a stream.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from .digest import row_digests
from .generation.answer import AnswerPart, Ending, GenerationAnswer
from .generation.decoding_choice import decoding_for
from .generation.engine_request import GenerationRequest
from .generation.prompt_reader import PromptReader
from .generation.recipient import Recipient
from .generation.request_reader import NO_LOG_PROBABILITIES, read_fields
from .generation.service import GenerationService, deadline_of, read_model
from .generation.step_graph import DecoderGraph
from .generation.text_stream import Detokenizer, text_streams
from .tasks.text_generation import TextGeneration

TEXT_INPUT = "text_input"
FLAGS = (
    "stream",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_input_tokens",
    "return_num_output_tokens",
    *NO_LOG_PROBABILITIES,
)
"""Optional inputs of Triton's vLLM backend: BOOL ``[1]``."""


class TritonPythonModel:
    """Reads requests; the service generates and answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with its tokenizer, and start to generate."""
        folder, settings, engine = read_model(args)
        self._capacity, self._task = engine.capacity, TextGeneration.from_settings(settings["settings"])
        self._task.check_options()
        self._prompts = PromptReader(
            folder, self._task, capacity=engine.capacity, split_special_tokens=settings["split_special_tokens"]
        )
        self._detokenizer = Detokenizer(self._prompts.tokenizer)
        graph = DecoderGraph(folder / "model.onnx", slots=engine.slots, capacity=engine.capacity, threads=engine.threads)
        if self._task.vocab_size != graph.vocab_size:
            raise ValueError(f"settings.json says {self._task.vocab_size} tokens, but the graph scores {graph.vocab_size}")
        self._service: GenerationService[AnswerPart | Ending] = GenerationService(graph, engine, args)

    def execute(self, requests: list[Any]) -> None:
        """Have requests answered. One that cannot be used is refused here."""
        self._service.take(requests, self._read)

    def finalize(self) -> None:
        """End what still runs, and send what is there."""
        self._service.close()

    def _read(self, request: Any, recipient: Recipient) -> list[GenerationRequest]:
        raw = _element(request, TEXT_INPUT)
        flags = {name: bool(value) for name in FLAGS if (value := _element(request, name)) is not None}
        fields = read_fields(flags, _element(request, "sampling_parameters") or b"", request.parameters(), self._task)
        prompt = self._prompts.read(raw, fields.task)
        prefix = self._prompts.prefix_length(fields.task, special=fields.marks_prefix)
        options, tokens = fields.options.behind_prefix(prefix, fields.given), prompt.tokens
        if fields.task.stop_sequence is not None:
            options = options.ending_at(self._prompts.ids(fields.task.stop_sequence), vocab_size=self._task.vocab_size)
        max_length = options.max_total_length(len(tokens), capacity=self._capacity)
        texts = text_streams(self._detokenizer, tokens.tolist(), options, streams=fields.stream)
        digest = int(row_digests({TEXT_INPUT: [raw]})[0])
        requested = frozenset(request.requested_output_names())
        answer = GenerationAnswer(recipient, fields, prompt, digest, texts, self._service.outbox, requested)
        answer.decoding = decoding_for(options, tokens, max_length=max_length, on_token=answer.on_token)
        return [GenerationRequest(tokens, answer.decoding, answer.on_end, recipient, deadline_of(request, fields.timeout))]


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
