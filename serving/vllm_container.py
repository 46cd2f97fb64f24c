"""The official Triton image with vLLM, which serves the packages for it: the embedded server has no such backend."""

from __future__ import annotations

import shlex
from pathlib import Path

from serving.errors import ArtifactError
from serving.manifests import RepositoryManifest
from serving.vllm_plan import model_path

IMAGE = "nvcr.io/nvidia/tritonserver:YY.MM-vllm-python-py3"
"""``YY.MM`` stands for the release, such as 25.12 (triton-inference-server/vllm_backend, ``README.md``)."""


def container_command(repository: Path, package: RepositoryManifest) -> str:
    """Return a command line that serves a repository with the image.

    Args:
        repository: The repository.
        package: The manifest of one of its packages for vLLM.
    """
    mount = str(package.engine_arguments["model"]).removesuffix(model_path("", package.name)) or "/"
    volume = shlex.quote(f"{repository.absolute()}:{mount}:ro")
    return (
        f"docker run --rm --gpus all --shm-size=1g -p 127.0.0.1:8000-8002:8000-8002 -v {volume} {IMAGE} "
        f"tritonserver --model-repository={shlex.quote(mount)} --model-control-mode=explicit --load-model={package.name}"
    )


def needs_container(repository: Path, package: RepositoryManifest) -> ArtifactError:
    """Return the error of a server without vLLM about a package for it."""
    return ArtifactError(
        f"{package.name} is packaged for Triton's vLLM backend, which this server does not have",
        hint=f"serve it with the official image: {container_command(repository, package)}",
    )
