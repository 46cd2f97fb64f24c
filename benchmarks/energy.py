"""Energy that the machine drew, where it tells: processor packages by RAPL, GPUs by NVIDIA's management library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]
"""Energy drawn since some moment, J; it only grows."""


class EnergyMeter:
    """Adds up what every package and every GPU of the machine has drawn, by whomever: other work counts in."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = counters

    def read(self) -> float | None:
        """Energy drawn since some moment, J; None where the machine does not tell, or not this time."""
        if not self._counters:
            return None
        try:
            return sum(counter() for counter in self._counters)
        except OSError:  # a figure that few machines have at all is no reason to end a benchmark
            return None


def find_meter(powercap: Path = POWERCAP) -> EnergyMeter:
    """A meter of all that can be read here. RAPL's counters belong to root on most systems."""
    return EnergyMeter([*_packages(powercap), *_gpus()])


def _packages(powercap: Path) -> list[Counter]:
    counters: list[Counter] = []
    for zone in sorted(powercap.glob("intel-rapl:*")):  # AMD's have the same name
        is_package = (zone / "name").is_file() and (zone / "name").read_text(encoding="ascii").startswith("package")
        if is_package and _is_readable(zone / "energy_uj"):
            counters.append(_Unwrapped(zone))
    return counters


def _is_readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:  # not ours to read, or the zone is switched off
        return False
    return True


class _Unwrapped:
    """A RAPL counter: it starts again from 0 every few minutes of heavy work, so it has to be read more often than that."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
        self._last, self._wrapped = 0, 0

    def __call__(self) -> float:
        now = int(self._file.read_text(encoding="ascii"))
        if now < self._last:
            self._wrapped += self._range
        self._last = now
        return (self._wrapped + now) / 1e6


def _gpus() -> list[Counter]:
    """One counter per GPU that has one (Volta and later)."""
    try:
        import pynvml
    except ImportError:  # it comes with the GPU packages
        return []
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        counters: list[Counter] = [partial(_joules, pynvml, handle) for handle in handles]
        for counter in counters:
            counter()
    except (pynvml.NVMLError, OSError):  # no driver, or GPUs that do not count
        return []
    return counters


def _joules(pynvml: Any, handle: Any) -> float:
    try:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except pynvml.NVMLError as error:
        raise OSError(f"the driver does not tell: {error}") from error
