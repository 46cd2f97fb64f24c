"""The machine and the software that a report was measured on, and how much of the machine others used meanwhile."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import NonNegativeFloat, PositiveInt

from benchmarks import nvml
from benchmarks.processes import MIB, cpu_seconds
from serving.artifact import versions
from serving.machine import cores, cpu_model


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and its software.

    Attributes:
        cores: Cores that the benchmark may use.
        gpus: Name and memory (MiB) of each GPU.
        driver: Version of the NVIDIA driver. Another driver does not make it another machine.
        busy_percent: How busy the machine was with other work when the run began.
        commit: Commit of the code that measures, with ``+changes`` if files differ from it; None outside a checkout.
        others_percent: Share of the processor time that other processes used during the run; None if it was not measured.
        stolen_percent: Share of the processor time that the host took away during the run; None if it does not count it.
    """

    cpu: str
    cores: PositiveInt
    memory_mib: PositiveInt
    gpus: list[str]
    driver: str | None = None
    system: str
    busy_percent: NonNegativeFloat
    versions: dict[str, str]
    commit: str | None
    others_percent: float | None = None
    stolen_percent: float | None = None


def read_environment() -> Environment:
    """Describe this machine; takes one second, in which it measures how busy the machine is."""
    return Environment(
        cpu=cpu_model(),
        cores=cores(),
        memory_mib=round(psutil.virtual_memory().total / MIB),
        gpus=nvml.gpus(),
        driver=nvml.driver_version(),
        system=platform.platform(),
        busy_percent=psutil.cpu_percent(interval=1),
        versions=versions(),
        commit=_commit(),
    )


def stolen_percent(before: Any, after: Any) -> float | None:
    """Compute how much processor time the host gave to other guests between two readings, percent; None if it is not counted."""
    if not hasattr(after, "steal"):
        return None
    earlier, later = _seconds_by_kind(before), _seconds_by_kind(after)
    passed = sum(later.values()) - sum(earlier.values())
    return 100 * (later["steal"] - earlier["steal"]) / passed if passed > 0 else None


class ForeignWork:
    """Measure how much of the machine's processor time other processes use, from now on."""

    def __init__(self, server: psutil.Process | None) -> None:
        """Start to measure. If the root of the server's processes is not visible (None), its work here counts as foreign."""
        self._roots = [psutil.Process(), *([server] if server is not None else [])]
        self._before = self._read()

    def percent(self) -> float:
        """Share of the processor time since then that neither this process tree nor the server's used."""
        passed, busy, own = (after - before for after, before in zip(self._read(), self._before, strict=True))
        return max(0.0, 100 * (busy - own) / passed) if passed > 0 else 0.0

    def _read(self) -> tuple[float, float, float]:
        """Seconds of all cores, of work, and of our own work."""
        times = _seconds_by_kind(psutil.cpu_times())
        idle = times["idle"] + times.get("iowait", 0.0) + times.get("steal", 0.0)
        passed = sum(times.values())
        return passed, passed - idle, sum(map(cpu_seconds, self._roots))


def _seconds_by_kind(times: Any) -> dict[str, float]:
    """A reading by name, without the guests' time, which the user's time contains."""
    return {name: getattr(times, name) for name in times._fields if not name.startswith("guest")}


def _commit() -> str | None:
    head = _git("rev-parse", "HEAD") if shutil.which("git") else None
    if head is None:
        return None
    return head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", Path(__file__).parent, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
