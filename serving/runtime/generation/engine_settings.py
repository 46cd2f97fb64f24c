"""The settings of a generating model, which its package writes into ``settings.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..types import JsonValue, Setting

FLOAT_BYTES = 4


@dataclass(frozen=True)
class EngineSettings:
    """How the engine of one model works.

    Attributes:
        slots: Most rows that are generated at a time.
        capacity: Most tokens of a row, prompt included.
        threads: Threads of one operator; 0: all cores.
        chunk: Most prompt tokens that are computed between two tokens of the rows that run.
        max_waiting: Most requests that wait for a slot; more are refused.
    """

    slots: int
    capacity: int
    threads: int = 1
    chunk: int = 128
    max_waiting: int = 256

    @classmethod
    def from_settings(cls, settings: Mapping[str, JsonValue]) -> EngineSettings:
        """Read the entry ``engine`` of ``settings.json``.

        Raises:
            ValueError: A value is missing, unknown or wrong.
        """
        given = settings["engine"]
        names = [one.name for one in fields(cls)]
        if not isinstance(given, Mapping) or not {"slots", "capacity"} <= given.keys() or not given.keys() <= set(names):
            raise ValueError(f"the settings of an engine are {', '.join(names)}, not {given!r:.200}")
        checked = {name: Setting(int, minimum=name != "threads").check(name, value) for name, value in given.items()}
        return cls(**checked)  # type: ignore[arg-type]


def cache_bytes(*, slots: int, capacity: int, layers: int, kv_heads: int, head_size: int) -> int:
    """Return the bytes that the cache of a decoder takes: keys and values of all layers in FP32.

    Args:
        slots: Most rows at a time.
        capacity: Most tokens of a row.
        layers: Layers of the model.
        kv_heads: Heads of keys and values in a layer.
        head_size: Numbers of a head.
    """
    return slots * capacity * layers * 2 * kv_heads * head_size * FLOAT_BYTES
