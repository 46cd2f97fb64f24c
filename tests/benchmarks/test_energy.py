"""Energy is what the machine's counters say, across their wrap, and unknown where they say nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import nvml
from benchmarks.energy import find_meter


def _zone(powercap: Path, name: str, kind: str, microjoules: int) -> Path:
    zone = powercap / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{kind}\n")
    (zone / "max_energy_range_uj").write_text("10000000\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "energy_counters", list)


def test_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    first = _zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000)
    _zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    _zone(tmp_path, "intel-rapl:0:0", "core", 5_000_000)
    meter = find_meter(tmp_path)
    before = meter.read()
    (first / "energy_uj").write_text("2000000\n")  # it reached its range and began again
    after = meter.read()
    assert before is not None and after is not None
    assert after - before == pytest.approx(3.0)


def test_a_counter_that_fails_once_ends_nothing(tmp_path: Path) -> None:
    zone = _zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    meter = find_meter(tmp_path)
    assert meter.read() == 1.0
    (zone / "energy_uj").unlink()
    assert meter.read() is None


def test_a_machine_that_does_not_tell_is_not_guessed_at(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()
    assert find_meter(tmp_path).read() is None
