"""The settings that a package writes for a generating model."""

from __future__ import annotations

import dataclasses

import pytest

from serving.runtime.generation.engine_settings import EngineSettings, cache_bytes


def test_settings_survive_the_file() -> None:
    settings = EngineSettings(slots=4, capacity=64, threads=0, chunk=16, max_waiting=9)
    assert EngineSettings.from_settings({"engine": dataclasses.asdict(settings), "generation": {}}) == settings


@pytest.mark.parametrize(
    "engine",
    [
        {"slots": 4},
        {"slots": 4, "capacity": 0},
        {"slots": "4", "capacity": 8},
        {"slots": 4, "capacity": 8, "threads": -1},
        {"slots": 4, "capacity": 8, "room": 1},
        [4, 8],
    ],
)
def test_wrong_settings_are_refused(engine: object) -> None:
    with pytest.raises(ValueError):
        EngineSettings.from_settings({"engine": engine})  # type: ignore[dict-item]


def test_bytes_of_the_cache() -> None:
    """SmolLM2-135M: 30 layers, 3 heads of keys and values, 64 numbers a head."""
    assert cache_bytes(slots=1, capacity=512, layers=30, kv_heads=3, head_size=64) == 23_592_960
