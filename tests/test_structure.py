"""The shape of the project: who imports whom, what stays light, what runs in an older Python inside Triton."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import pytest

from export.tasks import is_exported, task_class, task_names
from serving.runtime.tasks import served_class, served_names

PROJECT = Path(__file__).parents[1]
PACKAGES = ("export", "serving", "benchmarks")
MAY_IMPORT = {"serving": set(), "export": {"serving"}, "benchmarks": {"serving", "export"}}
RUN_MODELS = {"model_session.py", "fused.py", "step_graph.py", "encoder_decoder_step.py"}
"""Modules of the runtime that need ONNX Runtime."""
RUNTIME_MAY_IMPORT = {"numpy", "tokenizers", "triton_python_backend_utils"}
TOP_LEVEL = {
    "export",
    "serving",
    "model_repository",
    "benchmarks",
    "tests",
    "pyproject.toml",
    "Makefile",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
}


def modules(package: str) -> list[Path]:
    return sorted((PROJECT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level packages a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_import_direction(package: str) -> None:
    for path in modules(package):
        wrong = imported(path) & (set(PACKAGES) - MAY_IMPORT[package] - {package})
        assert not wrong, f"{path} imports {wrong}"


def test_no_import_cycles() -> None:
    """Imports inside functions and under TYPE_CHECKING count too."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    imports = {(module, other) for module in graph.modules for other in graph.find_modules_directly_imported_by(module)}
    cyclic = {(module, other) for module, other in imports if graph.chain_exists(importer=other, imported=module)}
    assert len(imports) > len(graph.modules) > 100, "the graph is not empty"
    assert cyclic == set()


def test_the_runtime_imports_only_what_triton_has() -> None:
    for path in (PROJECT / "serving" / "runtime").rglob("*.py"):
        more = {"onnxruntime"} if path.name in RUN_MODELS else {"jinja2"} if path.name == "chat_template.py" else set()
        assert imported(path) <= set(sys.stdlib_module_names) | RUNTIME_MAY_IMPORT | more, path


def test_the_runtime_parses_in_the_python_of_the_official_image() -> None:
    for path in [*(PROJECT / "serving" / "runtime").rglob("*.py"), *(PROJECT / "serving" / "backends").rglob("*.py")]:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


def test_the_tasks_import_in_the_python_of_the_official_image() -> None:
    python = shutil.which("python3.10")
    if python is None or subprocess.run([python, "-c", "import numpy"], capture_output=True, check=False).returncode:
        pytest.skip("no Python 3.10 with numpy here")
    script = (
        "from runtime import metadata; from runtime.tasks import *; print(*(served_class(name).name for name in served_names()))"
    )
    run = subprocess.run(
        [python, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT / "serving")},
    )
    assert run.stdout.split() == served_names()


def test_the_distribution_owns_its_import_names() -> None:
    owners = importlib.metadata.packages_distributions()
    assert {name: set(owners.get(name, ())) for name in PACKAGES} == {name: {"tritonize"} for name in PACKAGES}


def test_top_level() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in tracked.stdout.splitlines()}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_no_module_grows_out_of_hand() -> None:
    for package in PACKAGES:
        for path in modules(package):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


HALVES = sorted([*(PROJECT / "serving/runtime/tasks").glob("*.py"), *(PROJECT / "export/tasks").glob("*.py")])


@pytest.mark.parametrize("path", HALVES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_the_two_halves_of_a_task_are_fully_typed(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs, *filter(None, (node.args.vararg, node.args.kwarg))]
            annotations = [one.annotation for one in arguments if one.arg not in ("self", "cls")] + [node.returns]
            names = {name.id for one in filter(None, annotations) for name in ast.walk(one) if isinstance(name, ast.Name)}
            assert None not in annotations and "Any" not in names, f"{path}:{node.lineno} {node.name}"


def test_every_served_task_has_an_exported_half_of_its_name() -> None:
    exported = {name: task_class(name) for name in task_names() if is_exported(task_class(name))}
    assert set(served_names()) <= set(task_names())
    assert {name: task.served_class for name, task in exported.items()} == {name: served_class(name) for name in exported}


def type_names(path: Path) -> list[str]:
    """Names of the classes in a file, wherever in it, and of its type aliases: ``Name = X[…]``, ``Name = X | Y``, ``Name = X``."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.name for node in ast.walk(module) if isinstance(node, ast.ClassDef)]
    for node in module.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript() | ast.BinOp() | ast.Name() | ast.Attribute())
                | ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="TypeAlias"))
            ) if name[0].isupper() and not name.isupper():
                found.append(name)
    return found


def test_no_two_classes_or_type_aliases_have_one_name() -> None:
    counts = Counter(name for package in PACKAGES for path in modules(package) for name in type_names(path))
    assert "Reference" in counts and "JsonValue" in counts, "aliases count"
    assert [name for name, count in counts.items() if count > 1] == ["TritonPythonModel"], "the one name is Triton's"


NAMED_ALIKE = {
    "bundle": "export writes it, serving reads it",
    "commands": "one per package",
    "errors": "of every stage, and the search for the cause of a failed training",
    "options": "one per package",
    "stages": "one per package",
    "translation": "the two halves of the task, and its metric",
}


def test_no_two_modules_have_one_name_without_a_reason() -> None:
    paths = [path for package in PACKAGES for path in modules(package) if path.stem != "__init__"]
    halves = {path.stem for path in paths if path.parent == PROJECT / "serving" / "runtime" / "tasks"}
    counts = Counter(path.stem for path in paths)
    alike = {name for name, count in counts.items() if count > 1}
    assert alike - halves == NAMED_ALIKE.keys() - halves
    assert all(counts[name] == 2 for name in alike & (halves - NAMED_ALIKE.keys())), "the two halves of a task"


def test_nothing_of_training_runs_in_triton() -> None:
    words = re.compile(r"(?<!cons)train|fine-?tun|\bloss(es)?\b|gradient|\bmetrics?\b|data ?sets?\b", re.IGNORECASE)
    for path in (PROJECT / "serving" / "runtime").rglob("*.py"):
        found = {word[0] for word in words.finditer(path.read_text(encoding="utf-8"))}
        prometheus = {"metrics", "metric", "Metric"} if path.name == "engine_metrics.py" else set()
        assert found <= prometheus, path
