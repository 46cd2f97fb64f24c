"""What this machine has to serve with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


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
