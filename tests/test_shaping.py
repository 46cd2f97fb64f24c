"""What decides the result of a stage is in its fingerprint: the code that it imports, and nothing of another stage."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import grimp
import pytest

from export import bundle, finetuning
from export.tasks import task_names
from serving import repository
from serving.artifact import PROJECT, checksums, task_code

STAGES = {module.__name__: (*module.SHAPING, *module.TASK_SHAPING) for module in (bundle, finetuning, repository)}
COPIED = ("export", "serving", "benchmarks", "pyproject.toml")
TASK_PACKAGES = sorted({path.replace("/", ".") for paths in STAGES.values() for path in paths if path.endswith("/tasks")})
EVERYWHERE = {
    "serving.bundle": "how bundles are read: what is taken of one is recorded by its checksum",
    "serving.artifact": "how artifacts are written; the schema version says what is in them",
    "serving.click_options": "the options that decide are recorded",
    "serving.naming": "the name is recorded",
    "serving.configuration": "only the type of a field of a manifest",
    "serving.errors": "only words",
    "serving.file_layout": "rows are recorded by their checksums",
    "serving.manifests": "as serving.artifact",
    "serving.isolation": "names of temporary folders, and what a server's process is given",
    "serving.option_fields": "the options that decide are recorded",
    "serving.options": "the options that decide are recorded",
    "serving.signatures": "it only refuses",
    "serving.signing_options": "it only refuses",
    "serving.vllm_options": "the options that decide are recorded",
    "serving.access_options": "the options that decide are recorded",
    "serving.front_options": "the options that decide are recorded",
    "serving.health_options": "the options that decide are recorded",
    "serving.release_options": "the options that decide are recorded",
    "serving.reporting": "only words",
    "serving.runtime.suggestions": "only words",
    "serving.server_naming": "only words",
    "serving.text_table": "only words",
    "serving.watch_options": "the options that decide are recorded",
    "serving.writing": "only words: it names the file in an error",
}
ROWS = {
    "export.spelling": "it only refuses",
    "serving.records": "rows and checkpoints are recorded by their checksums",
    "export.options": "the options that decide are recorded",
    "export.gguf_checkpoint": "as serving.records",
    "export.quickstart": "as serving.records",
    "export.sources": "as serving.records",
}
WITHOUT_EFFECT = {
    "export.bundle": {
        **ROWS,
        "export.checkpoint_checks": "it only refuses",
        "export.long_steps": "only words",
        "export.replacing": "it only refuses",
        "export.export_subject": "name and task are recorded",
        "export.tasks.trained": "only fine-tuning calls it",
        "serving.runtime.tasks": "the graphs do not depend on it; the bundle records what it was verified with",
        "export.export_options": "the options that decide are recorded",
        "serving.generation_device": "only words: such a bundle is made on the CPU",
        "serving.machine": "whether there is a GPU: the device is recorded in the bundle",
    },
    "export.finetuning": {
        **ROWS,
        "export.baseline": "it measures no model",
        "export.unknown_tokens": "only words",
        "export.checkpoint_checks": "it only refuses",
        "export.replacing": "it only refuses",
        "export.training_name": "the name is recorded",
        "export.finetune_options": "the options that decide are recorded",
        "export.model_card": "only words",
        "serving.runtime.generation": "training generates with transformers",
    },
    "serving.repository": {
        "serving.leases": "which old packages are deleted, not what is written",
        "serving.pruning": "as serving.leases",
        "serving.promotion_history": "which generations were chosen before, not what is written",
        "serving.generation_device": "only words, and it refuses",
        "serving.integrity": "it only refuses",
        "serving.lineage": "it only refuses",
        "serving.machine": "the plan is recorded with all of its choices",
        "serving.original_location": "the files found there are compared with those that the bundle records",
        "serving.tuning": "the plan is recorded with all of its choices",
    },
}
"""Modules that a stage imports, but that cannot change its result, and why."""
FOREIGN = {
    "export.bundle": ("export/training", "export/finetuning", "benchmarks"),
    "export.finetuning": ("benchmarks",),
    "serving.repository": ("export", "benchmarks"),
}
"""What an edit must not make a stage out of date."""


@functools.cache
def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("export", "serving", "benchmarks", cache_dir=None)


def path_of(module: str) -> str:
    """The module's file, relative to the project."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (PROJECT / path).is_dir() else f"{path}.py"


def unlisted(stage: str, modules: set[str]) -> set[str]:
    """Modules that are neither in the stage's fingerprint nor known to be without effect."""
    return {
        module
        for module in modules
        if not any(path_of(module) == listed or path_of(module).startswith(f"{listed}/") for listed in STAGES[stage])
        and not any(module == known or module.startswith(f"{known}.") for known in EVERYWHERE | WITHOUT_EFFECT[stage])
    }


