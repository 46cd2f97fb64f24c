"""Export: checkpoint → a bundle of verified ONNX variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from export import checkpoint as checkpoints
from export.data import EVALUATION, Columns, LabelledRows, encode_labels, judged_by, read_evaluation
from export.sources import checkpoint_files, checkpoint_folder, load_rows
from serving.artifact import MANIFEST, inputs_record, is_current, publish, read_manifest, write_manifest
from serving.bundle import PRECISIONS
from serving.errors import ArtifactError, DataError, ExportError, GateError
from serving.runtime import tasks
from serving.runtime.tasks import task_class
from serving.runtime.tasks.base import Task

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
            "convert",
            "data",
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


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of the stage.

    Args:
        name: of the artifact.
        task: as in ``serving.runtime.tasks.names()``.
        checkpoint: location as ``export.sources`` reads it; None: what ``finetune`` left under ``name``.
        test: labelled rows to verify on; None: those that ``finetune`` left in the checkpoint.
        setting: the task's settings chosen, by name, over those that the checkpoint says and those chosen in fine-tuning.
        precision: variants asked for, of ``serving.bundle.PRECISIONS``; empty: all. fp32 is always made, and what an up-to-date
            bundle holds already is kept.
        max_length: tokens kept of a row; None: as fine-tuned, else what the model takes (512 where it takes any number).
        max_metric_drop: points (hundredths) of the main metric that a variant may lose.
        min_agreement: share of labels that must equal the original's; None: 0.995 for fp16, 0.97 for int8. fp32: always 1.
        verify_rows: at most so many rows are verified on, drawn at random; fewer than ``verify.MIN_ROWS`` prove little.
        opset: of the ONNX graphs.
        device: ``auto``, ``cpu`` or ``gpu``: where variants are verified.
        force: export even where the artifact is up to date.
    """

    name: str
    task: str
    checkpoint: str | None = None
    test: str | None = None
    columns: Columns = field(default_factory=Columns)
    setting: Mapping[str, Any] = field(default_factory=dict)
    precision: tuple[str, ...] = ()
    max_length: int | None = None
    max_metric_drop: float = 0.5
    min_agreement: float | None = None
    verify_rows: int = 1000
    opset: int = 18
    device: str = "auto"
    seed: int = 0
    artifacts: Path = Path("artifacts")
    force: bool = False

    @property
    def target(self) -> Path:
        """The artifact's folder."""
        return self.artifacts / self.name / "bundle"

    @property
    def precisions(self) -> tuple[str, ...]:
        """Variants to make, fp32 first."""
        wanted = {"fp32", *(self.precision or PRECISIONS)}
        return tuple(precision for precision in PRECISIONS if precision in wanted)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint that was found fit for export, and the rows to verify on.

    Args:
        name: for people: the location as given, without any folder's path.
        task: bound to the checkpoint's config.
        max_length: as asked for or fine-tuned with; None: unknown.
        usual_length: what the checkpoint says it is used with otherwise, where it does.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    task: Task
    rows: LabelledRows
    max_length: int | None
    usual_length: int | None


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
            click.echo(f"{options.target} is up to date", err=True)
            return manifest
        options = replace(options, precision=(*options.precisions, *manifest["precisions"]))  # what is there stays there

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


def find_source(options: ExportOptions) -> Source:
    """Find the checkpoint and the rows, and check that they fit the task and each other.

    Raises:
        ArtifactError: the checkpoint is missing, or of another task.
        DataError: there are no rows, or their labels are not the checkpoint's.
        ExportError: the task is not exported, or cannot be verified for this checkpoint.
    """
    task_type = task_class(options.task)
    if not task_type.exported:
        raise ExportError(
            f"checkpoints of {task_type.name} are fine-tuned here, not exported yet: the model answers one token at a time",
            hint="use the checkpoint itself, with transformers.pipeline",
        )
    name, folder = _located(options)
    config = checkpoints.read_config(folder)
    trained = read_manifest(folder, "checkpoint") if (folder / MANIFEST).is_file() else {}
    if trained.get("task", options.task) not in (options.task, task_type.trained_as):
        known = trained["task"]
        raise ArtifactError(f"{folder} was fine-tuned for {known}, not {options.task}", hint=f"give --task {known}")
    checkpoints.require_task(config, task_type, name)
    pair = len(options.columns.resolved(task_type).texts) == 2 or bool(trained.get("pair"))
    chosen = trained.get("chosen_settings", {}) | dict(options.setting)
    try:
        task = replace(task_type.from_config(config, pair=pair), **checkpoints.settings(folder, task_type, chosen))
    except ValueError as error:
        raise ExportError(f"{name} cannot be served for {task_type.name}: {error}", hint="see its config.json") from None
    if options.test is None and trained.get("task", options.task) != options.task:
        raise DataError(
            f"the rows in {folder} are of {trained['task']}, none to verify {options.task} on", hint="give some with --test"
        )
    task, rows = _rows(options, folder, task)
    return Source(
        name=name,
        folder=folder,
        config=config,
        task=task,
        rows=rows,
        max_length=options.max_length or trained.get("max_length"),
        usual_length=task_type.checkpoint_length(checkpoints.read_files(folder, task_type)),
    )


def _located(options: ExportOptions) -> tuple[str, Path]:
    """What to call the checkpoint, and its folder."""
    if options.checkpoint is None:
        folder = options.artifacts / options.name / "checkpoint"
        read_manifest(folder, "checkpoint")  # says how to make one
        return options.name, folder
    folder = checkpoint_folder(options.checkpoint, options.artifacts / "quickstart")
    return (Path(options.checkpoint).name if Path(options.checkpoint).is_dir() else options.checkpoint), folder


def _rows(options: ExportOptions, folder: Path, task: Task) -> tuple[Task, LabelledRows]:
    """The rows to verify on, and the task that is held against them."""
    if options.test is not None:
        found = load_rows(options.test, options.columns, type(task), split="test", cache=options.artifacts / "quickstart")
        if len(found.texts) != task.text_columns:
            raise DataError(
                f"the checkpoint takes {task.text_columns} texts a row, the rows hold {len(found.texts)}",
                hint="name the columns with --text-column and --text-pair-column",
            )
        judged = judged_by(task, found)
        return judged, encode_labels(found, judged)
    if (folder / EVALUATION).is_file():
        return task, read_evaluation(folder, task)
    raise DataError(f"{folder} holds no labelled rows to verify on", hint="give some with --test")


def _inputs(options: ExportOptions, source: Source) -> dict[str, Any]:
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
