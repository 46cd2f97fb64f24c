"""The checks of ``tritonize doctor`` that need no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.doctor import _import_names
from serving.install import PROJECT


def test_a_folder_without_code_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "serving").mkdir()
    assert _import_names(tmp_path).ok


def test_the_project_hides_nothing() -> None:
    assert _import_names(PROJECT).ok


@pytest.mark.parametrize("name", ["serving/__init__.py", "serving.py", "export.py", "benchmarks/__init__.py"])
def test_what_hides_a_package_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    finding = _import_names(tmp_path)
    assert not finding.ok and finding.found == str(tmp_path / name) and "rename" in finding.hint
