"""What a client reads of an ensemble from its Triton configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from serving.errors import RequestError
from serving.pipeline_attributes import PipelineAttributes
from serving.runtime.tasks import load_served
from serving.runtime.tasks.base import ServedTask
from serving.vllm_task import VllmTextGeneration


@dataclass(frozen=True, kw_only=True)
class ServedEnsemble:
    """What a client reads from the ensemble's Triton configuration.

    Attributes:
        task: The task, with the settings that it is served with.
        attributes: The attributes of the pipeline.
        parameters: The parameters that packaging wrote.
        max_batch_size: Maximum number of rows in one request.
    """

    task: ServedTask
    attributes: PipelineAttributes
    parameters: Mapping[str, str]
    max_batch_size: int

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any]) -> Self:
        """Read the configuration of the ensemble ``name``.

        Raises:
            RequestError: Tritonize did not package this model, or another version did.
        """
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        if "task" not in parameters:
            raise RequestError(
                f"{name} is not an ensemble that tritonize packaged",
                status="INVALID_ARGUMENT",
                hint="give the name of the ensemble, not of one of its steps or of another model",
            )
        try:
            return cls(
                task=_load_task(parameters["task"], json.loads(parameters["settings"]), backend=config.get("backend", "")),
                attributes=PipelineAttributes.of(name, json.loads(parameters["description"])),
                parameters=parameters,
                max_batch_size=int(config.get("max_batch_size", 0)),  # gRPC leaves 0 out
            )
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"{name} was packaged by another version of tritonize: {error}",
                status="INVALID_ARGUMENT",
                hint="package it again with: tritonize package",
            ) from error


def _load_task(name: str, settings: Mapping[str, Any], *, backend: str) -> ServedTask:
    """Return the task as its backend serves it."""
    return VllmTextGeneration.from_settings(settings) if backend == "vllm" else load_served(name, settings)
