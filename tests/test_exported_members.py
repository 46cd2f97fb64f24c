"""What the three packages export, and that importing them is cheap."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from serving import errors

PACKAGES = ("export", "serving", "benchmarks")
HEAVY = ("anyio", "grpc", "aiohttp", "numpy", "onnx", "torch", "transformers", "tritonclient")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_name_exists(package: str) -> None:
    module = import_module(package)
    assert module.__all__ == sorted(module.__all__) == sorted(dir(module))
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


def test_serving_exports_the_clients_the_stages_and_every_error() -> None:
    every_error = {name for name, member in vars(errors).items() if inspect.isclass(member) and issubclass(member, Exception)}
    assert set(import_module("serving").__all__) == {"AsyncTritonPipeline", "TritonPipeline", "package", "serve", *every_error}


def test_a_stage_is_a_function_after_its_modules_are_imported() -> None:
    """No module of a package may have the name of one of its functions, which it would replace."""
    for package in PACKAGES:
        module = import_module(package)
        assert all(not (Path(module.__path__[0]) / f"{name}.py").exists() for name in module.__all__)


@pytest.mark.parametrize("kind", ["package", "folder", "module"])
@pytest.mark.parametrize("package", ["export", "benchmarks"])
def test_a_folder_that_hides_ours_is_named(package: str, kind: str, tmp_path: Path) -> None:
    """A folder without code does not hide a package that comes later on the path."""
    if kind == "module":
        (tmp_path / "serving.py").touch()
    else:
        (tmp_path / "serving").mkdir()
    if kind == "package":
        (tmp_path / "serving" / "__init__.py").touch()
    project = str(Path(errors.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", f"import {package}; print({package}.__all__)"],
        cwd=tmp_path,
        env={"PYTHONPATH": project},
        capture_output=True,
        text=True,
        check=False,
    )
    if kind == "folder":
        assert run.stdout == f"{import_module(package).__all__}\n"
    else:
        message = f"ImportError: {tmp_path / 'serving'}(.py)? hides tritonize's package serving: rename it"
        assert re.match(message, run.stderr.splitlines()[-1])


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_is_cheap(package: str) -> None:
    """In a new process, so that nothing that a test imported counts."""
    script = f"import json, sys, {package}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Nobody' from 'serving'"):
        exec("from serving import Nobody")  # noqa: S102
