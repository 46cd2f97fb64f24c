"""Made-up packages in a model repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from serving.artifact import MANIFEST, inputs_record, staging_folder, write_manifest
from serving.layout import is_single_model, working_models
from serving.manifests import BundleProvenance
from serving.options import Layout
from serving.placement import refuse_foreign, staging_root, switch
from tests.helpers.manifests import NOTHING, repository_manifest, variant_figures


def write_package(
    repository: Path, name: str, *, layout: Layout = "ensemble", bundle: str = "", bundle_sha256: str = "", **changes: Any
) -> None:
    """Package models that nothing can load, with the steps of :func:`serving.repository.package`."""
    refuse_foreign(repository, name, layout)
    repository.mkdir(exist_ok=True)
    with staging_folder(staging_root(repository), f"{repository.name}-{name}") as folder:
        generation = folder / "generation"
        working = working_models(name, layout)
        for model in {*working, name}:
            (generation / model / "1").mkdir(parents=True)
            (generation / model / "config.pbtxt").write_text("x" * 100_000, encoding="utf-8")
        if is_single_model(layout):
            (generation / name / "warmup").mkdir()
        for model in working:
            (generation / model / "1" / "model").touch()
        source = BundleProvenance(manifest=NOTHING, figures=variant_figures(), name=bundle or name)
        inputs = inputs_record({}, {MANIFEST: bundle_sha256})
        write_manifest(generation, repository_manifest(inputs, name=name, layout=layout, bundle=source, **changes))
        (generation / name / MANIFEST).symlink_to(f"../{MANIFEST}")
        switch(repository, name, generation, layout)
