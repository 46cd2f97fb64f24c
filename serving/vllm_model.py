"""Writes the model of a package for Triton's vLLM backend: its configuration, the arguments of vLLM, and the checkpoint.

The files are those of the backend's sample (triton-inference-server/vllm_backend, ``samples/model_repository/vllm_model``):
``config.pbtxt`` names the backend and an instance of ``KIND_MODEL``, because vLLM chooses the GPUs, and ``1/model.json`` has the
arguments. The backend adds the inputs and outputs that its release has (``auto_complete_config`` in ``src/model.py``), reads the
parameters that it knows and leaves others alone. vLLM resolves a relative path of a model against the folder that tritonserver was
started in (vllm_backend pull request 29, server issue 7587), so that ``model.json`` has an absolute one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from serving.artifact import sha256
from serving.bundle import Bundle
from serving.description import describe
from serving.ensemble import Config, client_parameters
from serving.errors import ArtifactError
from serving.manifests import ProbeBody, ProbeInput
from serving.pbtxt import to_pbtxt
from serving.vllm_plan import CHECKPOINT, VllmPlan

ARGUMENTS = "model.json"
TOKENS = 8
"""Tokens of the request that shows whether the model answers."""


def write_vllm_model(folder: Path, bundle: Bundle, plan: VllmPlan, name: str, generation: str, checkpoint: Path) -> None:
    """Write the folder of the model.

    Args:
        folder: The folder of the models of the new generation.
        bundle: The bundle of the checkpoint.
        plan: How it is served.
        name: Name of the model.
        generation: The generation.
        checkpoint: The folder of the checkpoint.

    Raises:
        ArtifactError: The checkpoint is missing, or is not the one that the bundle was exported from.
    """
    version = folder / name / "1"
    version.mkdir(parents=True)
    copy_checkpoint(bundle, checkpoint, version / CHECKPOINT)
    parameters = client_parameters(
        bundle.task,
        model_sha256=bundle.manifest.original.checkpoint.sha256,
        description=describe(bundle.with_max_length(plan.capacity), plan.device),
    )
    (folder / name / "config.pbtxt").write_text(to_pbtxt(vllm_config(name, parameters)), encoding="utf-8")
    path = f"{plan.engine_arguments['model']}/{generation}/{CHECKPOINT}"
    arguments = plan.engine_arguments | {"model": path, "tokenizer": path}
    (version / ARGUMENTS).write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")


def vllm_config(name: str, parameters: Mapping[str, str]) -> Config:
    """Configure the model. Clients read ``parameters``."""
    return {
        "name": name,
        "backend": "vllm",
        "instance_group": [{"kind": "KIND_MODEL", "count": 1}],
        "model_transaction_policy": {"decoupled": True},
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
    }


def copy_checkpoint(bundle: Bundle, checkpoint: Path, target: Path) -> None:
    """Copy the files of a checkpoint that a bundle was exported from, and compare the copies with what the bundle records.

    Other files stay behind: nobody has checked them, and pickled weights can run code.

    Args:
        bundle: The bundle.
        checkpoint: The folder of the checkpoint.
        target: The folder to create.

    Raises:
        ArtifactError: A file is missing or has another content.
    """
    hint = "name the folder of its original with --checkpoint, or export it anew with: tritonize export"
    if not checkpoint.is_dir():
        raise ArtifactError(
            f"there is no checkpoint at {checkpoint}; {bundle.folder} was exported from {bundle.manifest.original.checkpoint.name}",
            hint="name its folder with --checkpoint; for one on the Hugging Face Hub, hf download NAME prints it",
        )
    target.mkdir()
    for file, digest in _checkpoint_files(bundle).items():
        if not (checkpoint / file).is_file():
            raise ArtifactError(f"{bundle.folder} was not exported from {checkpoint}, which has no {file}", hint=hint)
        shutil.copyfile(checkpoint / file, target / file)
        if sha256(target / file) != digest:
            raise ArtifactError(f"{bundle.folder} was not exported from {checkpoint}: {file} differs", hint=hint)


def _checkpoint_files(bundle: Bundle) -> dict[str, str]:
    """Return the SHA-256 of each file of the checkpoint. Paths with folders are those of the code of the export."""
    files = {name: digest for name, digest in bundle.manifest.inputs.files.items() if "/" not in name}
    if not any(name.endswith(".safetensors") for name in files):
        raise ArtifactError(
            f"{bundle.folder} does not record the weights that it was exported from", hint="export it again with: tritonize export"
        )
    return files


def vllm_probe(example: Mapping[str, str]) -> ProbeBody:
    """Return a request for the first tokens of the answer to the task's example, with the parameters that vLLM knows."""
    inputs = tuple(ProbeInput(name=name, datatype="BYTES", shape=(1,), data=(text,)) for name, text in example.items())
    return ProbeBody(inputs=inputs, parameters={"temperature": 0, "max_tokens": TOKENS}, endpoint="generate")
