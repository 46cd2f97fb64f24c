"""Packaging replaces no model of another task or bundle, and takes no bundle that is older than its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serving.artifact import MANIFEST, inputs_record, sha256, write_manifest
from serving.bundle import Bundle, load_bundle
from serving.errors import ArtifactError
from serving.lineage import is_outdated, is_packaged_from, read_package, refuse_other_package
from serving.manifests import BundleProvenance
from serving.options import PackageOptions
from tests.helpers.manifests import NOTHING, bundle_manifest, checkpoint_manifest, repository_manifest, variant_figures

SETTINGS = {"labels": ["bad", "good"], "function_to_apply": "softmax"}


def write_bundle(folder: Path, *, weights: str = "first", **changes: Any) -> Bundle:
    """A bundle of the checkpoint ``tiny`` with those weights."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": weights, "config.json": "c", "1_Pooling/config.json": "p", "export/bundle.py": "code"}
    made = bundle_manifest(inputs_record({}, files), settings=SETTINGS, **changes)
    original = made.original.model_copy(update={"checkpoint": made.original.checkpoint.model_copy(update={"name": "tiny"})})
    write_manifest(folder, made.model_copy(update={"original": original}))
    return load_bundle(folder)


def write_checkpoint(folder: Path, content: str, name: str = "tiny") -> None:
    """A checkpoint with two files of that content."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("model.safetensors", "config.json"):
        (folder / file).write_text(content, encoding="utf-8")
    (folder / "README.md").write_text("edited", encoding="utf-8")
    write_manifest(folder, checkpoint_manifest(name=name))


def write_package(repository: Path, bundle: str | None, **changes: Any) -> None:
    generation = "20260101000000"
    home = repository / "m"
    (home / generation).mkdir(parents=True, exist_ok=True)
    (home / "config.pbtxt").write_text(f"version_policy {{ specific {{ versions: {generation} }} }}", encoding="utf-8")
    source = BundleProvenance(manifest=NOTHING, figures=variant_figures(), name=bundle)
    write_manifest(home / generation, repository_manifest(bundle=source, generation=generation, **changes))


def options(folder: Path, **more: Any) -> PackageOptions:
    return PackageOptions(name="m", bundle=folder / "tiny/bundle", repository=folder / "models", **more)


def test_a_model_of_another_task_or_bundle_is_not_replaced(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny/bundle")
    refuse_other_package(options(tmp_path), bundle)
    for same in ("tiny", None):  # earlier versions did not record it
        write_package(tmp_path / "models", same)
        refuse_other_package(options(tmp_path), bundle)
    write_package(tmp_path / "models", "reviews")
    with pytest.raises(ArtifactError, match=r"m was packaged for text-classification from the bundle reviews; now .* tiny"):
        refuse_other_package(options(tmp_path), bundle)
    refuse_other_package(options(tmp_path, force=True), bundle)
    write_package(tmp_path / "models", None, task="fill-mask")
    with pytest.raises(ArtifactError, match="m was packaged for fill-mask; now the task is text-classification") as raised:
        refuse_other_package(options(tmp_path), bundle)
    assert raised.value.hint == "choose another --name, or replace it with --force"
    (tmp_path / "models" / "m" / "20260101000000" / MANIFEST).write_text("damaged", encoding="utf-8")
    assert read_package(tmp_path / "models", "m") is None
    refuse_other_package(options(tmp_path), bundle)


def test_a_bundle_that_is_older_than_its_checkpoint_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tmp_path / "tiny/checkpoint"
    write_checkpoint(checkpoint, "first")
    files = {"model.safetensors": sha256(checkpoint / "model.safetensors"), "config.json": sha256(checkpoint / "config.json")}
    bundle = write_bundle(tmp_path / "tiny/bundle", weights=files["model.safetensors"])
    current = bundle.manifest.model_copy(update={"inputs": inputs_record({}, files | {"export/bundle.py": "code"})})
    assert not is_outdated(bundle.folder, current)
    write_checkpoint(checkpoint, "second")
    assert is_outdated(bundle.folder, current)
    with pytest.raises(ArtifactError, match=r"checkpoint was trained anew after .*bundle was exported from it") as raised:
        refuse_other_package(options(tmp_path), bundle)
    hint = "export it again with: tritonize export --name tiny, or package the earlier one with --force"
    assert raised.value.hint == hint
    refuse_other_package(options(tmp_path, force=True), bundle)
    write_checkpoint(checkpoint, "second", name="other")
    assert not is_outdated(bundle.folder, current), "the bundle was exported from another checkpoint"
    (checkpoint / MANIFEST).unlink()
    assert not is_outdated(bundle.folder, current), "nobody knows"


def test_a_package_knows_its_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "tiny/bundle").folder
    packaged = repository_manifest(inputs_record({}, {MANIFEST: sha256(bundle / MANIFEST)}))
    assert is_packaged_from(packaged, bundle)
    write_bundle(bundle, weights="second")
    assert not is_packaged_from(packaged, bundle)
