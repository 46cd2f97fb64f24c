"""First step of the ensemble: text → token ids. Triton's Python backend runs this file as ``1/model.py`` of the step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .digest import row_digests
from .refusals import refusal, refused
from .row_preparation import Preparation, PreparedRows, decoded
from .tasks._encoder import EncoderTask
from .types import Integers


@dataclass
class _Group:
    """Requests with the same parameters, which are tokenized in one call.

    Attributes:
        task: The task with those parameters.
        columns: Rows of all requests, by input tensor.
        digests: The digest of each of these rows, by request.
        spans: Position of each request in the batch, its first row, and the row after its last.
    """

    task: EncoderTask
    columns: list[list[str]]
    digests: list[Integers] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)


class TritonPythonModel:
    """Tokenizes all requests of a batch together and answers each with its own unpadded ids."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the task and its tokenizer."""
        self._preparation = Preparation(Path(args["model_repository"]) / args["model_version"])

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
                responses[index] = refused(error)
        for group in groups.values():
            for index, response in self._answered(group):
                responses[index] = response
        return responses

    def _sort_in(self, groups: dict[str, _Group], index: int, request: Any) -> None:
        """Add a request to the group with the same parameters.

        Raises:
            ValueError: A text or a parameter is invalid.
        """
        names = self._preparation.input_names
        raw = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1).tolist() for name in names}
        rows = decoded(raw)
        parameters = request.parameters()
        if parameters not in groups:
            groups[parameters] = _Group(self._preparation.with_parameters(parameters), [[] for _ in names])
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
                return [(group.spans[0][0], refused(error))]
            return [response for alone in _one_by_one(group) for response in self._answered(alone)]

    def _responses(self, group: _Group) -> list[tuple[int, Any]]:
        """Answer a group's requests together.

        Raises:
            ValueError: One of the requests cannot be used. The message is for its client.
        """
        prepared = self._preparation.prepare(group.task, group.columns, np.concatenate(group.digests))
        mapping = prepared.features.origins.sample_mapping
        firsts = np.searchsorted(mapping, [start for _, start, _ in group.spans]).tolist()
        ends = [*firsts[1:], len(mapping)]
        return [
            (index, self._response(prepared, start, slice(first, end)))
            for (index, start, _), first, end in zip(group.spans, firsts, ends, strict=True)
        ]

    def _response(self, prepared: PreparedRows, start: int, rows: slice) -> Any:
        """Build the response to one request.

        Args:
            prepared: The model rows of all requests.
            start: Position of the request's first row.
            rows: Positions of the request's model rows.
        """
        try:
            arrays = self._preparation.model_inputs(prepared, rows) | self._preparation.metadata(prepared, rows, start)
        except ValueError as error:  # for this request alone
            return refusal(str(error))
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in arrays.items()])


def _one_by_one(group: _Group) -> list[_Group]:
    """Put each request of a group into a group of its own."""
    return [
        _Group(group.task, [column[start:end] for column in group.columns], [digests], [(index, 0, end - start)])
        for (index, start, end), digests in zip(group.spans, group.digests, strict=True)
    ]
