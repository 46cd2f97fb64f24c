"""Fixtures of the tests of the proxy and of its filter."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.options import PackageOptions
from serving.repository import package
from tests.helpers.decoupled import write_model
from tests.serving.front.guard_in_python import Guard, write_ensemble


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    write_ensemble(folder, "sent", "TEXT")
    write_ensemble(folder, "pairs", "TEXT_PAIR", "TEXT")
    write_ensemble(folder, "small", "TEXT", max_batch_size=2)
    write_ensemble(folder, "bundle", "TEXT", kind="bundle")
    return folder


@pytest.fixture(scope="module")
def guard(repository: Path) -> Guard:
    return Guard(repository)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """A repository of one ensemble, which starts quickly."""
    folder = tmp_path_factory.mktemp("small") / "model_repository"
    package(PackageOptions(bundle=bundle, repository=folder, name="ragged", precision="fp32", device="cpu", instances=1))
    return folder


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    folder = tmp_path_factory.mktemp("streaming") / "repository"
    folder.mkdir()
    write_model(folder, "writer")
    write_ensemble(folder, "sent", "TEXT")
    (folder / "foreign" / "1").mkdir(parents=True)
    return Guard(folder)
