"""On a machine with a GPU: fp16 on CUDA against PyTorch, exported, packaged and served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.bundle import export
from export.export_options import ExportOptions
from serving.artifact import read_manifest
from serving.background import start_detached, stop
from serving.bundle import load_bundle
from serving.client import TritonPipeline
from serving.layout import current_folder
from serving.machine import has_gpu
from serving.manifests import BundleManifest, RepositoryManifest
from serving.options import PackageOptions
from serving.repository import package
from tests.helpers.reviews import SAMPLE
from tests.helpers.servers import serve_options

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.server,
    pytest.mark.skipif(
        not has_gpu() or "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
        reason="needs an NVIDIA GPU and onnxruntime-gpu",
    ),
]


@pytest.fixture(scope="module")
def gpu_bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ExportOptions(
        name="tiny",
        task="text-classification",
        checkpoint=str(trained_checkpoint),
        test=str(SAMPLE),
        device="gpu",
        precision=("fp32", "fp16"),
        artifacts=tmp_path_factory.mktemp("artifacts"),
    )
    export(options)
    return options.target


def test_every_variant_holds_on_the_gpu(gpu_bundle: Path) -> None:
    manifest = read_manifest(gpu_bundle, BundleManifest)
    assert manifest.device == "gpu"
    assert {name: record.verdict for name, record in manifest.precisions.items()} == {"fp32": "passed", "fp16": "passed"}


def test_half_precision_is_served_in_ragged_batches(
    gpu_bundle: Path, tmp_path: Path, texts: list[str], expected: list[dict[str, Any]], pipeline: Callable[..., Any]
) -> None:
    repository = tmp_path / "model_repository"
    package(PackageOptions(bundle=gpu_bundle, repository=repository, name="half"))
    manifest = read_manifest(current_folder(repository, "half"), RepositoryManifest)
    assert (manifest.precision, manifest.device, manifest.batching) == ("fp16", "gpu", "ragged")
    assert "fp16" in load_bundle(gpu_bundle).variants
    options = serve_options(repository)
    start_detached(options)
    try:
        with TritonPipeline("half", url=options.grpc_url, concurrency=64) as pipe:
            answers = pipe(texts)
    finally:
        stop(options.http_port)
    assert np.isfinite([answer["score"] for answer in answers]).all()
    agreeing = [mine["label"] == theirs["label"] for mine, theirs in zip(answers, expected, strict=True)]
    assert np.mean(agreeing) >= 0.995
