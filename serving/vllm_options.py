"""Options of packaging for vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from serving.option_fields import Option


def parse_mount_path(text: str) -> str:
    """Check the path of a folder in another file system, which cannot be looked up here.

    Args:
        text: The path.

    Returns:
        The path without a slash at its end.

    Raises:
        ValueError: It is not absolute, or climbs.
    """
    if not text.startswith("/") or ".." in text.split("/"):
        raise ValueError(f"{text!r} is not an absolute path, such as /models")
    return text.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class VllmOptions:
    """Options of ``tritonize package --engine vllm``. The last two have the names that vLLM gives them."""

    checkpoint: Annotated[
        Path | None,
        Option(
            "With --engine vllm, folder of the checkpoint that the bundle was exported from.",
            path="folder",
            default_text="ARTIFACTS/NAME/checkpoint; otherwise that of the quickstart if it was exported",
        ),
    ] = None
    mount_path: Annotated[
        str,
        Option(
            "With --engine vllm, path of the repository where Triton serves it: in a container, where it is mounted.",
            metavar="PATH",
            parse=parse_mount_path,
        ),
    ] = "/models"
    gpu_memory_utilization: Annotated[
        float, Option("With --engine vllm, share of the memory of a GPU that vLLM takes.", above=0, maximum=1)
    ] = 0.9
    tensor_parallel_size: Annotated[
        int, Option("With --engine vllm, number of GPUs that share the weights.", minimum=1, maximum=64)
    ] = 1
