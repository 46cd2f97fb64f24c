"""The commands ``finetune`` and ``export``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from export.columns import Columns, HeldOutColumns
from export.export_options import ExportOptions
from export.finetune_options import FinetuneOptions
from export.options import SharingOptions, refuse_idle_columns, with_checked_setting
from export.training.hyperparameters import Hyperparameters
from serving.click_options import given_fields, with_options
from serving.idle_options import flags_of, refuse_idle
from serving.options import OutputOptions
from serving.reporting import is_main_process, logger

if TYPE_CHECKING:
    from serving.manifests import BundleManifest, CheckpointManifest


@click.command("finetune")
@with_options
def finetune_command(options: FinetuneOptions, sharing: SharingOptions, output: OutputOptions) -> None:
    """Train a checkpoint on labelled rows and keep the best epoch: artifacts/NAME/checkpoint/."""
    from export.training import distributed

    options = prepare_finetune(_without_rows_of_other_data(click.get_current_context(), options), sharing)
    manifest = run_finetune(options)
    if output.json and is_main_process():
        click.echo(json.dumps({"artifact": str(options.target), "figures": manifest.figures.model_dump(mode="json")}, indent=2))
    finish_finetune(options, sharing)
    distributed.destroy_process_group()


@click.command("export")
@with_options
def export_command(options: ExportOptions, sharing: SharingOptions, output: OutputOptions) -> None:
    """Convert a checkpoint to ONNX and verify each variant on real rows: artifacts/NAME/bundle/."""
    options = prepare_export(options, sharing)
    manifest = run_export(options)
    if output.json:
        figures = manifest.model_dump(mode="json", include={"original", "precisions"})
        click.echo(json.dumps({"artifact": str(options.target)} | figures, indent=2))
    finish_export(manifest, options, sharing)


def prepare_finetune(options: FinetuneOptions, sharing: SharingOptions) -> FinetuneOptions:
    """Check the options and choose a name. The context of a Click command tells which options were given."""
    from export.training_name import named_for_training
    from serving.naming import recipe_name

    refuse_idle_columns(options.columns, options.task)
    if options.test is None:
        refuse_idle(flags_of(HeldOutColumns), "without --test")
    _refuse_idle_sharing(sharing)
    ctx = click.get_current_context()
    options = replace(with_checked_setting(options), fixed=given_fields(Hyperparameters, ctx))
    return named_for_training(options, recipe_name(ctx))


def run_finetune(options: FinetuneOptions) -> CheckpointManifest:
    """Train a checkpoint and report its figures."""
    from export.baseline import figure_lines, warn_if_not_better
    from export.finetuning import finetune
    from export.tasks import trained_class

    manifest = finetune(options)
    for line in figure_lines(manifest.figures, trained_class(manifest.task).metric_note):
        logger.info(line)
    warn_if_not_better(manifest.figures, manifest.main_metric)
    return manifest


def finish_finetune(options: FinetuneOptions, sharing: SharingOptions) -> None:
    """Say where the checkpoint is, and upload it if that was asked for."""
    logger.info(f"checkpoint: {options.target}")
    if is_main_process():
        _share(options.target, sharing)


def prepare_export(options: ExportOptions, sharing: SharingOptions) -> ExportOptions:
    """Check the options, and find the name and the task of the checkpoint."""
    from export.export_subject import described_export
    from serving.naming import recipe_name

    _refuse_idle_sharing(sharing)
    if options.test is None:
        pairs = "--text-pair-column"  # of a checkpoint without its manifest, it says that rows are pairs
        flags = [flag for flag in flags_of(Columns) if flag != pairs or options.checkpoint is None]
        refuse_idle(flags, "without --test: the rows that finetune kept have no columns to choose")
    if options.precisions == ("fp32",):
        refuse_idle(["--min-agreement", "--min-row-agreement"], "for fp32, whose labels must all agree")
    if options.task:
        refuse_idle_columns(options.columns, options.task)
        options = with_checked_setting(options)  # now rather than after a download
    options = with_checked_setting(described_export(options, recipe_name(click.get_current_context())))
    _refuse_idle_row_agreement(options.task)
    return options


def run_export(options: ExportOptions) -> BundleManifest:
    """Export a checkpoint and report the figures of all variants."""
    from export.bundle import export
    from export.variant_table import variant_table

    manifest = export(options)
    for line in variant_table(manifest):
        logger.info(line)
    for warning in [*manifest.warnings, *_failed_gates(manifest)]:
        logger.warning(warning)
    return manifest


def finish_export(manifest: BundleManifest, options: ExportOptions, sharing: SharingOptions) -> None:
    """Check the variants that were asked for, say where the bundle is, and upload it if that was asked for.

    Raises:
        GateError: A variant that was asked for failed its gates.
    """
    from export.bundle import require_passed

    require_passed(manifest.precisions, options.precision)
    logger.info(f"bundle: {options.target}")
    _share(options.target, sharing, within="onnx")


def _without_rows_of_other_data(ctx: click.Context, options: FinetuneOptions) -> FinetuneOptions:
    """Ignore the recipe's validation and test rows if ``--train`` replaces the recipe's training rows."""
    given = ctx.get_parameter_source("train") is ParameterSource.COMMANDLINE
    ignored = [name for name in ("validation", "test") if ctx.get_parameter_source(name) is ParameterSource.DEFAULT_MAP]
    if not given or not ignored or options.train == (ctx.default_map or {}).get("train"):
        return options
    logger.info(f"--train is given: the recipe's {' and '.join(ignored)} rows are ignored")
    return replace(
        options,
        validation=None if "validation" in ignored else options.validation,
        test=None if "test" in ignored else options.test,
    )


def _refuse_idle_sharing(sharing: SharingOptions) -> None:
    if sharing.push_to_hub is None:
        refuse_idle(["--private"], "without --push-to-hub")


def _refuse_idle_row_agreement(task: str) -> None:
    from export.tasks import task_class
    from export.tasks._encoder import ExportedEncoderTask
    from export.tasks._generation import ExportedGenerationTask

    kind = task_class(task)
    if issubclass(kind, ExportedGenerationTask):
        refuse_idle(["--min-row-agreement"], f"for {task}, whose answers are compared token by token")
    else:
        refuse_idle(["--max-perplexity-increase"], f"for {task}, which has no perplexity to compare")
    if issubclass(kind, ExportedEncoderTask) and kind.row_agreement is ExportedEncoderTask.row_agreement:
        refuse_idle(["--min-row-agreement"], f"for {task}, where --min-agreement compares whole answers already")


def _share(folder: Path, sharing: SharingOptions, *, within: str = "") -> None:
    if sharing.push_to_hub is not None:
        from export.hub import push

        logger.info(f"on the Hub: {push(folder, sharing.push_to_hub, private=sharing.private, within=within)}")


def _failed_gates(manifest: BundleManifest) -> list[str]:
    """Describe the failed gates of each variant that is not part of the bundle."""
    return [
        f"{precision} is left out of the bundle: {gate.message}"
        for precision, record in manifest.precisions.items()
        for gate in record.gates
        if not gate.passed
    ]
