"""Energy that the machine used, where counters exist: RAPL for processor packages, NVML for NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import nvml

POWERCAP = Path("/sys/class/powercap")
Counter = Callable[[], float]
"""Energy used since some moment, J; never decreases."""


class EnergyMeter:
    """Sum of the energy counters of the machine. Work of other programs counts too."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        """Sum these counters."""
        self._counters = counters

    def read(self) -> float | None:
        """Read the energy used since some moment, J; None without counters, or if one could not be read this time."""
        if not self._counters:
            return None
        try:
            return sum(counter() for counter in self._counters)
        except OSError:  # few machines have this figure at all: its loss does not end a benchmark
            return None


def find_meter(powercap: Path = POWERCAP) -> EnergyMeter:
    """Make a meter of all counters that can be read here. On most systems only root may read RAPL's."""
    return EnergyMeter([*_packages(powercap), *nvml.energy_counters()])


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
    except OSError:  # not readable for this user, or the zone is switched off
        return False
    return True


class _Unwrapped:
    """A RAPL counter without its wrap-around. It wraps every few minutes of heavy work and must be read more often than that."""

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
