"""NVIDIA GPUs through NVML. The package nvidia-ml-py comes with the GPU environment (extra ``gpu``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks.processes import MIB
from serving.machine import has_gpu


def unreadable() -> str:
    """State why the GPUs of this machine cannot be read; empty if they can be, or if there are none."""
    if not has_gpu():
        return ""
    try:
        import pynvml
    except ImportError:
        return "the NVIDIA driver is loaded, but nvidia-ml-py is not installed: GPUs are not recorded; install it with: make setup"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"the NVIDIA driver is loaded, but NVML does not work: GPUs are not recorded: {error}"
    return ""


def gpus() -> list[str]:
    """Names of all GPUs, each followed by its memory in MiB."""
    return [f"{nvml.nvmlDeviceGetName(gpu)}, {nvml.nvmlDeviceGetMemoryInfo(gpu).total // MIB}" for nvml, gpu in _devices()]


def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without a GPU."""
    return next((str(nvml.nvmlSystemGetDriverVersion()) for nvml, _ in _devices()), None)


def memory_mib(processes: Iterable[int]) -> float | None:
    """GPU memory that processes hold, MiB; None if the driver does not list them (no GPU, or other ids in a container)."""
    wanted = set(processes)
    running = [process for nvml, gpu in _devices() for process in nvml.nvmlDeviceGetComputeRunningProcesses(gpu)]
    held = [process.usedGpuMemory for process in running if process.pid in wanted and process.usedGpuMemory is not None]
    return sum(held) / MIB if held else None


def energy_counters() -> list[Callable[[], float]]:
    """Counters of the energy that each GPU has used, J; empty unless all GPUs count it (Volta and later)."""
    counters = [_counter(nvml, gpu) for nvml, gpu in _devices()]
    try:
        for counter in counters:
            counter()
    except OSError:
        return []
    return counters


def _counter(nvml: Any, gpu: Any) -> Callable[[], float]:
    def joules() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(gpu)) / 1e3
        except nvml.NVMLError as error:
            raise OSError(f"the driver does not return the energy of a GPU: {error}") from error

    return joules


def _devices() -> Iterator[tuple[Any, Any]]:
    """The library and the handle of each GPU; nothing without the library or a driver."""
    try:
        import pynvml
    except ImportError:  # unreadable() states it where there is a GPU
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver; unreadable() states it where there is a GPU
        return
    for index in range(pynvml.nvmlDeviceGetCount()):
        yield pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
