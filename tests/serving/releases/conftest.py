"""A repository with one package, and a server of it in which a stand-in takes the place of Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.served_view import open_view
from tests.helpers.packages import write_package
from tests.helpers.stand_in_triton import Kept, StandIn, stand_in, start


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_package(tmp_path / "models", "one")
    return tmp_path / "models"


@pytest.fixture
def triton(models: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return stand_in(models, monkeypatch)


@pytest.fixture
def kept(models: Path, triton: StandIn) -> Iterator[Kept]:
    with open_view(models) as view:
        triton.folder = view.folder
        start(triton, models, "one")
        yield Kept(view, triton)
