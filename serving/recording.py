"""Records the answers that an ensemble must give to its probe texts, computed in this process from the bundle's graph."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as errors
from tokenizers import Tokenizer

from serving.answer_comparison import TOLERANCES, tensor_values
from serving.bundle import REMEDY, Bundle
from serving.errors import ArtifactError, refusing
from serving.machine import cores
from serving.manifests import ExpectedAnswer, ExpectedTensor, ProbeBody, ProbeInput
from serving.plan import Plan
from serving.reporting import logger
from serving.runtime.digest import TRUNCATED
from serving.runtime.tasks._encoder import EncoderTask
from serving.runtime.tokenization import TextEncoder
from serving.runtime.types import Arrays, Features, Tensor
from serving.undecided import undecided_paths

LONG_TOKENS = 512
"""Number of tokens of the long probe text, or those that the model accepts if these are fewer."""
DATATYPES = {"TYPE_STRING": "BYTES"}
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def probe_body(request: Mapping[str, str]) -> ProbeBody:
    """Return a request of one row in Triton's JSON.

    Args:
        request: The texts by input tensor.
    """
    return ProbeBody(
        inputs=tuple(ProbeInput(name=name, datatype="BYTES", shape=(1, 1), data=(text,)) for name, text in request.items())
    )


def record_answers(bundle: Bundle, plan: Plan, *, most_rows: int) -> tuple[ExpectedAnswer, ...]:
    """Compute the answers to the task's example and to a long text.

    The graph runs on the device it is packaged for if this machine has one, and otherwise on the CPU.

    Args:
        bundle: The bundle.
        plan: How it is served.
        most_rows: Maximum number of rows for the model that one request may become.

    Returns:
        The answers; none, with a warning, if this machine cannot run the graph.

    Raises:
        ArtifactError: The graph is damaged, or gives values that are not finite.
    """
    path = bundle.variant(plan.precision).path
    try:
        with refusing(f"{path} cannot be run", hint=REMEDY):
            session = _session(path, plan.device)
            names = [tensor.name for tensor in session.get_inputs()]
    except ArtifactError as error:
        if not isinstance(error.__cause__, errors.NotImplemented):
            raise
        logger.warning(
            f"no answers are recorded, because this machine cannot run the model: {error.message}; "
            "a server will not compare its answers: package it where it is served"
        )
        return ()
    encoder = bundle.encoder(names)
    encoder.most_rows = most_rows
    requests = _requests(bundle, encoder, most_rows)
    return tuple(_answer(bundle, plan, session, encoder, request) for request in requests)


def _session(path: Path, device: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = cores()
    providers = [CPU]
    if device == "gpu" and CUDA in onnxruntime.get_available_providers():
        with contextlib.redirect_stdout(sys.stderr):  # it prints the libraries that it cannot load
            onnxruntime.preload_dlls()
        providers = [CUDA, CPU]
    return onnxruntime.InferenceSession(str(path), options, providers=providers)


def _requests(bundle: Bundle, encoder: TextEncoder, most_rows: int) -> list[dict[str, str]]:
    """Return the example and, if the task accepts it, the long text."""
    task, example = bundle.encoder_task, bundle.task.example
    tokens = len(_features(task, encoder, example).encodings[0].ids)
    repeats = 1 + min(bundle.max_length, LONG_TOKENS) // max(1, tokens - 3)  # up to three are special tokens
    while repeats > 1:
        request = task.long_example(repeats)
        try:
            if len(_features(task, encoder, request).encodings) <= most_rows:
                return [example, request]
        except ValueError:  # it makes too many rows for the model, or the task refuses what it would have to truncate
            pass
        repeats //= 2
    return [example]


def _features(task: EncoderTask, encoder: TextEncoder, request: Mapping[str, str]) -> Features:
    return task.preprocess([[request[tensor.name]] for tensor in task.inputs()], encoder)


def _answer(bundle: Bundle, plan: Plan, session: Any, encoder: TextEncoder, request: Mapping[str, str]) -> ExpectedAnswer:
    """Compute one answer.

    Raises:
        ArtifactError: The graph fails, or gives values that are not finite.
    """
    task = bundle.encoder_task
    features = _features(task, encoder, request)
    feed = encoder.arrays(features.encodings)
    with refusing(f"{bundle.variant(plan.precision).path} cannot be run", hint=REMEDY):
        outputs = dict(zip(task.model_outputs, session.run(list(task.model_outputs), feed), strict=True))
    if not all(np.isfinite(array).all() for array in outputs.values()):
        raise ArtifactError(
            f"{bundle.variant(plan.precision).path} gives values that are not finite for the example of {task.name}",
            hint="use another --precision",
        )
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer)) if task.needs_tokenizer else None

    truncated = {TRUNCATED: np.array([[bool(features.truncated_rows)]])}

    def answered(arrays: Arrays) -> Arrays:
        if tokenizer is None:
            return task.postprocess(arrays, features.origins) | truncated
        return task.decoded_postprocess(arrays, features.origins, tokenizer) | truncated

    def values(arrays: Arrays) -> list[list[Any]]:
        return [tensor_values(tensor.datatype, tensor.data) for tensor in _tensors(task, answered(arrays))]

    _, undecided = undecided_paths(values, outputs, TOLERANCES[plan.precision])
    exact = _tensors(task, answered(outputs))
    tensors = tuple(
        tensor.model_copy(update={"undecided": tuple(sorted(map("/".join, paths)))})
        for tensor, paths in zip(exact, undecided, strict=True)
    )
    return ExpectedAnswer(request=probe_body(request), outputs=tensors)


def _tensors(task: EncoderTask, answers: Arrays) -> list[ExpectedTensor]:
    """Return the tensors of an answer as Triton writes them in JSON."""
    return [
        ExpectedTensor(
            name=tensor.name,
            datatype=DATATYPES.get(tensor.dtype, tensor.dtype.removeprefix("TYPE_")),
            shape=answers[tensor.name].shape,
            data=tuple(
                value.decode() if isinstance(value, bytes) else value for value in answers[tensor.name].reshape(-1).tolist()
            ),
        )
        for tensor in (*task.outputs(), Tensor(TRUNCATED, "TYPE_BOOL"))
    ]
