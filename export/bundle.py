"""Export: checkpoint → a bundle of verified ONNX variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.export_options import ExportOptions
from export.export_source import ExportSource, find_source
from export.sources import checkpoint_files
from serving.artifact import inputs_record, is_current, publish, read_manifest, write_manifest
from serving.errors import GateError
from serving.options import PRECISIONS
from serving.reporting import logger
from serving.runtime import tasks

METRICS = Path(__file__).parent / "metrics"
RUNTIME = Path(tasks.__file__).parents[1]
SHAPING = (
    *sorted(Path(tasks.__file__).parent.glob("*.py")),
    RUNTIME / "tokenization.py",
    *sorted(METRICS.glob("*/*.py")),
    *(
        Path(__file__).parent / f"{name}.py"
        for name in (
            "checkpoint",
            "columns",
            "convert",
            "data",
            "export_source",
            "graph",
            "metric",
            "optimize",
            "original",
            "pooled",
            "rows",
            "tails",
            "variants",
            "verify",
        )
    ),
)
"""The modules that decide what a bundle holds: after an upgrade that changed one, a bundle is not up to date."""


def export(options: ExportOptions) -> dict[str, Any]:
    """Convert, optimise, verify, write the artifact. A variant that fails its gates is left out, its record stays.

    Returns:
        The artifact's manifest; that of the last run where nothing has changed since.

    Raises:
        ArtifactError: the checkpoint is missing, of another task, or cannot be loaded.
        DataError: the rows are not as they must be.
        ExportError: a graph could not be made.
        GateError: fp32 does not give what PyTorch gives.
    """
    source = find_source(options)
    inputs = _inputs(options, source)
    if not options.force and is_current(options.target, "bundle", inputs):
        manifest = read_manifest(options.target, "bundle")
        if set(options.precisions) <= set(manifest["precisions"]):
            logger.info(f"{options.target} is up to date")
            return manifest
        there = {*options.precisions, *manifest["precisions"]}
        options = replace(options, precision=tuple(one for one in PRECISIONS if one in there))  # what is there stays there

    from export import variants

    with publish(options.target) as staging:
        fields = variants.build(source, options, staging)
        require_passed(fields["precisions"], ["fp32"])
        return write_manifest(staging, "bundle", inputs, name=options.name, **fields)


def require_passed(records: Mapping[str, Any], precisions: Sequence[str]) -> None:
    """Check that those variants passed their gates.

    Args:
        records: ``precisions`` of the bundle's manifest.

    Raises:
        GateError: one did not; the message names it with its figures.
    """
    failed = [
        f"{precision} failed: {'; '.join(gate['message'] for gate in records[precision]['gates'] if not gate['passed'])}"
        for precision in precisions
        if records[precision]["verdict"] != "passed"
    ]
    if failed:
        hint = (
            "the graph does not compute what PyTorch computes"
            if "fp32" in precisions and len(precisions) == 1
            else "leave it out of --precision, or move --max-metric-drop or --min-agreement"
        )
        raise GateError(". ".join(failed), hint=hint)


def _inputs(options: ExportOptions, source: ExportSource) -> dict[str, Any]:
    record = {
        "task": source.task.settings(),
        "max_length": source.max_length or source.usual_length,
        "max_metric_drop": options.max_metric_drop,
        "min_agreement": options.min_agreement,
        "verify_rows": options.verify_rows,
        "opset": options.opset,
        "device": options.device,
        "seed": options.seed,
        "rows": {"rows": len(source.rows), "sha256": source.rows.digest()},
    }
    return inputs_record(record, [*checkpoint_files(source.folder), *SHAPING])