@pytest.mark.parametrize("stage", STAGES)
def test_all_that_a_stage_imports_is_in_its_fingerprint_or_without_effect(stage: str) -> None:
    imported = {stage, *import_graph().find_upstream_modules(stage)}
    assert not unlisted(stage, imported), f"add these to SHAPING in {stage}, or to WITHOUT_EFFECT here with a reason"
    stale = {known for known in WITHOUT_EFFECT[stage] if not any(f"{module}.".startswith(f"{known}.") for module in imported)}
    assert not stale, "nothing of the stage imports these"


@pytest.mark.parametrize("stage", STAGES)
def test_a_fingerprint_holds_files_that_are_there_and_nothing_of_a_later_stage(stage: str) -> None:
    listed = STAGES[stage]
    assert len(set(listed)) == len(listed)
    for path in listed:
        assert (PROJECT / path).exists(), path
        assert not path.startswith(FOREIGN[stage]), f"{stage} must not depend on {path}"


@pytest.mark.parametrize("package", TASK_PACKAGES)
def test_no_task_imports_another(package: str) -> None:
    """Only then may the fingerprint of a task leave out the modules of the others."""
    modules = {f"{package}.{name.replace('-', '_')}" for name in task_names()} & import_graph().modules
    assert len(modules) > 1
    for module in modules:
        assert import_graph().find_upstream_modules(module) & modules <= {module}


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        (bundle, {"export/tasks/fill_mask.py", "export/tasks/base.py", "export/metrics/accuracy/accuracy.py", "export/verify.py"}),
        (
            finetuning,
            {"export/tasks/fill_mask.py", "export/tasks/trained.py", "serving/runtime/tasks/fill_mask.py", "export/checkpoint.py"},
        ),
        (repository, {"serving/runtime/tasks/fill_mask.py", "serving/runtime/preprocess.py", "serving/prologue.py"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_code_of_a_stage_holds_the_task(stage: ModuleType, modules: set[str]) -> None:
    found = stage.shaping_code("fill-mask")
    assert modules <= found.keys()
    assert not any("question_answering" in path for path in found)


def test_of_the_tasks_only_its_own_is_in_a_fingerprint() -> None:
    found = task_code(["serving/runtime"], "fill-mask", task_names())
    for module in ("preprocess.py", "tasks/fill_mask.py", "tasks/base.py", "tasks/_strings.py"):
        assert f"serving/runtime/{module}" in found
    assert not any("question_answering" in module for module in found)


def test_a_module_that_is_forgotten_is_found() -> None:
    assert unlisted("export.bundle", {"export.verify", "export.training.train", "export.metrics.spans.spans"}) == {
        "export.training.train"
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, to edit."""
    for name in COPIED:
        place = PROJECT / name
        if place.is_dir():
            shutil.copytree(place, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, tmp_path / "project")
    return tmp_path / "project"


def edit(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n# edited\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.long
def test_an_edit_makes_only_that_out_of_date_which_it_decides(
    project: Path, tiny_checkpoint: Path, review_file: Path, tmp_path: Path
) -> None:
    """Training code makes nothing out of date; a served task only the repository; evaluation the bundle."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "export.cli", *arguments, "--name", "tiny", "--recipe", str(tmp_path / "recipe.toml")]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    places = f'artifacts = "{tmp_path / "artifacts"}"\nrepository = "{tmp_path / "models"}"\n'
    rows = f'[export]\ncheckpoint = "{tiny_checkpoint}"\ntest = "{review_file}"\nprecision = ["fp32"]\n'
    (tmp_path / "recipe.toml").write_text(places + rows, encoding="utf-8")
    package = ("package", "--bundle", str(tmp_path / "artifacts" / "tiny" / "bundle"))
    assert "up to date" not in run("export")
    assert "is packaged" in run(*package)
    packaged = checksums(tmp_path / "models")

    for module in ("training/trainer.py", "finetuning.py", "tasks/trained.py", "tasks/_rewriting.py", "tasks/translation.py"):
        edit(project / "export" / module)
    edit(project / "benchmarks" / "run.py")
    edit(project / "serving" / "runtime" / "tasks" / "fill_mask.py")  # of another task
    assert "up to date" in run("export")
    assert "is up to date" in run(*package)
    assert checksums(tmp_path / "models") == packaged

    edit(project / "serving" / "runtime" / "tasks" / "text_classification.py")
    assert "up to date" in run("export")
    again = run(*package)
    assert "is packaged" in again
    assert "the bundle was verified before serving/runtime/tasks/text_classification.py changed" in again

    edit(project / "export" / "tasks" / "text_classification.py")
    assert "up to date" not in run("export"), "its figures come from there"
