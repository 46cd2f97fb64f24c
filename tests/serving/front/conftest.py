"""Fixtures of the tests of the filter."""

from __future__ import annotations

from pathlib import Path

import pytest

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
