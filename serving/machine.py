"""The hardware of this machine: CPU cores, GPUs and their names."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Literal, TypedDict

from serving.options import ComputeDevice


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


def resolve_device(device: Literal["auto", ComputeDevice]) -> ComputeDevice:
    """Turn ``auto`` into ``gpu`` if this machine has one and into ``cpu`` otherwise. Return other values unchanged."""
    return ("gpu" if has_gpu() else "cpu") if device == "auto" else device


def memory_bytes() -> int:
    """Return the memory of this machine in bytes, or the smaller limit of the control group that this process runs in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdecimal() else total


def hardware() -> Hardware:
    """Return the hardware that measured speeds depend on most."""
    return {"cpu": cpu_model(), "cores": cores(), "gpus": _gpu_names()}


def cpu_model() -> str:
    """Return the model name of the processor, or its architecture if the system does not report a name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu_names() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.splitlines() if run.returncode == 0 else []
