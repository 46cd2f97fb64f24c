"""The device that the ONNX graphs of a model that generates run on: the CPU, whatever this machine has."""

from __future__ import annotations

from typing import Literal

from serving.errors import ArtifactError
from serving.machine import resolve_device
from serving.options import ComputeDevice
from serving.runtime.tasks.text_generation import TextGeneration


def reason_for_cpu(*, name: str, task: str) -> str:
    """Return why a model that generates does not run on a GPU here, and how it would, if vLLM runs models of its task."""
    graphs = "cpu: ONNX graphs of models that generate run on the CPU here"
    return f"{graphs}; for the GPU: {_vllm_command(name)}" if task == TextGeneration.name else graphs


def unused_gpu(device: Literal["auto", ComputeDevice], *, name: str, task: str) -> str | None:
    """Return why a model that generates leaves the GPU of this machine unused.

    Args:
        device: The device that was asked for.
        name: Name of the model.
        task: Name of its task.

    Returns:
        The reason; None: there is no GPU, or the CPU was asked for.

    Raises:
        ArtifactError: A GPU was asked for.
    """
    if device == "gpu":
        other = (
            f"serve the checkpoint: {_vllm_command(name)}"
            if task == TextGeneration.name
            else f"no engine here runs {task} on a GPU"
        )
        raise ArtifactError(f"{name} generates on a CPU here, not on a GPU", hint=f"give --device cpu or auto; {other}")
    return reason_for_cpu(name=name, task=task) if resolve_device(device) == "gpu" else None


def _vllm_command(name: str) -> str:
    return f"tritonize package --name {name} --engine vllm"
