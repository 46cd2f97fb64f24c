"""The PyTorch original that a benchmark measures: where it is found, and that no other one is taken for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.numpy

from benchmarks.benchmark_options import BenchmarkOptions
from benchmarks.original_checkpoint import find_original, require_original
from export import quickstart
from serving.artifact import fingerprint, inputs_record, json_ready, write_manifest
from serving.bundle import Bundle, load_bundle
from serving.errors import ArtifactError
from tests.helpers.manifests import SPEED, bundle_manifest
from tests.helpers.tasks import classification

NAME = "tiny"


def _checkpoint(folder: Path, weights: str) -> Path:
    """A checkpoint folder with weights of no tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save({}, metadata={"name": weights}))
    return folder


@pytest.fixture
def export_from(tmp_path: Path) -> Callable[[Path, str], Bundle]:
    """Writes the bundle of a checkpoint, which it knows by a name."""

    def written(checkpoint: Path, name: str) -> Bundle:
        folder = tmp_path / "artifacts" / NAME / "bundle"
        (folder / "fp32").mkdir(parents=True)
        (folder / "fp32" / "model.onnx").touch()
        inputs = inputs_record({}, fingerprint([checkpoint / "model.safetensors"], root=checkpoint))
        original = SPEED | {"accuracy": 0.9, "rows": 100, "bytes": 1000, "checkpoint": {"name": name, "sha256": "0"}}
        settings = json_ready(classification(("negative", "positive")).served.to_settings())
        write_manifest(folder, bundle_manifest(inputs, name=NAME, settings=settings, original=original))
        return load_bundle(folder)

    return written


@pytest.fixture
def options(tmp_path: Path) -> BenchmarkOptions:
    return BenchmarkOptions(name=NAME, artifacts=tmp_path / "artifacts")


def test_the_checkpoint_that_was_trained_is_found(
    options: BenchmarkOptions, export_from: Callable[[Path, str], Bundle], tmp_path: Path
) -> None:
    trained = _checkpoint(tmp_path / "artifacts" / NAME / "checkpoint", "ours")
    assert find_original(options, export_from(trained, "checkpoint")) == trained


def test_one_of_the_quickstart_that_was_exported_is_found(
    options: BenchmarkOptions, export_from: Callable[[Path, str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _checkpoint(tmp_path / "made", "ours")
    monkeypatch.setitem(quickstart.CHECKPOINTS, quickstart.SMOLLM2, lambda _cache: made)
    assert find_original(options, export_from(made, quickstart.SMOLLM2)) == made


def test_one_of_the_hub_that_was_exported_is_found(
    options: BenchmarkOptions, export_from: Callable[[Path, str], Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloaded = _checkpoint(tmp_path / "downloaded", "ours")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(downloaded) if name == "org/tiny" else None)
    assert find_original(options, export_from(downloaded, "org/tiny")) == downloaded


def test_a_folder_elsewhere_must_be_named(
    options: BenchmarkOptions, export_from: Callable[[Path, str], Bundle], tmp_path: Path
) -> None:
    bundle = export_from(_checkpoint(tmp_path / "elsewhere", "ours"), "elsewhere")
    with pytest.raises(ArtifactError, match=rf"no checkpoint folder .*{NAME}/checkpoint") as refused:
        find_original(options, bundle)
    assert refused.value.hint is not None
    assert "--checkpoint" in refused.value.hint


def test_another_checkpoint_than_the_bundles_original_is_refused(
    export_from: Callable[[Path, str], Bundle], tmp_path: Path
) -> None:
    checkpoint = _checkpoint(tmp_path / "checkpoint", "ours")
    bundle = export_from(checkpoint, "checkpoint")
    require_original(bundle, checkpoint)
    (checkpoint / "model.safetensors").write_bytes(safetensors.numpy.save({}, metadata={"name": "others"}))
    with pytest.raises(ArtifactError, match="was not exported from"):
        require_original(bundle, checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="no safetensors weights"):
        require_original(bundle, checkpoint)
