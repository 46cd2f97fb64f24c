"""Generates text: text → text, in one process. Triton's Python backend runs this file as ``<name>/1/model.py``.

The model is decoupled: a request gets one answer, or many parts of one if it asks for a stream.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .digest import row_digests
from .generation.answer import FINAL, GenerationAnswer, Outbox
from .generation.engine import Engine, GenerationRequest, QueueFullError
from .generation.engine_settings import EngineSettings, TextSettings
from .generation.generation_options import GenerationOptions
from .generation.process_life import end_process, end_with_parent
from .generation.prompt_reader import PromptReader
from .generation.request_reader import read_fields
from .generation.sampling import Sampling
from .generation.step_graph import DecoderGraph
from .generation.text_stream import Detokenizer, TextStream
from .refusals import refused, unavailable

FLAGS = ("stream", "exclude_input_in_output", "return_finish_reason", "return_num_output_tokens")
"""Optional inputs of Triton's vLLM backend: BOOL ``[1]``."""
BUSY = "this model has more requests than may wait: try again later"


class TritonPythonModel:
    """Reads requests; the engine's thread generates, and the outbox answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with its tokenizer, and start to generate."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        engine, text = EngineSettings.from_settings(settings), TextSettings.from_settings(settings)
        if not text.parallel:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        end_with_parent()
        graph = DecoderGraph(folder / "model.onnx", slots=engine.slots, capacity=engine.capacity, threads=engine.threads)
        self._capacity, self._vocab_size = engine.capacity, graph.vocab_size
        self._defaults = GenerationOptions.from_settings(settings["generation"], vocab_size=graph.vocab_size)
        self._prompts = PromptReader(folder, text, capacity=engine.capacity)
        self._detokenizer = Detokenizer(self._prompts.tokenizer, clean_up=text.clean_up_tokenization_spaces)
        self._outbox = Outbox(_end)
        self._engine = Engine(graph, chunk=engine.chunk, max_waiting=engine.max_waiting, on_failure=_end)
        self._engine.start()

    def execute(self, requests: list[Any]) -> None:
        """Let the engine answer requests. One that cannot be used is refused here."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._submit(request, sender)
            except (KeyboardInterrupt, SystemExit):
                raise
            except QueueFullError:
                sender.send(unavailable(BUSY), flags=FINAL)
            except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
                sender.send(refused(error), flags=FINAL)

    def finalize(self) -> None:
        """End what still runs, and send what is there."""
        self._engine.close()
        self._outbox.close()

    def _submit(self, request: Any, sender: Any) -> None:
        raw = _first(request, "text_input")
        flags = {name: bool(value) for name in FLAGS if (value := _first(request, name)) is not None}
        sampling_parameters = _first(request, "sampling_parameters") or b""
        fields = read_fields(flags, sampling_parameters, request.parameters(), self._defaults, vocab_size=self._vocab_size)
        prompt = self._prompts.read(raw, messages=fields.messages)
        max_length = fields.options.max_total_length(len(prompt.tokens), capacity=self._capacity)
        answer = GenerationAnswer(
            sender,
            fields,
            prompt.text,
            int(row_digests({"text_input": [raw]})[0]),
            [self._text(prompt.tokens.tolist(), fields) for _ in range(fields.options.num_return_sequences)],
            self._outbox,
            frozenset(request.requested_output_names()),
        )
        answer.decoding = Sampling(fields.options, prompt.tokens, max_length=max_length, on_token=answer.on_token)
        deadline = time.monotonic() + request.timeout() / 1e6 if request.timeout() else None
        self._engine.submit(GenerationRequest(prompt.tokens, answer.decoding, answer.on_end, sender.is_cancelled, deadline))

    def _text(self, prompt: list[int], fields: Any) -> TextStream:
        options = fields.options
        return TextStream(
            self._detokenizer,
            prompt,
            stop_strings=options.stop_strings,
            include_stop_strings=options.include_stop_strings,
            streams=fields.stream,
        )


def _first(request: Any, name: str) -> Any:
    """Return the first element of an input tensor; None if the request does not have the tensor.

    Raises:
        ValueError: It has no element, or several.
    """
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values: np.ndarray[Any, Any] = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise ValueError(f"{name} must have one element, not {len(values)}")
    return values[0]


def _end(error: BaseException) -> None:
    end_process(error, pb_utils.Logger.log_error)
