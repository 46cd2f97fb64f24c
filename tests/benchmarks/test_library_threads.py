"""The libraries that the engine is compared with run on the threads that the report names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.generation.library_models import ctranslate2_threads, load_exported
from serving.machine import cores


@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("3", 3), ("0", None), ("", None), ("1,2", None), (None, None)])
def test_ctranslate2_gets_the_threads_of_pytorch(given: str | None, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert ctranslate2_threads() == (threads or cores())


def test_exported_graphs_run_on_as_many_threads_as_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        """Stands in for a class of Optimum."""

        @classmethod
        def from_pretrained(cls, folder: Path, **options: Any) -> tuple[Path, int]:
            return folder, options["session_options"].intra_op_num_threads

    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert load_exported(Recorder, tmp_path) == (tmp_path, 5)
