"""What this machine has to serve with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def cores() -> int:
    """Cores this process may run on (its affinity, not the machine's total)."""
    return len(os.sched_getaffinity(0))


def has_gpu() -> bool:
    """Whether an NVIDIA driver is loaded. Looks at no library: the answer must be the same in both environments."""
    return Path("/proc/driver/nvidia/version").exists() or (
        shutil.which("nvidia-smi") is not None and Path("/dev/nvidia0").exists()
    )


def resolve_device(device: str) -> str:
    """``auto`` → ``gpu`` where there is one, ``cpu`` otherwise; anything else as it is."""
    return ("gpu" if has_gpu() else "cpu") if device == "auto" else device


def hardware() -> dict[str, Any]:
    """What measured speeds depend on most: ``cpu`` (its model), ``cores``, ``gpus`` (their names). JSON-ready."""
    return {"cpu": cpu_model(), "cores": cores(), "gpus": nvidia_smi("--query-gpu=name")}


def cpu_model() -> str:
    """The processor's name, or its architecture where the system does not say."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def nvidia_smi(query: str) -> list[str]:
    """Lines of what the driver's tool answers, one a GPU or process; none where there is no such tool, or no GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    answer = subprocess.run(["nvidia-smi", query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=False)
    return answer.stdout.splitlines() if answer.returncode == 0 else []
