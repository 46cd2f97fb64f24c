"""``tritonize finetune`` and ``tritonize export``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.options import column_options, max_length_option, shared_options, sharing_options, take_columns, take_setting
from export.training.options import take_adapter, take_distillation, training_options

if TYPE_CHECKING:
    from serving.manifests import BundleManifest, Precision, SpeedFigures, VariantRecord


class Precisions(click.ParamType[tuple[str, ...]]):
    """One precision, or several with commas between: ``"fp32,int8"`` → ``("fp32", "int8")``."""

    name = "precision"
    known = ("fp32", "fp16", "int8")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        found = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
        for precision in found:
            if precision not in self.known:
                self.fail(f"{precision!r} is not one of {', '.join(self.known)}", param, ctx)
        return found


def _drop_rows_of_other_data(ctx: click.Context, given: dict[str, Any]) -> None:
    """Whoever trains on rows of their own over a recipe's does not mean to be judged on the recipe's."""
    own = ctx.get_parameter_source("train") is click.core.ParameterSource.COMMANDLINE
    if own and given["train"] != (ctx.default_map or {}).get("train"):
        left = [name for name in ("validation", "test") if ctx.get_parameter_source(name) is click.core.ParameterSource.DEFAULT_MAP]
        given.update(dict.fromkeys(left))
        if left:
            click.echo(f"the recipe's {' and '.join(left)} rows are left out: they belong to its own training rows", err=True)


def _share(folder: Path, repository: str | None, private: bool, *, within: str = "") -> None:
    if repository is not None:
        from export.hub import push

        click.echo(f"on the Hub: {push(folder, repository, private=private, within=within)}", err=True)


@click.command("finetune")
@shared_options
@click.option("--checkpoint", required=True, help="Folder, name on the Hugging Face Hub, or quickstart:minilm.")
@click.option(
    "--train",
    required=True,
    help="csv, tsv, jsonl or parquet file, pattern or folder of such, hub:NAME[/CONFIG][:SPLIT], or quickstart:reviews.",
)
@click.option("--validation", default=None, show_default="a tenth of --train", help="Rows to choose the best epoch by.")
@click.option("--test", default=None, help="Rows that no choice depends on; export measures on them.")
@column_options
@max_length_option("as the task has it, more where rows are longer, at most what the model takes")
@click.option("--max-train-rows", type=click.IntRange(min=2), default=None, show_default="all", help="Draw so many training rows.")
@click.option("--keep-leaks", is_flag=True, help="Learn from training rows too that are validation or test rows.")
@training_options
@sharing_options
def finetune_command(as_json: bool, **given: Any) -> None:
    """Train a checkpoint on labelled rows and keep the best epoch: artifacts/NAME/checkpoint/."""
    from dataclasses import asdict, fields

    from export.finetune import FinetuneOptions, finetune
    from export.training import distributed
    from export.training.hyperparameters import Hyperparameters

    _drop_rows_of_other_data(click.get_current_context(), given)
    training = Hyperparameters(**{field.name: given.pop(field.name) for field in fields(Hyperparameters)})
    place = given.pop("push_to_hub"), given.pop("private")
    taken: dict[str, Any] = {"adapter": take_adapter(given), "distillation": take_distillation(given)}
    source = click.get_current_context().get_parameter_source
    taken["fixed"] = tuple(name for name in asdict(training) if source(name) is not click.core.ParameterSource.DEFAULT)
    options = FinetuneOptions(columns=take_columns(given), setting=take_setting(given), training=training, **taken, **given)
    manifest = finetune(options)
    if as_json and distributed.is_main():
        click.echo(json.dumps({"artifact": str(options.target), "figures": manifest.figures.model_dump(mode="json")}, indent=2))
    for split, measured in manifest.figures.splits.items():
        shown = ", ".join(f"{key} {value:.4f}" for key, value in measured.items())
        distributed.say(f"{split}: {shown}")
    distributed.say(f"checkpoint: {options.target}")
    if distributed.is_main():
        _share(options.target, *place)
    distributed.leave()


@click.command("export")
@shared_options
@click.option("--checkpoint", default=None, show_default="artifacts/NAME/checkpoint", help="Folder, or name on the Hub.")
@click.option("--test", default=None, show_default="those that finetune kept", help="Labelled rows to verify on, as for finetune.")
@column_options
@max_length_option("as fine-tuned, else the model's limit")
@click.option(
    "--precision",
    type=Precisions(),
    multiple=True,
    show_default="fp32,fp16,int8",
    metavar="fp32|fp16|int8[,…]",
    help="Variants to make (fp32 always is). Asked for by name, one that fails its gates makes the exit code 1.",
)
@click.option("--max-metric-drop", type=click.FloatRange(min=0), default=0.5, help="Points of the main metric a variant may lose.")
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    default=None,
    show_default="fp16 0.995, int8 0.97",
    help="Share of labels that must equal the original's (fp32: always all).",
)
@click.option("--verify-rows", type=click.IntRange(min=1), default=1000, help="Verify on at most so many rows, 64 or more.")
@click.option("--opset", type=click.IntRange(17, 18), default=18, help="ONNX operator set.")
@sharing_options
def export_command(as_json: bool, precision: tuple[tuple[str, ...], ...], **given: Any) -> None:
    """Convert a checkpoint to ONNX and verify each variant on real rows: artifacts/NAME/bundle/."""
    from export.bundle import export, require_passed
    from export.export_options import ExportOptions
    from export.verify import MIN_ROWS

    if given["verify_rows"] < MIN_ROWS:
        wanted = f"{given['verify_rows']} is too few, at least {MIN_ROWS} are needed: fewer prove little"
        raise click.BadParameter(wanted, param_hint="--verify-rows")
    place = given.pop("push_to_hub"), given.pop("private")
    asked = tuple(dict.fromkeys(one for several in precision for one in several))
    options = ExportOptions(columns=take_columns(given), setting=take_setting(given), precision=asked, **given)
    manifest = export(options)
    if as_json:
        figures = manifest.model_dump(mode="json", include={"original", "precisions"})
        click.echo(json.dumps({"artifact": str(options.target)} | figures, indent=2))
    for line in _table(manifest):
        click.echo(line, err=True)
    require_passed(manifest.precisions, asked)
    click.echo(f"bundle: {options.target}", err=True)
    _share(options.target, *place, within="onnx")


def _speed_devices(records: Mapping[Precision, VariantRecord]) -> str:
    """Say where the speeds were measured: those of different devices must not be compared."""
    on_gpu = [precision for precision, record in records.items() if record.figures.speed_device == "gpu"]
    others = [precision for precision in records if precision not in on_gpu]
    if not on_gpu:
        return "one thread"
    on_cpu = f"; {', '.join(others)} on one thread of a CPU: not to be compared" if others else ""
    return f"PyTorch, {', '.join(on_gpu)} on the GPU{on_cpu}"


def _table(manifest: BundleManifest) -> list[str]:
    """Return the variants and the original, one a line, and why any was left out."""
    metric, original = manifest.main_metric, manifest.original
    lines = [
        f"{'':8} {metric:>9} {'agreement':>10} {'max diff':>9} {'MB':>7} {'ms':>7} {'rows/s':>7}",
        _line("PyTorch", metric, original, original.bytes, agreement=1.0, difference=0.0),
    ]
    for precision, record in manifest.precisions.items():
        found = record.figures
        agreement, difference = found.label_agreement, found.max_logit_difference
        lines.append(_line(precision, metric, found, found.bytes, agreement=agreement, difference=difference))
    speed = _speed_devices(manifest.precisions)
    lines.append(f"on {original.rows} rows; speed of the model alone, one row at a time, {speed}")
    lines += [f"warning: {warning}" for warning in manifest.warnings]
    lines += [
        f"{precision} is left out: {gate.message}"
        for precision, record in manifest.precisions.items()
        for gate in record.gates
        if not gate.passed
    ]
    return lines


def _line(title: str, metric: str, figures: SpeedFigures, size: int, *, agreement: float, difference: float | None) -> str:
    shown = "none" if difference is None else format(difference, ".2g")
    return (
        f"{title:8} {figures.metrics[metric]:9.4f} {agreement:10.2%} {shown:>9} {size / 1e6:7.1f} {figures.latency_ms:7.2f} "
        f"{figures.throughput.one_by_one:7.0f}"
    )
