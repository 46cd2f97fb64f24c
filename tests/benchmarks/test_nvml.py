"""GPUs as NVML reports them, on machines with and without a driver and its library."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from benchmarks import nvml


class NVMLError(Exception):
    """What the library raises."""


def library(*, driver: bool = True, counts_energy: bool = True) -> Any:
    """A library with two GPUs, the processes 7 and 8 on both."""

    def initialized() -> None:
        if not driver:
            raise NVMLError("driver not loaded")

    def energy(gpu: int) -> int:
        if not counts_energy:
            raise NVMLError("not supported")
        return 2000 * (gpu + 1)

    found: Any = ModuleType("pynvml")
    found.NVMLError = NVMLError
    found.nvmlInit = initialized
    found.nvmlDeviceGetCount = lambda: 2
    found.nvmlDeviceGetHandleByIndex = int
    found.nvmlDeviceGetName = lambda gpu: f"GPU {gpu}"
    found.nvmlDeviceGetMemoryInfo = lambda _gpu: SimpleNamespace(total=24 * 2**30)
    found.nvmlSystemGetDriverVersion = lambda: "570.86"
    found.nvmlDeviceGetComputeRunningProcesses = lambda gpu: [
        SimpleNamespace(pid=7, usedGpuMemory=2**20 * (gpu + 1)),
        SimpleNamespace(pid=8, usedGpuMemory=None),
    ]
    found.nvmlDeviceGetTotalEnergyConsumption = energy
    return found


def test_gpus_are_described_and_metered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library())
    assert nvml.gpus() == ["GPU 0, 24576", "GPU 1, 24576"]
    assert nvml.driver_version() == "570.86"
    assert [counter() for counter in nvml.energy_counters()] == [2.0, 4.0]
    assert nvml.memory_mib([7, 9]) == 3
    assert nvml.memory_mib([8]) is None, "the driver does not report it"


def test_gpus_that_do_not_count_energy_have_no_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library(counts_energy=False))
    assert nvml.energy_counters() == []


@pytest.mark.parametrize("found", [None, library(driver=False)], ids=["no library", "no driver"])
def test_without_library_or_driver_there_are_no_gpus(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", found)
    assert (nvml.gpus(), nvml.driver_version(), nvml.memory_mib([7]), nvml.energy_counters()) == ([], None, None, [])


@pytest.mark.parametrize(
    ("found", "stated"),
    [(None, "nvidia-ml-py is not installed"), (library(driver=False), "NVML does not work"), (library(), "")],
    ids=["no library", "broken", "working"],
)
def test_a_gpu_that_cannot_be_read_is_stated(found: Any, stated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.setattr(nvml, "has_gpu", lambda: False)
    assert not nvml.unreadable()
    monkeypatch.setattr(nvml, "has_gpu", lambda: True)
    assert stated in nvml.unreadable() and bool(nvml.unreadable()) is bool(stated)
