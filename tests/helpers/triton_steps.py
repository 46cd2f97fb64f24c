"""The Python steps of a model without Triton: what Triton hands to them, and as much of its module as they use."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

INVALID_ARG, INTERNAL = 3, 13
UNAVAILABLE, CANCELLED, FINAL = 5, 7, 1


@dataclass
class Request:
    """What Triton hands to a step."""

    tensors: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def parameters(self) -> str:
        return json.dumps(self.options) if self.options else ""


class Sender:
    """A response sender that keeps what is sent, and counts what it is asked.

    Attributes:
        sent: The responses.
        flags: Their flags.
        tried: How often it was told to send.
        asked: How often it was asked whether its client has left.
    """

    def __init__(self, *, is_cancelled: bool = False, fails: bool = False) -> None:
        self._is_cancelled, self._fails = is_cancelled, fails
        self.sent: list[Any] = []
        self.flags: list[int] = []
        self.tried = self.asked = 0

    def send(self, response: Any, flags: int) -> None:
        self.tried += 1
        if self._fails:
            raise RuntimeError("the request is gone")
        self.sent.append(response)
        self.flags.append(flags)

    def is_cancelled(self) -> bool:
        self.asked += 1
        return self._is_cancelled


def backend() -> ModuleType:
    """As much of ``triton_python_backend_utils`` as the steps use."""
    module = ModuleType("triton_python_backend_utils")

    def tensor(name: str, array: Any) -> Any:
        return SimpleNamespace(name=name, as_numpy=lambda: array)

    def response(output_tensors: Any = (), error: Any = None) -> Any:
        return SimpleNamespace(tensors={entry.name: entry.as_numpy() for entry in output_tensors}, error=error)

    def error(message: str, code: int) -> Any:
        return SimpleNamespace(message=message, code=code)

    error.INVALID_ARG, error.INTERNAL = INVALID_ARG, INTERNAL  # type: ignore[attr-defined]
    error.UNAVAILABLE, error.CANCELLED = UNAVAILABLE, CANCELLED  # type: ignore[attr-defined]
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL  # type: ignore[attr-defined]
    module.Logger = SimpleNamespace(log_error=len)  # type: ignore[attr-defined]
    module.Tensor, module.InferenceResponse, module.TritonError = tensor, response, error  # type: ignore[attr-defined]
    module.get_input_tensor_by_name = lambda request, name: tensor(name, request.tensors[name])  # type: ignore[attr-defined]
    return module


@contextlib.contextmanager
def with_backend(monkeypatch: pytest.MonkeyPatch, *holders: str) -> Iterator[Any]:
    """Import a module of the runtime with a stand-in for Triton's module.

    Args:
        monkeypatch: That of the test.
        holders: Names in ``serving.runtime`` of the modules that hold Triton's; the last one is yielded.
    """
    names = [f"serving.runtime.{name}" for name in holders]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend())
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(names[-1])
    for name in names:
        sys.modules.pop(name, None)


def initialized(name: str, folder: Path, config: str = "{}", **patched: Any) -> Any:
    """A step's model, with the backend of this test.

    Args:
        name: ``preprocess``, ``postprocess`` or ``fused``.
        folder: The folder of the model, with its version 1.
        config: The model's configuration as JSON.
        patched: Members of the module to replace.
    """
    module = importlib.import_module(f"serving.runtime.{name}")
    for held in (module.__name__, "serving.runtime.refusals"):  # they hold the backend made for this test
        sys.modules.pop(held)
    for member, value in patched.items():
        setattr(module, member, value)
    step = module.TritonPythonModel()
    step.initialize({"model_repository": str(folder), "model_version": "1", "model_config": config})
    return step
