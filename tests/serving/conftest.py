"""Fixtures of the tests of a model repository: two packaged ensembles, and a copy that a test may damage."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from serving.options import PackageOptions
from serving.repository import package
from tests.conftest import Once


@pytest.fixture(scope="session")
def pristine(once: Once, bundle: Path) -> Path:
    """A repository with two ensembles of one bundle, ``one`` in fp32 and ``other`` in int8. No test may change it."""

    def make(folder: Path) -> Path:
        repository = folder / "models"
        for name, precision in (("one", "fp32"), ("other", "int8")):
            package(PackageOptions(bundle=bundle, repository=repository, name=name, precision=precision, device="cpu"))
        return repository

    return once("pristine", make)


@pytest.fixture
def repository(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it for one test."""
    subprocess.run(["cp", "-a", pristine, tmp_path / "models"], check=True)
    return tmp_path / "models"
