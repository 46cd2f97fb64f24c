"""The PyTorch original as a plain function of arrays. Imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from export.verify import Run
from serving.errors import ArtifactError
from serving.runtime.tasks.base import Arrays, Task


def original_run(model: Any, task: Task, *, device: str) -> Run:
    """``model`` on ``device`` (``cpu`` or ``cuda``), giving the tensor that the task reads as float32 ``[rows, …]``."""
    model = model.to(device).eval()

    def run(feed: Arrays) -> Any:
        tensors = {name: torch.from_numpy(value).to(device) for name, value in feed.items()}
        with torch.inference_mode():
            return model(**tensors)[task.logits].float().cpu().numpy()

    return run


def require_length(run: Run, names: list[str], max_length: int) -> None:
    """Check that the model takes rows of ``max_length`` tokens.

    Raises:
        ArtifactError: it does not.
    """
    feed = {name: np.full((1, max_length), name != "token_type_ids", dtype=np.int64) for name in names}
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


def resolve_device(device: str) -> str:
    """``auto`` → ``gpu`` where both torch and ONNX Runtime see one, else ``cpu``.

    Raises:
        SetupError: ``gpu`` was asked for and one of them sees none.
    """
    import onnxruntime

    from serving.errors import SetupError

    seen = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "gpu" and not seen:
        raise SetupError("torch and ONNX Runtime do not both see a GPU", hint="give --device cpu, or see: tritonize doctor")
    return "gpu" if seen and device != "cpu" else "cpu"
