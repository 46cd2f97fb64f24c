"""How a model that generates ends: nothing is lost without a word."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.triton_steps import backend

PACKAGE = "serving.runtime"
NAMES = ("refusals", "generation.engine_metrics", "generation.recipient", "generation.responses", "generation.service")
"""Modules that hold Triton's module, or one of these."""


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    messages: list[str] = []
    module = backend()
    module.Logger = SimpleNamespace(log_error=messages.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    names = [f"{PACKAGE}.{name}" for name in NAMES]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield messages
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ({"engine": True, "outbox": True}, []),
        ({"engine": False, "outbox": True}, ["the engine has not ended its round"]),
        ({"engine": True, "outbox": False}, ["the answers are not sent yet"]),
    ],
)
def test_the_engine_ends_first_and_its_answers_are_sent_last(logged: list[str], ended: dict[str, bool], said: list[str]) -> None:
    service: Any = object.__new__(importlib.import_module(f"{PACKAGE}.generation.service").GenerationService)
    order: list[str] = []

    def part(name: str) -> Any:
        def close() -> bool | None:
            order.append(name)
            return ended.get(name)

        return SimpleNamespace(close=close)

    service._engine, service._metrics, service.outbox = part("engine"), part("metrics"), part("outbox")
    service.close()
    assert order == ["engine", "metrics", "outbox"]
    assert [message.partition(":")[0] for message in logged] == said
