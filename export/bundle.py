"""Export: checkpoint → a bundle of verified ONNX variants."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from export.export_options import ExportOptions
from export.export_source import ExportSource, find_source
from export.export_subject import described_export
from export.replacing import refuse_other_bundle
from export.tasks import task_names
from export.tasks._generation import ExportedGenerationTask
from export.tasks.exported import ExportedTask
from serving.artifact import (
    code_fingerprint,
    inputs_record,
    is_current,
    publish,
    read_manifest,
    task_code,
    write_manifest,
)
from serving.errors import ExportError, GateError
from serving.manifests import BundleManifest, StageInputs, VariantRecord
from serving.options import PRECISIONS, Precision
from serving.reporting import logger

SHAPING = (
    "export/batch_mates.py",
    "export/bundle.py",
    "export/checkpoint.py",
    "export/columns.py",
    "export/convert.py",
    "export/data.py",
    "export/export_source.py",
    "export/generation",
    "export/generation_defaults.py",
    "export/generation_settings.py",
    "export/graph.py",
    "export/lengths.py",
    "export/mask_head.py",
    "export/metric.py",
    "export/metrics",
    "export/model_inputs.py",
    "export/optimize.py",
    "export/original.py",
    "export/output_head.py",
    "export/pooling_head.py",
    "export/library_answers.py",
    "export/rows.py",
    "export/rowwise_int8.py",
    "export/slow_tokenizers",
    "export/variant_graph.py",
    "export/variants.py",
    "export/model_timing.py",
    "export/verify.py",
    "serving/answer_comparison.py",
    "serving/prologue.py",
    "serving/runtime/generation",
    "serving/runtime/model_session.py",
    "serving/runtime/cutting.py",
    "serving/runtime/tokenization.py",
    "serving/runtime/types.py",
    "serving/undecided.py",
)
"""Files that the content of a bundle depends on, besides the task. If one of them changes, the bundle is not up to date."""
TASK_SHAPING = ("export/tasks",)
"""Folder with one module per task, of which only the bundle's task counts (see :func:`serving.artifact.task_code`).

The served half of a task is not included: the graphs do not depend on it, and the bundle records the served code that it was
verified with (see :func:`serving.bundle.served_code`).
"""
TRAINING_ONLY = frozenset({"export/tasks/trained.py", "export/tasks/_rewriting.py"})
"""Modules of the tasks that only fine-tuning calls."""


def export(options: ExportOptions) -> BundleManifest:
    """Convert, optimize and verify a checkpoint, and write the bundle.

    A variant that fails its gates is not part of the bundle, but its record stays in the manifest.

    Returns:
        The manifest of the bundle, which is that of the last run if nothing has changed since.

    Raises:
        ArtifactError: The checkpoint is missing, of another task, or cannot be loaded; or the export would replace a bundle of
            another checkpoint or task.
        DataError: The rows do not fit the task or the checkpoint.
        ExportError: A graph could not be made.
        GateError: The outputs of the fp32 variant differ from those of PyTorch.
    """
    options = described_export(options)
    source = find_source(options)
    options = _with_precisions(options, source.task)
    inputs = _inputs(options, source)
    if not options.force and is_current(options.target, BundleManifest, inputs):
        manifest = read_manifest(options.target, BundleManifest)
        if set(options.precision) <= set(manifest.precisions):
            logger.info(f"{options.target} is up to date")
            return manifest
        # variants that the bundle already has stay in it
        precisions = {*options.precision, *manifest.precisions}
        options = replace(options, precision=tuple(precision for precision in PRECISIONS if precision in precisions))
    elif not options.force:
        own = source.trained and source.name == options.name
        refuse_other_bundle(options.target, task=options.task, checkpoint=source.name, files=source.files, retrainable=own)

    with publish(options.target) as staging:
        manifest = _build(source, options, staging, inputs)
        require_passed(manifest.precisions, ["fp32"])
        return write_manifest(staging, manifest)


def _with_precisions(options: ExportOptions, task: ExportedTask) -> ExportOptions:
    """Name the variants that are exported: those that were asked for, or those of the task.

    Raises:
        ExportError: Models of the task have no such variant.
    """
    chosen = options.precision or task.default_precisions
    if unknown := [precision for precision in chosen if precision not in task.precisions]:
        raise ExportError(
            f"models of {task.name} are not exported in {', '.join(unknown)}", hint=f"they have {', '.join(task.precisions)}"
        )
    return replace(options, precision=tuple(precision for precision in PRECISIONS if precision in {"fp32", *chosen}))


def _build(source: ExportSource, options: ExportOptions, staging: Path, inputs: StageInputs) -> BundleManifest:
    if isinstance(source.task, ExportedGenerationTask):
        from export.generation import generation_bundle

        return generation_bundle.build(source, options, staging, inputs)
    from export import variants

    return variants.build(source, options, staging, inputs)


def require_passed(records: Mapping[Precision, VariantRecord], precisions: Collection[str]) -> None:
    """Check that variants passed their gates.

    Args:
        records: The records of all variants of a bundle.
        precisions: The variants to check.

    Raises:
        GateError: A variant failed. The message has its figures.
    """
    failed = [
        f"{precision} failed: {record.failures}"
        for precision, record in records.items()
        if precision in precisions and record.verdict != "passed"
    ]
    if failed:
        hint = (
            "the graph does not compute what PyTorch computes"
            if "fp32" in precisions and len(precisions) == 1
            else "leave it out of --precision, or change --max-metric-drop, --min-agreement or --min-row-agreement"
        )
        raise GateError(". ".join(failed), hint=hint)


def _inputs(options: ExportOptions, source: ExportSource) -> StageInputs:
    record: dict[str, object] = {
        "task": source.task.to_settings(),
        "max_length": source.max_length or source.recommended_length,
        "max_metric_drop": options.max_metric_drop,
        "max_perplexity_increase": options.max_perplexity_increase,
        "min_agreement": options.min_agreement,
        "min_row_agreement": options.min_row_agreement,
        "verify_rows": options.verify_rows,
        "opset": options.opset,
        "device": options.device,
        "seed": options.seed,
        "rows": {"rows": len(source.rows), "sha256": source.rows.digest()},
    }
    return inputs_record(record, source.files, shaping_code(options.task))


def shaping_code(task: str) -> dict[str, str]:
    """Return the SHA-256 of the code that decides what a bundle of a task holds, by path."""
    tasks = [path for path in task_code(TASK_SHAPING, task, task_names()) if path not in TRAINING_ONLY]
    return code_fingerprint([*SHAPING, *tasks])
