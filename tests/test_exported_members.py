"""What the three packages export, and that importing them is cheap."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module

import pytest

from serving import errors

PACKAGES = ("export", "serving", "benchmarks")
HEAVY = ("anyio", "grpc", "aiohttp", "numpy", "onnx", "torch", "transformers", "tritonclient")


def test_every_exported_name_exists() -> None:
    module = import_module("serving")
    assert module.__all__ == sorted(module.__all__)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


def test_serving_exports_the_clients_and_every_error() -> None:
    every_error = {name for name, member in vars(errors).items() if inspect.isclass(member) and issubclass(member, Exception)}
    assert set(import_module("serving").__all__) == {"AsyncTritonPipeline", "TritonPipeline", *every_error}


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_cheap(package: str) -> None:
    """In a new process, so that nothing that a test imported counts."""
    script = f"import json, sys, {package}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Nobody' from 'serving'"):
        exec("from serving import Nobody")  # noqa: S102
