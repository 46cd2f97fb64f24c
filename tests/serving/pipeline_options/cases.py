"""Calls of a pipeline, as parameters of tests."""

from __future__ import annotations

from typing import Any

Case = tuple[tuple[Any, ...], dict[str, Any]]
WORDS = "the film and this story with every scene"
MASKED = "the film was [MASK] again"


def each(inputs: list[Any], options: list[dict[str, Any]]) -> list[Case]:
    """Every input with every choice of options."""
    return [((one,), chosen) for one in inputs for chosen in options]


def shown(case: Case) -> str:
    """The id of a test."""
    return f"{case[0]} {case[1]}"[:80]
