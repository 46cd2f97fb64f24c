"""Chooses how vLLM runs a checkpoint: the arguments of its engine, with the reason for each automatic choice.

The names are fields of vLLM's ``EngineArgs`` (vllm-project/vllm, ``vllm/engine/arg_utils.py``), which Triton's vLLM backend fills
from ``model.json`` (triton-inference-server/vllm_backend, ``README.md`` and ``src/model.py``: ``AsyncEngineArgs(**json)``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from serving.bundle import REMEDY, Bundle
from serving.errors import ArtifactError, refusing
from serving.options import CPU_PRECISIONS, PackageOptions, ServedPrecision
from serving.plan import Plan
from serving.runtime.tasks.text_generation import TextGeneration
from serving.runtime.types import JsonValue

SEQUENCES = 256
"""Default number of sequences that are generated at the same time: vLLM's own for most GPUs."""
CHECKPOINT = "checkpoint"
"""Folder of the checkpoint, beside ``model.json``."""
DTYPES: Mapping[ServedPrecision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Names of torch and vLLM by precision."""
IDLE = ("batching", "layout", "instances", "preprocess_instances", "postprocess_instances", "threads", "queue_delay_us")
"""Options of packaging that have no effect: vLLM is one process that schedules all requests itself."""


@dataclass(frozen=True, kw_only=True)
class VllmPlan(Plan):
    """The settings of a model that vLLM runs.

    Attributes:
        engine_arguments: The content of ``model.json``, but ``model`` is the folder of the model in the repository: that of the
            checkpoint depends on the generation.
    """

    engine_arguments: dict[str, JsonValue]


def make_vllm_plan(bundle: Bundle, options: PackageOptions) -> VllmPlan:
    """Choose every setting that is ``auto`` or None.

    Args:
        bundle: The bundle of the checkpoint.
        options: Options of the stage.

    Raises:
        ArtifactError: The task is not text-generation, the device is a CPU, there is no such precision, or the model has fewer
            positions.
    """
    if not isinstance(bundle.task, TextGeneration):
        raise ArtifactError(
            f"{bundle.manifest.name} is a model for {bundle.task.name}: with vLLM, only text-generation is packaged",
            hint="leave out --engine vllm",
        )
    if options.device == "cpu":
        raise ArtifactError("Triton's vLLM backend runs on a GPU, not on a CPU", hint="leave out --device cpu, or --engine vllm")
    reasons: dict[str, str] = {}
    precision = _precision(bundle, options, reasons)
    sequences = options.max_batch_size or SEQUENCES
    capacity = _capacity(bundle, options.capacity, reasons)
    model = model_path(options.vllm.mount_path, options.name)
    reasons["mount_path"] = f"{options.vllm.mount_path or '/'}: mount the repository there"
    return VllmPlan(
        precision=precision,
        device="gpu",
        batching="ragged",
        instances=1,
        threads=1,
        max_batch_size=sequences,
        queue_delay_us=0,
        layout="vllm",
        capacity=capacity,
        reasons=reasons,
        engine_arguments={
            "model": model,
            "trust_remote_code": False,
            "dtype": DTYPES[precision],
            "max_model_len": capacity,
            "max_num_seqs": sequences,
            "gpu_memory_utilization": options.vllm.gpu_memory_utilization,
            "tensor_parallel_size": options.vllm.tensor_parallel_size,
        },
    )


def model_path(mount_path: str, name: str) -> str:
    """Return where Triton finds a model, in a repository at ``mount_path``."""
    return f"{mount_path}/{name}"


def _precision(bundle: Bundle, options: PackageOptions, reasons: dict[str, str]) -> ServedPrecision:
    """Choose the precision: that of the checkpoint, or half of fp32, as on a GPU everywhere.

    Raises:
        ArtifactError: vLLM has no such precision here, or the bundle's ``config.json`` is damaged.
    """
    if options.precision in CPU_PRECISIONS:
        raise ArtifactError(
            f"vLLM runs the checkpoint itself, which has no {options.precision} variant",
            hint=f"give --precision {', '.join(DTYPES)} or auto",
        )
    if options.precision != "auto":
        return options.precision
    path = bundle.folder / "config.json"
    with refusing(f"{path} is damaged", hint=REMEDY):
        config = json.loads(path.read_text(encoding="utf-8"))
        stored = config.get("dtype", config.get("torch_dtype"))
    if stored == DTYPES["bf16"]:
        reasons["precision"] = "bf16: as the checkpoint"
        return "bf16"
    reasons["precision"] = (
        "fp16: as the checkpoint"
        if stored == DTYPES["fp16"]
        else "fp16: half the size of the checkpoint; if it was trained from one in bf16, give --precision bf16"
    )
    return "fp16"


def _capacity(bundle: Bundle, asked: int | None, reasons: dict[str, str]) -> int:
    """Choose the tokens of a prompt and its answer.

    Raises:
        ArtifactError: The model has positions for fewer.
    """
    positions = bundle.manifest.max_positions
    if asked is not None and positions is not None and asked > positions:
        raise ArtifactError(f"the model has {positions} positions, not {asked}", hint=f"give --capacity {positions} or less")
    if asked is None:
        reasons["capacity"] = f"{bundle.max_length} tokens of prompt and answer, as exported"
    return asked or bundle.max_length
