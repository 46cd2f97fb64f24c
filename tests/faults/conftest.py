"""Fixtures of the fault tests: a module's own server of one ensemble, and the answers to its texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from tests.helpers.good_traffic import Answer, known_answers
from tests.helpers.servers import running, serve_options


@pytest.fixture(scope="module")
def ensembles(bundle: Path) -> dict[str, Path]:
    """The bundles of the server by the name of their ensemble. The first is what good clients ask."""
    return {"one": bundle}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, ensembles: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "model_repository"
    for name, bundle in ensembles.items():
        package(PackageOptions(bundle=bundle, repository=folder, name=name, precision="fp32", device="cpu"))
    return folder


@pytest.fixture(scope="module")
def options(repository: Path) -> Iterator[ServeOptions]:
    with running(serve_options(repository)) as served:
        yield served


@pytest.fixture(scope="module")
def answers(options: ServeOptions, ensembles: dict[str, Path]) -> dict[str, Answer]:
    return known_answers(options.base_url.removeprefix("http://"), next(iter(ensembles)), 40)
