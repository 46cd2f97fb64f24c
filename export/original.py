"""The PyTorch original as a plain function of arrays. Imports torch."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnxruntime
import torch

from export.tasks.exported import ExportedTask
from export.verify import Run
from serving.errors import ArtifactError, SetupError
from serving.machine import resolve_device
from serving.manifests import ComputeDevice
from serving.reporting import logger
from serving.runtime.types import Arrays


def original_run(model: Any, task: ExportedTask, *, device: str) -> Run:
    """``model`` on ``device`` (``cpu`` or ``cuda``), giving the tensors that the task reads as float32 ``[rows, …]``."""
    model = model.to(device).eval()

    def run(feed: Arrays) -> Arrays:
        tensors = {name: torch.from_numpy(value).to(device) for name, value in feed.items()}
        if task.grouped:  # each row in a group of its own, as in the graph
            tensors = {name: value.unsqueeze(1) for name, value in tensors.items()}
        with torch.inference_mode():
            outputs = model(**tensors)
            heads = {name: outputs[name].float().cpu().numpy() for name in task.heads}
        return task.apply_output_head(heads, feed)

    return run


def require_length(run: Run, names: list[str], max_length: int, *, padding: Collection[int | None]) -> None:
    """Check that the model takes rows of ``max_length`` tokens.

    Args:
        names: its inputs.
        padding: ids that may stand for padding. The rows are made of another: RoBERTa and its kin count positions by the tokens
            that are no padding, and take any number of those that are.

    Raises:
        ArtifactError: it does not.
    """
    token = next(token for token in itertools.count(2) if token not in padding)  # 0 and 1 are where vocabularies put padding
    values = {"input_ids": token, "token_type_ids": 0}
    feed = {name: np.full((1, max_length), values.get(name, 1), dtype=np.int64) for name in names}
    try:
        run(feed)
    except (IndexError, RuntimeError, ValueError) as error:
        raise ArtifactError(f"the model cannot take {max_length} tokens: {error}", hint="give a smaller --max-length") from error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one core, as each served instance does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def usable_device(device: str) -> ComputeDevice:
    """As :func:`serving.machine.resolve_device` finds it, where torch and ONNX Runtime can both use it; ``auto`` → ``cpu`` if not.

    Raises:
        SetupError: ``gpu`` was asked for and one of them sees none.
    """
    if resolve_device(device) == "cpu":
        return "cpu"
    if torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return "gpu"
    if device == "gpu":
        raise SetupError("torch and ONNX Runtime do not both see a GPU", hint="give --device cpu, or see: tritonize doctor")
    logger.warning("there is a GPU, but torch and ONNX Runtime do not both see it (see: tritonize doctor): going on without")
    return "cpu"
