"""Last step of the ensemble: logits → answers. Triton's Python backend runs this file as ``1/model.py`` of the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .answering import Answering, request_digests
from .digest import MODEL_DIGEST, ForeignAnswerError
from .failure_messages import NOT_ANSWERED, NOT_FINITE
from .metadata import METADATA, Unpacked, unpack
from .refusals import failure, logged_failure
from .tasks._encoder import EncoderTask
from .types import Arrays, Integers, Origins


class TritonPythonModel:
    """Turns the model's outputs for all requests of a batch into answers at once, and gives each request its rows."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the task, and the tokenizer where the task needs it."""
        self._answering = Answering(Path(args["model_repository"]) / args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer all requests of a batch. Requests with the same parameters and shapes are answered together."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[int]] = {}
        outputs = [[_array(request, name) for name in self._answering.task.model_outputs] for request in requests]
        for index, (request, arrays) in enumerate(zip(requests, outputs, strict=True)):
            groups.setdefault((request.parameters(), *(array.shape[1:] for array in arrays)), []).append(index)
        for members in groups.values():
            answered = self._isolated([requests[index] for index in members], [outputs[index] for index in members])
            for index, response in zip(members, answered, strict=True):
                responses[index] = response
        return responses

    def _isolated(self, requests: list[Any], outputs: list[Any]) -> list[Any]:
        """Answer requests with the same parameters.

        The first step has checked them, but clients can send requests to this step directly: one that cannot be answered is refused
        alone.
        """
        try:
            digests = [_array(request, MODEL_DIGEST).reshape(-1) for request in requests]
            metadata = (
                unpack([_array(request, METADATA) for request in requests]) if self._answering.task.carries_metadata else None
            )
            if metadata is not None:
                _require_own_answers(digests, metadata)
            return self._answered(
                self._answering.with_parameters(requests[0].parameters()), outputs, np.concatenate(digests), metadata
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            if len(requests) > 1:
                pairs = zip(requests, outputs, strict=True)
                return [response for request, arrays in pairs for response in self._isolated([request], [arrays])]
            return [logged_failure(error, str(error) if isinstance(error, ForeignAnswerError) else NOT_ANSWERED)]

    def _answered(
        self, task: EncoderTask, parts: Sequence[Sequence[Any]], digests: Integers, metadata: Unpacked | None
    ) -> list[Any]:
        """Answer requests with the same parameters, whose model outputs have one shape per row.

        Args:
            task: The task with the requests' parameters.
            parts: The model's outputs, by request and :attr:`~serving.runtime.tasks._encoder.EncoderTask.model_outputs`.
            digests: INT64 ``[model rows]``, as they come from the model.
            metadata: Of all requests, where the task carries it.
        """
        outputs = {
            name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for name, arrays in zip(task.model_outputs, zip(*parts, strict=True), strict=True)
        }
        if metadata is None:
            counts = [len(arrays[0]) for arrays in parts]
            origins = Origins(np.arange(sum(counts)))
        else:
            origins, counts = metadata.origins, metadata.request_rows
            digests = request_digests(digests, origins)
        answers = self._answering.answer(task, outputs, origins, digests)
        responses, start = [], 0
        for arrays, count in zip(parts, counts, strict=True):
            responses.append(
                _response(answers, slice(start, start + count), finite=all(np.isfinite(array).all() for array in arrays))
            )
            start += count
        return responses


def _require_own_answers(digests: Sequence[Integers], metadata: Unpacked) -> None:
    """Check that what came through the model belongs to the request whose metadata went around it.

    Triton passes an old reply of a step that paused on as the reply to the next request.

    Args:
        digests: By request, the digest of each model row as it comes from the model.
        metadata: Metadata of the same requests.

    Raises:
        ForeignAnswerError: A digest is not that of the metadata, or the model rows of a request row have different ones.
    """
    mapping, expected = metadata.origins.sample_mapping, metadata.digests
    firsts = np.searchsorted(mapping, np.arange(metadata.origins.count))
    if (
        list(map(len, digests)) != metadata.model_rows
        or not np.array_equal(np.concatenate(digests), expected)
        or not np.array_equal(expected[firsts][mapping], expected)
    ):
        raise ForeignAnswerError


def _array(request: Any, name: str) -> Any:
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()


def _response(answers: Arrays, rows: slice, *, finite: bool) -> Any:
    if not finite:
        return failure(NOT_FINITE)
    tensors = [pb_utils.Tensor(name, array[rows]) for name, array in answers.items()]
    return pb_utils.InferenceResponse(output_tensors=tensors)
