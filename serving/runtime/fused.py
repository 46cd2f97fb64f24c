"""All steps of an ensemble in one process: text → answer. Triton's Python backend runs this file as ``<name>/1/model.py``.

It answers one request at a time. On a CPU that does not batch, it saves the way between the processes of three steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

from .answering import Answering, request_digests
from .digest import MODEL_DIGEST, row_digests
from .failure_messages import NOT_ANSWERED, NOT_FINITE, NOT_RUN
from .model_session import CPU, open_with_mapped_weights, session_options
from .refusals import failure, logged_failure, refused
from .row_preparation import Preparation, PreparedRows, decoded
from .tasks._encoder import EncoderTask
from .types import Arrays

ALL = slice(None)


class TritonPythonModel:
    """Answers each request by itself."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the task, its tokenizer and the model."""
        folder = Path(args["model_repository"]) / args["model_version"]
        config = json.loads(args["model_config"])
        self._preparation, self._answering = Preparation(folder), Answering(folder)
        self._session = _open(folder / "model.onnx", config)
        self._outputs = [*self._answering.task.model_outputs, MODEL_DIGEST]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests one by one."""
        return [self._response(request) for request in requests]

    def _response(self, request: Any) -> Any:
        """Answer a request in the three steps of an ensemble, with the messages of that step which fails."""
        message = None
        try:
            task, prepared = self._prepared(request)
            feed = self._preparation.model_inputs(prepared, ALL)
            message = NOT_RUN
            outputs = dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
            if not all(np.isfinite(outputs[name]).all() for name in task.model_outputs):
                return failure(NOT_FINITE)
            message = NOT_ANSWERED
            answers = self._answered(task, prepared, outputs)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the tokenizer's Rust code is not an Exception
            return refused(error) if message is None else logged_failure(error, message)
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in answers.items()])

    def _prepared(self, request: Any) -> tuple[EncoderTask, PreparedRows]:
        names = self._preparation.input_names
        raw = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy().reshape(-1).tolist() for name in names}
        columns = decoded(raw)
        task = self._preparation.with_parameters(request.parameters())
        return task, self._preparation.prepare(task, columns, row_digests(raw))

    def _answered(self, task: EncoderTask, prepared: PreparedRows, outputs: Arrays) -> Arrays:
        origins = prepared.features.origins
        return self._answering.answer(task, outputs, origins, request_digests(outputs[MODEL_DIGEST][:, 0], origins))


def _open(path: Path, config: dict[str, Any]) -> Any:
    threads = int(config["parameters"]["intra_op_thread_count"]["string_value"])
    session = None
    if sum(group["count"] for group in config["instance_group"]) > 1:
        session = open_with_mapped_weights(path, threads=threads)
        if session is None:
            pb_utils.Logger.log_warn(f"{path}: the weights cannot be mapped, so every instance holds a copy of them")
    return session or onnxruntime.InferenceSession(str(path), session_options(threads=threads), providers=[CPU])
