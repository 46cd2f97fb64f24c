"""The package of a model that generates holds every module that its program imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from serving.generating_model import RUNTIME, program_modules
from serving.runtime.tasks import load_served
from serving.runtime.tasks._generation import GenerationTask


def imported(path: Path) -> set[Path]:
    """Modules of the runtime that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            names = [folder / alias.name for alias in node.names]
            found |= {one.with_suffix(".py") for one in (folder, *names) if one.with_suffix(".py").is_file()}
    return found


@pytest.mark.parametrize("name", ["text-generation", "summarization", "translation"])
def test_all_modules_are_there(name: str) -> None:
    task = load_served(name, {"vocab_size": 9})
    assert isinstance(task, GenerationTask)
    needed, todo = set(), [RUNTIME / f"{task.program}.py"]
    while todo:
        needed.add(module := todo.pop())
        todo += imported(module) - needed
    assert len(needed) > 15
    assert needed <= set(program_modules(task))
