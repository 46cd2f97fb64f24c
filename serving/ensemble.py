"""Build the model configurations of a package, as dicts with the fields of Triton's ``ModelConfig``.

No code depends on the name of a task: the ensemble's tensors come from the task, the model's inputs and outputs from the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.plan import Plan
from serving.prologue import LENGTHS
from serving.runtime.digest import DIGEST, MODEL_DIGEST, REQUEST_DIGEST, TRUNCATED
from serving.runtime.metadata import METADATA
from serving.runtime.tasks._encoder import EncoderTask
from serving.runtime.tasks.base import ServedTask
from serving.runtime.types import JsonValue, Tensor

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Inputs and outputs of an exported graph.

    Attributes:
        inputs: Inputs; dims without the batch dimension, -1 for dynamic ones.
        outputs: Outputs, with dims as for the inputs.
        max_rows: Maximum number of rows in one execution.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_rows: int


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """A request that Triton runs before it reports that the model is ready.

    Attributes:
        name: Name of the request.
        batch_size: Number of rows.
        files: File in ``warmup/`` with the content of each tensor, by name of the tensor.
        dims: Dims of each tensor without the batch dimension, by name of the tensor.
    """

    name: str
    batch_size: int
    files: dict[str, str]
    dims: dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class StepWarmups:
    """Warm-up requests of each step of an ensemble.

    Attributes:
        preprocess: Of the first step, or of a single model.
        model: Of the model of an ensemble.
        postprocess: Of the last step of an ensemble.
    """

    preprocess: tuple[Warmup, ...]
    model: tuple[Warmup, ...] = ()
    postprocess: tuple[Warmup, ...] = ()


def ensemble_configs(
    name: str, task: EncoderTask, graph: Graph, plan: Plan, warmups: StepWarmups, parameters: Mapping[str, str]
) -> dict[str, Config]:
    """Configure an ensemble and its three steps, by name of the model. Clients read ``parameters`` of the ensemble."""
    return {
        name: ensemble_config(name, task, graph, plan, parameters),
        f"{name}_preprocess": preprocess_config(name, task, graph, plan, warmups.preprocess),
        f"{name}_model": model_config(name, graph, plan, warmups.model),
        f"{name}_postprocess": postprocess_config(name, task, graph, plan, warmups.postprocess),
    }


def preprocess_config(name: str, task: EncoderTask, graph: Graph, plan: Plan, warmups: Iterable[Warmup]) -> Config:
    """Configure the step from text to token ids. It batches the waiting requests without delay."""
    return {
        "name": f"{name}_preprocess",
        "backend": "python",
        "max_batch_size": plan.max_batch_size,
        "input": [tensor_config(tensor) for tensor in task.inputs()],
        "output": [tensor_config(tensor) for tensor in (*_model_inputs(graph), *_metadata(task))],
        "instance_group": [{"kind": "KIND_CPU", "count": plan.preprocess_instances}],
        "dynamic_batching": {},
        "model_warmup": [warmup_config(warmup, task.inputs()) for warmup in warmups],
    }


def model_config(name: str, graph: Graph, plan: Plan, warmups: Iterable[Warmup]) -> Config:
    """Configure the step from token ids to logits."""
    ragged = plan.batching == "ragged"
    config: Config = {
        "name": f"{name}_model",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": graph.max_rows,
        "input": [tensor_config(tensor) | ({"allow_ragged_batch": True} if ragged else {}) for tensor in _model_inputs(graph)],
        "output": [tensor_config(tensor) for tensor in _model_outputs(graph)],
        "instance_group": [{"kind": "KIND_GPU" if plan.device == "gpu" else "KIND_CPU", "count": plan.instances}],
        "model_warmup": [warmup_config(warmup, _model_inputs(graph)) for warmup in warmups],
    }
    if plan.device == "cpu":
        config["parameters"] = _parameters({"intra_op_thread_count": str(plan.threads), "inter_op_thread_count": "1"})
    if ragged:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": plan.queue_delay_us} if plan.queue_delay_us else {}
        config["batch_input"] = [
            {
                "kind": "BATCH_ITEM_SHAPE",
                "target_name": [LENGTHS],
                "data_type": "TYPE_INT32",
                "source_input": [graph.inputs[0].name],
            }
        ]
    return config


def postprocess_config(name: str, task: EncoderTask, graph: Graph, plan: Plan, warmups: Iterable[Warmup]) -> Config:
    """Configure the step from logits to answers. Requests with logits of different shapes share one queue."""
    return {
        "name": f"{name}_postprocess",
        "backend": "python",
        "max_batch_size": graph.max_rows,
        "input": [
            tensor_config(tensor) | ({"allow_ragged_batch": True} if -1 in tensor.dims else {})
            for tensor in (*_model_outputs(graph), *_metadata(task))
        ],
        "output": [tensor_config(tensor) for tensor in _answers(task)],
        "instance_group": [{"kind": "KIND_CPU", "count": plan.postprocess_instances}],
        "dynamic_batching": {},
        "model_warmup": [warmup_config(warmup, (*_model_outputs(graph), *_metadata(task))) for warmup in warmups],
    }


def fused_configs(
    name: str,
    task: EncoderTask,
    graph: Graph,  # noqa: ARG001 - its tensors stay inside the model
    plan: Plan,
    warmups: StepWarmups,
    parameters: Mapping[str, str],
) -> dict[str, Config]:
    """Configure the single model of the fused layout, from text to answers. Each instance answers one request at a time."""
    config = {
        "name": name,
        "backend": "python",
        "max_batch_size": plan.max_batch_size,
        "input": [tensor_config(tensor) for tensor in task.inputs()],
        "output": [tensor_config(tensor) for tensor in _answers(task)],
        "instance_group": [{"kind": "KIND_CPU", "count": plan.instances}],
        "parameters": _parameters({"intra_op_thread_count": str(plan.threads), **parameters}),
        "model_warmup": [warmup_config(warmup, task.inputs()) for warmup in warmups.preprocess],
    }
    return {name: config}


CONFIGS = {"ensemble": ensemble_configs, "fused": fused_configs}
"""By layout, the function that configures the models of a package."""


def client_parameters(task: ServedTask, *, model_sha256: str, description: Mapping[str, JsonValue]) -> dict[str, str]:
    """Return the parameters that clients read in the configuration of the model that they call.

    They are the task with its settings, the checksum of the model, and what the attributes of the pipeline tell of it.
    """
    return {
        "task": task.name,
        "settings": json.dumps(task.to_settings(), ensure_ascii=False),
        "model_sha256": model_sha256,
        "description": json.dumps(description, ensure_ascii=False),
    }


def ensemble_config(name: str, task: EncoderTask, graph: Graph, plan: Plan, parameters: Mapping[str, str]) -> Config:
    """Configure the ensemble that clients call: its steps, connected by tensor name."""
    steps = (
        (f"{name}_preprocess", task.inputs(), (*_model_inputs(graph), *_metadata(task))),
        (f"{name}_model", _model_inputs(graph), _model_outputs(graph)),
        (f"{name}_postprocess", (*_model_outputs(graph), *_metadata(task)), _answers(task)),
    )
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": plan.max_batch_size,
        "input": [tensor_config(tensor) for tensor in task.inputs()],
        "output": [tensor_config(tensor) for tensor in _answers(task)],
        "parameters": _parameters(parameters),
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": model,
                    "model_version": -1,
                    "input_map": {tensor.name: tensor.name for tensor in inputs},
                    "output_map": {tensor.name: tensor.name for tensor in outputs},
                }
                for model, inputs, outputs in steps
            ]
        },
    }


def _model_inputs(graph: Graph) -> tuple[Tensor, ...]:
    """Return the inputs of the served model: those of the graph, and the digest."""
    return (*graph.inputs, Tensor(REQUEST_DIGEST, "TYPE_INT64"))


def _model_outputs(graph: Graph) -> tuple[Tensor, ...]:
    """Return the outputs of the served model: those of the graph, and the digest."""
    return (*graph.outputs, Tensor(MODEL_DIGEST, "TYPE_INT64"))


def _answers(task: EncoderTask) -> tuple[Tensor, ...]:
    """Return the outputs of the ensemble: those of the task, and what the steps tell of every row."""
    return (*task.outputs(), Tensor(TRUNCATED, "TYPE_BOOL"), Tensor(DIGEST, "TYPE_INT64"))


def _metadata(task: EncoderTask) -> tuple[Tensor, ...]:
    """Return the tensor that passes metadata from the first step to the last, if the task has one."""
    return (Tensor(METADATA, "TYPE_STRING"),) if task.carries_metadata else ()


def _parameters(values: Mapping[str, str]) -> Config:
    return {key: {"string_value": value} for key, value in values.items()}


def tensor_config(tensor: Tensor) -> Config:
    """Describe a tensor in a configuration."""
    return {"name": tensor.name, "data_type": tensor.dtype, "dims": list(tensor.dims)}


def warmup_config(warmup: Warmup, tensors: Iterable[Tensor]) -> Config:
    """Describe a warm-up request in a configuration."""
    inputs = {
        tensor.name: {
            "data_type": tensor.dtype,
            "dims": list(warmup.dims[tensor.name]),
            "input_data_file": warmup.files[tensor.name],
        }
        for tensor in tensors
    }
    return {"name": warmup.name, "batch_size": warmup.batch_size, "inputs": inputs}
