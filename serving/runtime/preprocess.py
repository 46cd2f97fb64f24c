"""First step of the ensemble: text → token ids. Triton's Python backend runs this file as ``<name>_preprocess/1/model.py``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from .tasks import load_task
from .tokenization import PADDING, TextEncoder


class TritonPythonModel:
    """Tokenizes all requests of a batch in one call and answers each with its own unpadded ids."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if not settings["parallel"]:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        self._task = load_task(settings["task"], settings["settings"])
        self._inputs = [tensor.name for tensor in self._task.inputs()]
        self._encoder = TextEncoder(
            str(folder / "tokenizer.json"),
            max_length=settings["max_length"],
            names=settings["model_inputs"],
            padding=PADDING,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        columns: list[list[str]] = [[] for _ in self._inputs]
        spans: list[tuple[int, int, int]] = []  # request, its first row, its last row + 1
        for index, request in enumerate(requests):
            start = len(columns[0])
            try:
                rows = [_strings(request, name) for name in self._inputs]
            except ValueError as error:
                responses[index] = _refusal(str(error))
                continue
            for column, strings in zip(columns, rows, strict=True):
                column.extend(strings)
            spans.append((index, start, len(columns[0])))
        encodings = self._encoder.encode(self._task.texts(columns)) if spans else []
        for index, start, end in spans:
            responses[index] = _response(self._encoder.arrays(encodings[start:end]))
        return responses


def _strings(request: Any, name: str) -> Sequence[str]:
    """A BYTES ``[rows, 1]`` tensor as strings.

    Raises:
        ValueError: a row is not UTF-8.
    """
    rows = pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1)
    strings: list[str] = []
    try:
        for row in rows:
            strings.append(row.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, row {len(strings)}: byte {error.start} is not valid UTF-8") from None
    return strings


def _response(arrays: dict[str, Any]) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in arrays.items()])


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
