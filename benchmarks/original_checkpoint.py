"""The PyTorch original of a bundle: where it is, and whether its weights are those that were exported."""

from __future__ import annotations

from pathlib import Path

from benchmarks.backends import weights_file
from benchmarks.benchmark_options import BenchmarkOptions
from export.sources import checkpoint_folder
from serving.artifact import sha256
from serving.bundle import Bundle
from serving.errors import ArtifactError
from serving.original_location import QUICKSTART, original_location


def find_original(options: BenchmarkOptions, bundle: Bundle) -> Path:
    """Return the folder of the PyTorch original: that of the options, that of ``finetune``, or else the one that was exported.

    The latter is known by name only if it came from the Hub or the quickstart.

    Raises:
        ArtifactError: It was not found, or is not the original of the bundle.
        SetupError: It could not be downloaded.
    """
    trained = options.artifacts / options.name / "checkpoint"
    location = options.checkpoint or original_location(bundle, trained)
    if location is None:
        exported = bundle.manifest.original.checkpoint.name
        raise ArtifactError(
            f"no checkpoint folder {trained}", hint=f"name the checkpoint {exported}, which was exported, with --checkpoint"
        )
    checkpoint = checkpoint_folder(location, options.artifacts / QUICKSTART)
    require_original(bundle, checkpoint)
    return checkpoint


def require_original(bundle: Bundle, checkpoint: Path) -> None:
    """Check that a checkpoint holds the weights that a bundle was exported from.

    Raises:
        ArtifactError: It holds other weights, or none.
    """
    weights_file(checkpoint)  # raises if there are none
    exported = bundle.manifest.inputs.files
    if any(exported.get(weights.name) != sha256(weights) for weights in checkpoint.glob("*.safetensors")):
        raise ArtifactError(
            f"{bundle.folder} was not exported from {checkpoint}: the weights differ",
            hint="name its original with --checkpoint, or export anew with: tritonize export",
        )
