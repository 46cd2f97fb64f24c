"""First step of the ensemble: text → token ids. Triton's Python backend runs this file as ``<name>_preprocess/1/model.py``."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .notes import NOTES, pack
from .tasks import load_task
from .tasks.base import Features, Options
from .tokenization import PADDING, TextEncoder


@dataclass
class _Group:
    """Requests that ask for the same options: they are tokenized in one call."""

    options: Options
    columns: list[list[str]]
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """Position of a request, its first row and its last row + 1."""


class TritonPythonModel:
    """Tokenizes all requests of a batch together and answers each with its own unpadded ids."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if not settings["parallel"]:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        self._task = load_task(settings["task"], settings["settings"])
        self._inputs = [tensor.name for tensor in self._task.inputs()]
        self._defaults = self._task.request_options({})
        self._max_model_rows = settings["max_model_rows"]
        self._encoder = TextEncoder(
            str(folder / "tokenizer.json"),
            max_length=settings["max_length"],
            names=settings["model_inputs"],
            padding=PADDING,
            most_rows=self._max_model_rows,
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[str, _Group] = {}
        for index, request in enumerate(requests):
            try:
                self._sort_in(groups, index, request)
            except Exception as error:
                responses[index] = _refused(error)
        for group in groups.values():
            for index, response in self._answered(group):
                responses[index] = response
        return responses

    def _sort_in(self, groups: dict[str, _Group], index: int, request: Any) -> None:
        """Add a request to the group that asks for the same.

        Raises:
            ValueError: a text or an option is not as it must be.
        """
        rows = [_strings(request, name) for name in self._inputs]
        parameters = request.parameters()
        if parameters not in groups:
            given = json.loads(parameters) if parameters else {}
            options = self._task.request_options(given) if given else self._defaults
            groups[parameters] = _Group(options, [[] for _ in self._inputs])
        group = groups[parameters]
        start = len(group.columns[0])
        for column, strings in zip(group.columns, rows, strict=True):
            column.extend(strings)
        group.spans.append((index, start, len(group.columns[0])))

    def _answered(self, group: _Group) -> list[tuple[int, Any]]:
        """Responses to a group's requests, with their positions. Where one of them cannot be taken, it alone is refused."""
        try:
            return self._responses(group)
        except Exception as error:
            if len(group.spans) == 1:
                return [(group.spans[0][0], _refused(error))]
            return [response for alone in _one_by_one(group) for response in self._answered(alone)]

    def _responses(self, group: _Group) -> list[tuple[int, Any]]:
        """As :meth:`_answered`.

        Raises:
            ValueError: one of the requests cannot be taken; the message is for its client.
        """
        features = self._task.features(group.columns, self._encoder, group.options)
        firsts = np.searchsorted(features.origins.owners, [start for _, start, _ in group.spans]).tolist()
        ends = [*firsts[1:], len(features.encodings)]
        return [
            (index, self._response(features, start, slice(first, end)))
            for (index, start, _), first, end in zip(group.spans, firsts, ends, strict=True)
        ]

    def _response(self, features: Features, start: int, rows: slice) -> Any:
        """Tokens and notes of one request, whose first row is ``start`` and whose model rows are ``rows``."""
        encodings = features.encodings[rows]
        if len(encodings) > self._max_model_rows:
            return _refusal(
                f"this request makes {len(encodings)} rows for the model, which takes {self._max_model_rows} at most: "
                "send fewer rows at once, or shorter ones"
            )
        tensors = [pb_utils.Tensor(name, array) for name, array in self._encoder.arrays(encodings).items()]
        if self._task.carries_notes:
            origins = features.origins
            tensors.append(pb_utils.Tensor(NOTES, pack(origins.owners[rows] - start, origins.notes[rows])))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _one_by_one(group: _Group) -> list[_Group]:
    """Each request of a group in a group of its own."""
    return [
        _Group(group.options, [column[start:end] for column in group.columns], [(index, 0, end - start)])
        for index, start, end in group.spans
    ]


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


def _refused(error: Exception) -> Any:
    """The response to a request that could not be taken: a ValueError says why, and of anything else only the log does."""
    if isinstance(error, ValueError):
        return _refusal(str(error))
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError("this request could not be prepared", pb_utils.TritonError.INTERNAL)
    )


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
