"""The tiny checkpoints of every task, each with a client and the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from serving.client import TritonPipeline
from tests.helpers.tiny_pipelines import TinyPipelines


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyPipelines]:
    with ExitStack() as stack:
        yield TinyPipelines(tmp_path_factory.mktemp("options"), stack)


@pytest.fixture(scope="session")
def both(made: TinyPipelines) -> Callable[..., tuple[TritonPipeline, Any]]:
    """Task → a client and the pipeline of its tiny checkpoint."""
    return made.both
