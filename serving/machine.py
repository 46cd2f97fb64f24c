"""The hardware of this machine: CPU cores, GPUs and their names."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TypedDict


class Hardware(TypedDict):
    """The hardware that measured speeds depend on most, ready for JSON.

    Attributes:
        cpu: Model name of the processor.
        cores: Number of cores that this process may run on.
        gpus: Names of the GPUs.
    """

    cpu: str
    cores: int
    gpus: list[str]


def cores() -> int:
    """Return the number of cores that this process may run on, by its CPU affinity."""
    return len(os.sched_getaffinity(0))


def has_gpu() -> bool:
    """Return whether an NVIDIA driver is loaded.

    It asks no Python library, so that the answer is the same in both environments.
    """
    return Path("/proc/driver/nvidia/version").exists() or (
        shutil.which("nvidia-smi") is not None and Path("/dev/nvidia0").exists()
    )


def resolve_device(device: str) -> str:
    """Turn ``auto`` into ``gpu`` if this machine has one and into ``cpu`` otherwise. Return other values unchanged."""
    return ("gpu" if has_gpu() else "cpu") if device == "auto" else device


def hardware() -> Hardware:
    """Return the hardware that measured speeds depend on most."""
    return {"cpu": cpu_model(), "cores": cores(), "gpus": nvidia_smi("--query-gpu=name")}


def cpu_model() -> str:
    """Return the model name of the processor, or its architecture if the system does not report a name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def nvidia_smi(query: str) -> list[str]:
    """Run ``nvidia-smi`` with a query and return its lines, one per GPU or process.

    Args:
        query: A query option, such as ``--query-gpu=name``.

    Returns:
        The lines. Empty if there is no ``nvidia-smi`` or no GPU.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    answer = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []
