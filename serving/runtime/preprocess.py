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

from .digest import REQUEST_DIGEST, mark_truncated, row_digests
from .metadata import METADATA, pack
from .tasks import load_served, parameter_reader
from .tasks.base import ServedTask
from .tokenization import PADDING, TextEncoder
from .types import Features, Integers

MOST_CHARACTERS = 2**17
"""Longest text that is tokenized where it cannot be cut, or as much of it as may be read to see what the model gets.

The tokens of 131,072 characters fill a model of 8,192 tokens at 16 characters for each. Tokenizing them took 0.15 s on one core at
most, of 22 kinds of text tried with five tokenizers; all requests wait that long."""


@dataclass
class _Group:
    """Requests with the same parameters, which are tokenized in one call.

    Attributes:
        task: The task with those parameters.
        columns: Rows of all requests, by input tensor.
        digests: The digest of each of these rows, by request.
        spans: Position of each request in the batch, its first row, and the row after its last.
    """

    task: ServedTask
    columns: list[list[str]]
    digests: list[Integers] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)


class TritonPythonModel:
    """Tokenizes all requests of a batch together and answers each with its own unpadded ids."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the task and its tokenizer."""
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        if not settings["parallel"]:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # every core is the model's
        self._task = load_served(settings["task"], settings["settings"])
        self._task.check_options()
        self._with_parameters = parameter_reader(self._task)
        self._inputs = [tensor.name for tensor in self._task.inputs()]
        self._max_model_rows = settings["max_model_rows"]
        self._encoder = TextEncoder(
            str(folder / "tokenizer.json"),
            max_length=settings["max_length"],
            names=settings["model_inputs"],
            padding=PADDING,
            most_rows=self._max_model_rows,
            most_characters=MOST_CHARACTERS,
            split_special_tokens=settings["split_special_tokens"],
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a batch. A request that cannot be used is refused alone."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[str, _Group] = {}
        for index, request in enumerate(requests):
            try:
                self._sort_in(groups, index, request)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                responses[index] = _refused(error)
        for group in groups.values():
            for index, response in self._answered(group):
                responses[index] = response
        return responses

    def _sort_in(self, groups: dict[str, _Group], index: int, request: Any) -> None:
        """Add a request to the group with the same parameters.

        Raises:
            ValueError: A text or a parameter is invalid.
        """
        raw = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1).tolist() for name in self._inputs}
        rows = [_strings(column, name) for name, column in raw.items()]
        parameters = request.parameters()
        if parameters not in groups:
            groups[parameters] = _Group(self._with_parameters(parameters), [[] for _ in self._inputs])
        group = groups[parameters]
        start = len(group.columns[0])
        for column, strings in zip(group.columns, rows, strict=True):
            column.extend(strings)
        group.digests.append(row_digests(raw))
        group.spans.append((index, start, len(group.columns[0])))

    def _answered(self, group: _Group) -> list[tuple[int, Any]]:
        """Answer a group's requests; return the responses with their positions. A request that cannot be used is refused alone."""
        try:
            return self._responses(group)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            if len(group.spans) == 1:
                return [(group.spans[0][0], _refused(error))]
            return [response for alone in _one_by_one(group) for response in self._answered(alone)]

    def _responses(self, group: _Group) -> list[tuple[int, Any]]:
        """Answer a group's requests together.

        Raises:
            ValueError: One of the requests cannot be used. The message is for its client.
        """
        features = group.task.preprocess(group.columns, self._encoder)
        digests = mark_truncated(np.concatenate(group.digests), features.truncated_rows)[features.origins.sample_mapping]
        firsts = np.searchsorted(features.origins.sample_mapping, [start for _, start, _ in group.spans]).tolist()
        ends = [*firsts[1:], len(features.encodings)]
        return [
            (index, self._response(features, digests[first:end], start, slice(first, end)))
            for (index, start, _), first, end in zip(group.spans, firsts, ends, strict=True)
        ]

    def _response(self, features: Features, digests: Integers, start: int, rows: slice) -> Any:
        """Build the response to one request.

        Args:
            features: The model rows of all requests.
            digests: INT64, the digest of the request row of each of this request's model rows, marked if that row was truncated.
            start: Position of the request's first row.
            rows: Positions of the request's model rows.
        """
        encodings = features.encodings[rows]
        if len(encodings) > self._max_model_rows:
            return _refusal(
                f"this request makes {len(encodings)} rows for the model, which takes {self._max_model_rows} at most: "
                "send fewer rows at once, or shorter ones"
            )
        tensors = [pb_utils.Tensor(name, array) for name, array in self._encoder.arrays(encodings).items()]
        tensors.append(pb_utils.Tensor(REQUEST_DIGEST, digests[:, None]))
        if self._task.carries_metadata:
            origins = features.origins
            packed = pack(origins.sample_mapping[rows] - start, digests, origins.metadata[rows])
            tensors.append(pb_utils.Tensor(METADATA, packed))
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _one_by_one(group: _Group) -> list[_Group]:
    """Put each request of a group into a group of its own."""
    return [
        _Group(group.task, [column[start:end] for column in group.columns], [digests], [(index, 0, end - start)])
        for (index, start, end), digests in zip(group.spans, group.digests, strict=True)
    ]


def _strings(rows: Sequence[bytes], name: str) -> Sequence[str]:
    """Decode the elements of a BYTES tensor.

    Raises:
        ValueError: A row is not UTF-8.
    """
    strings: list[str] = []
    try:
        for row in rows:
            strings.append(row.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, row {len(strings)}: byte {error.start} is not valid UTF-8") from None
    return strings


def _refused(error: BaseException) -> Any:
    """Build the response to a request that failed. A ``ValueError`` is for the client; anything else goes to the log only."""
    if isinstance(error, ValueError):
        return _refusal(str(error))
    pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError("this request could not be prepared", pb_utils.TritonError.INTERNAL)
    )


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
