"""What decides the result of a stage is in its fingerprint: the code that it imports, and nothing of another stage."""

from __future__ import annotations

import functools

import grimp
import pytest

from export import bundle, finetune
from serving import repository
from serving.artifact import PROJECT

STAGES = {"export.bundle": bundle.SHAPING, "export.finetune": finetune.SHAPING, "serving.repository": repository.SHAPING}
WITHOUT_EFFECT = {
    "export.bundle": {
        "export.export_options": "the options that decide are recorded",
        "export.options": "as export.export_options",
        "serving.options": "as export.export_options",
        "serving.option_fields": "as export.export_options",
        "export.sources": "rows and checkpoint are recorded by their checksums",
        "export.files": "as export.sources",
        "export.quickstart": "as export.sources",
        "serving.records": "as export.sources",
        "serving.artifact": "how artifacts are written; the schema version says what is in them",
        "serving.manifests": "as serving.artifact",
        "serving.configuration": "only the type of a field of a manifest",
        "serving.errors": "only words",
        "serving.machine": "whether there is a GPU: the device is recorded in the bundle",
    },
    "export.finetune": {
        "export.model_card": "only words",
        "export.finetune_options": "the options that decide are recorded",
        "export.options": "as export.finetune_options",
        "serving.options": "as export.finetune_options",
        "serving.option_fields": "as export.finetune_options",
        "export.sources": "rows and checkpoint are recorded by their checksums",
        "export.files": "as export.sources",
        "export.quickstart": "as export.sources",
        "serving.records": "as export.sources",
        "serving.artifact": "how artifacts are written; the schema version says what is in them",
        "serving.manifests": "as serving.artifact",
        "serving.configuration": "only the type of a field of a manifest",
        "serving.errors": "only words",
    },
    "serving.repository": {
        "serving.artifact": "how artifacts are written; the schema version says what is in them",
        "serving.manifests": "as serving.artifact",
        "serving.bundle": "how bundles are read: what is taken of one is recorded by its checksum",
        "serving.configuration": "the plan is recorded with all of its choices",
        "serving.machine": "as serving.configuration",
        "serving.options": "as serving.configuration",
        "serving.option_fields": "as serving.configuration",
        "serving.tuning": "as serving.configuration",
        "serving.errors": "only words",
    },
}
FOREIGN = {
    "export.bundle": ("export/training", "export/finetune", "benchmarks"),
    "export.finetune": ("benchmarks",),
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
        and not any(module == known or module.startswith(f"{known}.") for known in WITHOUT_EFFECT[stage])
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


def test_a_module_that_is_forgotten_is_found() -> None:
    assert unlisted("export.bundle", {"export.verify", "export.training.train", "export.metrics.spans.spans"}) == {
        "export.training.train"
    }
