"""A package holds every module of the runtime that its programs import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from serving import encoder_models, generating_model
from serving.encoder_models import RUNTIME

GENERATING = {program: (program, *generating_model.SHARED_MODULES) for program in ("generate", "rewrite")}
STEPS = {step: (step, *own, *encoder_models.SHARED_MODULES) for step, own in encoder_models.OWN_MODULES.items()}


def imported(path: Path) -> set[str]:
    """The modules and packages right below the runtime that a file of it imports."""
    depth = len(path.relative_to(RUNTIME).parts)
    nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)]
    return {node.module.split(".")[0] for node in nodes if node.level == depth and node.module}


@pytest.mark.parametrize(("program", "modules"), [*GENERATING.items(), *STEPS.items()], ids=[*GENERATING, *STEPS])
def test_what_is_imported_is_copied(program: str, modules: tuple[str, ...]) -> None:
    packages = ["tasks", "generation"] if program in GENERATING else ["tasks"]
    files = [RUNTIME / f"{name}.py" for name in modules]
    for package in packages:
        files += [path for path in (RUNTIME / package).glob("*.py") if program in GENERATING or "generation" not in imported(path)]
    missing = {(path.name, name) for path in files for name in imported(path) - {*modules, *packages}}
    assert not missing
    assert imported(RUNTIME / f"{program}.py"), "relative imports are found"
