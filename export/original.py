"""Run the PyTorch original as a function of numpy arrays. Imports torch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch

from export.model_inputs import IDS, MASK, TYPES
from export.tasks._encoder import ExportedEncoderTask
from export.verify import Run
from serving.errors import ArtifactError, ExportError, SetupError, first_line
from serving.machine import resolve_device
from serving.options import ComputeDevice
from serving.reporting import logger
from serving.runtime.types import Arrays

VISIBLE = 1e-3
"""Smallest difference of a model's outputs that is one, as a share of the largest output above 1."""


def original_run(model: Any, task: ExportedEncoderTask, *, device: str) -> Run:
    """Wrap a PyTorch model as a function from model inputs to the outputs that the task reads.

    Args:
        model: The ``transformers`` model.
        task: The task.
        device: ``cpu`` or ``cuda``.

    Returns:
        The function. Its outputs are float32 ``[rows, …]``. It raises an ExportError if the model cannot compute a batch.
    """
    model = model.to(device).eval()

    def run(feed: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(value).to(device) for name, value in feed.items()}
        if task.grouped:  # one row per group, as in the exported graph
            tensors = {name: value.unsqueeze(1) for name, value in tensors.items()}
        with torch.inference_mode():
            try:
                outputs = model(**tensors)
            except (IndexError, RuntimeError, ValueError) as error:
                raise ExportError(f"{type(model).__name__} cannot compute a batch of rows: {first_line(error)}") from error
            heads = {name: outputs[name].float().cpu().numpy() for name in task.heads}
        return task.apply_output_head(heads, feed)

    return run


def require_length(run: Run, names: list[str], max_length: int, *, padding: Collection[int | None]) -> None:
    """Check that the model takes rows of ``max_length`` tokens.

    Args:
        run: The model.
        names: Names of its inputs.
        max_length: Number of tokens.
        padding: Ids that may be the padding token. The test row contains another token, because RoBERTa and similar models do not
            count the positions of padding and accept any number of padding tokens.

    Raises:
        ArtifactError: The model does not.
    """
    token = next(token for token in itertools.count(2) if token not in padding)  # ids 0 and 1 are often padding
    values = {"input_ids": token, "token_type_ids": 0}
    feed = {name: np.full((1, max_length), values.get(name, 1), dtype=np.int64) for name in names}
    try:
        run(feed)
    except ExportError as error:
        raise ArtifactError(
            f"the model cannot take {max_length} tokens: {error.message}", hint="give a smaller --max-length"
        ) from error


def require_no_types(run: Run, max_length: int) -> None:
    """Check that a model whose graph has no ``token_type_ids`` ignores those that its tokenizer gives.

    GPT-2 takes them as further tokens, so zeros change its answers, and the exported graph has no input for them.

    Args:
        run: The model.
        max_length: Maximum tokens of a row.

    Raises:
        ExportError: It does not.
    """
    tokens = min(8, max_length)
    feed: Arrays = {IDS: np.arange(2, 2 + tokens, dtype=np.int64)[None], MASK: np.ones((1, tokens), dtype=np.int64)}
    without, given = run(feed), run({**feed, TYPES: np.zeros((1, tokens), dtype=np.int64)})
    for name, values in without.items():
        if np.abs(values - given[name]).max() > VISIBLE * max(1.0, float(np.abs(values).max())):
            raise ExportError(
                f"the tokenizer gives {TYPES}, which change the answers of this model, but its exported graph has no such input",
                hint=f'if the checkpoint was trained without them, set "model_input_names": ["{IDS}", "{MASK}"] '
                "in its tokenizer_config.json",
            )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as each served instance is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def usable_device(device: Literal["auto", ComputeDevice]) -> ComputeDevice:
    """Choose a device that torch and ONNX Runtime can both use.

    Args:
        device: ``auto``, ``cpu`` or ``gpu`` (see :func:`serving.machine.resolve_device`).

    Returns:
        The device. ``auto`` becomes ``cpu`` if one of the libraries cannot use the GPU.

    Raises:
        SetupError: ``gpu`` was requested, and one of the libraries does not find a GPU.
    """
    if resolve_device(device) == "cpu":
        return "cpu"
    if torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return "gpu"
    if device == "gpu":
        raise SetupError("torch or ONNX Runtime does not find a GPU", hint="give --device cpu, or see: tritonize doctor")
    logger.warning("using the CPU: the machine has a GPU, but torch or ONNX Runtime does not find it (see: tritonize doctor)")
    return "cpu"
