"""Made-up packages in a model repository, and where the parts of packages are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.artifact import MANIFEST, inputs_record, sha256, staging_folder
from serving.generations import arrange, new_generation, seal
from serving.layout import current_generation, generation_folder
from serving.manifests import BundleProvenance
from serving.model_names import is_single_model, pinned_model, step_models
from serving.options import Layout
from serving.placement import place, refuse_foreign, staging_root
from serving.pruning import prune
from tests.helpers.manifests import NOTHING, repository_manifest, variant_figures
from tests.helpers.resealing import sealed


def generation_of(repository: Path, name: str) -> str:
    """The name of the current generation."""
    found = current_generation(repository, name)
    assert found is not None
    return found


def step(repository: Path, name: str, suffix: str) -> Path:
    """The folder of a step of the current generation of an ensemble."""
    return repository / f"{pinned_model(name, generation_of(repository, name))}_{suffix}"


def entries_of(name: str, generation: str) -> list[str]:
    """The entries of a repository that holds one generation of an ensemble, sorted."""
    return sorted([name, pinned_model(name, generation), *step_models(name, generation)])


def write_package(
    repository: Path,
    name: str,
    *,
    layout: Layout = "ensemble",
    bundle: str = "",
    bundle_sha256: str = "",
    keep: int = 1,
    current: bool = True,
    files_in_the_model: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> str:
    """Package models that nothing can load, with the steps of :func:`serving.repository.package`. Returns the generation."""
    refuse_foreign(repository, name)
    repository.mkdir(exist_ok=True)
    with staging_folder(staging_root(repository), f"{repository.name}-{name}") as folder:
        tree, generation, single = folder / "models", new_generation(repository, name), is_single_model(layout)
        for model in [name] if single else [pinned_model(name, generation), *step_models(name, generation)]:
            (tree / model / "1").mkdir(parents=True)
            (tree / model / "config.pbtxt").write_text(f'name: "{model}"\n# {"x" * 100_000}', encoding="utf-8")
            if single or "_" in model.removeprefix(name):
                (tree / model / "1" / "model").touch()
        for file, content in (files_in_the_model or {}).items():
            (tree / (name if single else f"{pinned_model(name, generation)}_model") / "1" / file).write_bytes(content)
        if single:
            (tree / name / "warmup").mkdir()
            (tree / name / "warmup" / "short").touch()
        arrange(tree, name, layout, generation)
        source = BundleProvenance(manifest=NOTHING, figures=variant_figures(), name=bundle or name)
        made = repository_manifest(
            inputs_record({}, {MANIFEST: bundle_sha256}), name=name, generation=generation, layout=layout, bundle=source, **changes
        )
        seal(tree, made)
        place(repository, tree, name, layout, generation, current=current)
        prune(repository, name, keep, packaged=generation)
    return generation


def reseal_package(repository: Path, name: str, **changes: Any) -> None:
    """Record the files of the current generation as they are now, and ``changes`` of other fields, in its manifest."""
    folder = generation_folder(repository, name, generation_of(repository, name))
    content = json.loads((folder / MANIFEST).read_bytes())
    content |= {"files": {file: sha256(repository / file) for file in content["files"]}} | changes
    text = json.dumps(sealed(content), ensure_ascii=False)
    for place_of_it in (folder, repository / pinned_model(name, folder.name) / "1"):
        if place_of_it.is_dir():
            (place_of_it / MANIFEST).write_text(text, encoding="utf-8")
