"""The stages of this package as Python functions, which ``from export import finetune, export`` gives."""

from __future__ import annotations

from export.commands import finish_export, finish_finetune, prepare_export, prepare_finetune, run_export, run_finetune
from export.export_options import ExportOptions
from export.finetune_options import FinetuneOptions
from export.options import SharingOptions
from serving.manifests import BundleManifest, CheckpointManifest
from serving.stage_function import stage_function


@stage_function
def finetune(options: FinetuneOptions, sharing: SharingOptions) -> CheckpointManifest:
    """Train a checkpoint on labelled rows and keep the best epoch: ``artifacts/NAME/checkpoint/``.

    The keywords are the options of ``tritonize finetune``, with underscores::

        finetune(name="tickets", checkpoint="distilbert/distilbert-base-uncased", train="tickets.csv", epochs=2)

    A run that was interrupted resumes after its last complete epoch. If nothing has changed since the last run, nothing
    is computed.

    Returns:
        The manifest of the checkpoint: labels, settings, figures of each split (``figures.splits["validation"]``).

    Raises:
        TypeError: A keyword is unknown or missing.
        ValueError: A value is not allowed.
        TritonizeError: The checkpoint or the rows cannot be used, or training failed; the classes are in ``serving``.
    """
    options = prepare_finetune(options, sharing)
    manifest = run_finetune(options)
    finish_finetune(options, sharing)
    return manifest


@stage_function
def export(options: ExportOptions, sharing: SharingOptions) -> BundleManifest:
    """Convert a checkpoint to ONNX and verify each variant on real rows: ``artifacts/NAME/bundle/``.

    The keywords are the options of ``tritonize export``, with underscores::

        export(name="tickets", precision=["fp32", "int8"])

    Returns:
        The manifest of the bundle: figures, gates and verdict of each variant (``precisions["int8"].verdict``).

    Raises:
        TypeError: A keyword is unknown or missing.
        ValueError: A value is not allowed.
        GateError: fp32 or a variant named in ``precision`` failed its gates.
        TritonizeError: The checkpoint or the rows cannot be used, or a graph could not be made.
    """
    options = prepare_export(options, sharing)
    manifest = run_export(options)
    finish_export(manifest, options, sharing)
    return manifest
