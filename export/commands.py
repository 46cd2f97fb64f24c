"""``tritonize finetune`` and ``tritonize export``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from export.data import Columns
    from export.training.hyperparameters import Adapter, Distillation

Command = TypeVar("Command", bound=Callable[..., Any])


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return apply


def _plain_name(_ctx: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise click.BadParameter(f"{name!r}: letters, digits, '_', '-' and '.' only, and neither of the last two first")
    return name


def _repository_name(_ctx: click.Context, _parameter: click.Parameter, name: str | None) -> str | None:
    """Callback: refuse what is no ``OWNER/NAME`` (or ``NAME``) before anything is made that could not be shared."""
    if name is not None and not re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]{0,95}", name):
        raise click.BadParameter(f"{name!r} is no repository of the Hub: OWNER/NAME")
    return name


def _known_task(_ctx: click.Context, _parameter: click.Parameter, task: str) -> str:
    from serving.runtime.tasks import names

    if task not in names():
        raise click.BadParameter(f"{task!r} is not one of {', '.join(names())}")
    return task


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


class Setting(click.ParamType[dict[str, Any]]):
    """``"pooling=cls"`` → ``{"pooling": "cls"}``; a recipe may give a table."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        key, equals, chosen = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not of the form KEY=VALUE", param, ctx)
        return {key.strip().replace("-", "_"): chosen.strip()}


def _take_setting(given: dict[str, Any]) -> dict[str, Any]:
    """The task's settings that were chosen, checked."""
    from serving.runtime.tasks import task_class

    chosen = {key: value for one in given.pop("setting") for key, value in one.items()}
    try:
        return task_class(given["task"]).chosen_settings(chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--setting") from None


_shared = _options(
    click.option("--name", default="model", callback=_plain_name, help="Name of the model: its folder's, and its own in Triton."),
    click.option("--task", default="text-classification", callback=_known_task, help="What the model does."),
    click.option(
        "--setting", type=Setting(), multiple=True, metavar="KEY=VALUE", help="What the task leaves to choose, such as pooling=cls."
    ),
    click.option("--artifacts", type=click.Path(path_type=Path, file_okay=False), default="artifacts", help="Of all artifacts."),
    click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", help="Where to compute."),
    click.option("--seed", type=click.IntRange(min=0), default=0, help="Of every random choice."),
    click.option("--force", is_flag=True, help="Run even where nothing has changed since the last run."),
    click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON on standard output."),
)
_sharing = _options(
    click.option(
        "--push-to-hub", callback=_repository_name, metavar="OWNER/NAME", help="Upload the artifact to the Hugging Face Hub."
    ),
    click.option("--private", is_flag=True, help="Make that repository a private one, if it is not there yet."),
)
_columns = _options(
    click.option("--text-column", default=None, show_default="as the task has it", help="Column of the text, or the first of two."),
    click.option("--text-pair-column", default=None, help="Column of the second text."),
    click.option(
        "--choice-column",
        multiple=True,
        show_default="as the task has it",
        help="Column of the choices; several: of one choice each.",
    ),
    click.option(
        "--label-column",
        multiple=True,
        show_default="as the task has it",
        help="Column of what is right; several: one for each label, 1 in the rows that have it.",
    ),
)

_training = _options(
    click.option("--epochs", type=click.IntRange(min=1), default=3, help="At most."),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Rows a step, on all devices together."),
    click.option(
        "--gradient-accumulation", type=click.IntRange(min=1), default=1, help="Take a step's rows in so many parts: less memory."
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(min=0, min_open=True),
        default=None,
        show_default="by the model's size",
        help="The highest.",
    ),
    click.option(
        "--warmup-ratio", type=click.FloatRange(0, 1), default=0.1, help="Share of the steps before the highest is reached."
    ),
    click.option(
        "--layer-decay",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        help="Share of the learning rate that each layer has of that above it.",
    ),
    click.option(
        "--weight-decay", type=click.FloatRange(min=0), default=0.01, help="Of AdamW, for all weights but biases and norms."
    ),
    click.option("--class-weights", is_flag=True, help="Let rare labels weigh as much, all rows together, as frequent ones."),
    click.option(
        "--label-smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        help="Probability taken from the right label and spread over all.",
    ),
    click.option(
        "--early-stopping", type=click.IntRange(min=0), default=2, help="Stop after so many epochs without gain; 0: never."
    ),
    click.option(
        "--mixed-precision",
        type=click.Choice(["auto", "no", "bf16", "fp16"]),
        default="auto",
        help="What is computed in; auto: bf16 on a GPU that has it.",
    ),
    click.option("--gradient-checkpointing", is_flag=True, help="Compute activations twice: less memory."),
    click.option("--quantisation-aware", is_flag=True, help="Train with the rounding of int8, where that fails its gate."),
    click.option("--compile", "compiled", is_flag=True, help="Run the model through torch.compile."),
    click.option(
        "--search",
        type=click.IntRange(min=0),
        default=0,
        help="Try so many other hyper-parameters, and train with the best.",
    ),
    click.option(
        "--adapter", metavar="METHOD", help="Train few weights beside frozen ones: lora, or any method of peft that merges."
    ),
    click.option(
        "--adapter-option", type=Setting(), multiple=True, metavar="KEY=VALUE", help="Of that method's configuration, such as r=16."
    ),
    click.option(
        "--teacher", help="Larger checkpoint, fine-tuned for the same labels, to learn from as well: folder, or name on the Hub."
    ),
    click.option(
        "--temperature", type=click.FloatRange(min=0, min_open=True), default=2.0, help="How much a teacher's lesser labels count."
    ),
    click.option("--teacher-weight", type=click.FloatRange(0, 1), default=0.5, help="Of a teacher against the labels."),
    click.option(
        "--report-to",
        multiple=True,
        metavar="TRACKER",
        help="Tell tensorboard, mlflow, wandb … how training goes, as transformers does.",
    ),
    click.option("--load-in", type=click.Choice(["4bit", "8bit"]), help="Keep the frozen weights so (GPU, with --adapter: QLoRA)."),
)


def _take_adapter(given: dict[str, Any]) -> Adapter | None:
    from export.training.hyperparameters import Adapter

    method, load_in = given.pop("adapter"), given.pop("load_in")
    options = {key: _read(value) for one in given.pop("adapter_option") for key, value in one.items()}
    if method is None and (options or load_in):
        raise click.UsageError(f"{'--load-in' if load_in else '--adapter-option'} goes with --adapter")
    return None if method is None else Adapter(method=method.lower(), options=options, load_in=load_in)


def _take_distillation(given: dict[str, Any]) -> Distillation | None:
    from export.training.hyperparameters import Distillation

    teacher, temperature, weight = given.pop("teacher"), given.pop("temperature"), given.pop("teacher_weight")
    return None if teacher is None else Distillation(teacher=teacher, temperature=temperature, weight=weight)


def _read(value: Any) -> Any:
    """``"16"`` → 16, ``"true"`` → True, and whatever is no JSON as it stands."""
    try:
        return json.loads(value)
    except (TypeError, json.JSONDecodeError):
        return value


def _max_length(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--max-length", type=click.IntRange(min=4), default=None, show_default=default, help="Tokens kept of a row."
    )


def _take_columns(given: dict[str, Any]) -> Columns:
    from export.data import Columns

    label = tuple(given.pop("label_column"))
    return Columns(
        text=given.pop("text_column"),
        text_pair=given.pop("text_pair_column"),
        choices=tuple(given.pop("choice_column")),
        label=label[0] if len(label) == 1 else None,
        labels=label if len(label) > 1 else (),
    )


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
@_shared
@click.option("--checkpoint", required=True, help="Folder, name on the Hugging Face Hub, or quickstart:minilm.")
@click.option(
    "--train",
    required=True,
    help="csv, tsv, jsonl or parquet file, pattern or folder of such, hub:NAME[/CONFIG][:SPLIT], or quickstart:reviews.",
)
@click.option("--validation", default=None, show_default="a tenth of --train", help="Rows to choose the best epoch by.")
@click.option("--test", default=None, help="Rows that no choice depends on; export measures on them.")
@_columns
@_max_length("as the task has it, or the model's limit if that is less")
@click.option("--max-train-rows", type=click.IntRange(min=2), default=None, show_default="all", help="Draw so many training rows.")
@click.option("--keep-leaks", is_flag=True, help="Learn from training rows too that are validation or test rows.")
@_training
@_sharing
def finetune_command(as_json: bool, **given: Any) -> None:
    """Train a checkpoint on labelled rows and keep the best epoch: artifacts/NAME/checkpoint/."""
    from dataclasses import asdict, fields

    from export.finetune import FinetuneOptions, finetune
    from export.training import distributed
    from export.training.hyperparameters import Hyperparameters

    _drop_rows_of_other_data(click.get_current_context(), given)
    training = Hyperparameters(**{field.name: given.pop(field.name) for field in fields(Hyperparameters)})
    shared = given.pop("push_to_hub"), given.pop("private")
    taken: dict[str, Any] = {"adapter": _take_adapter(given), "distillation": _take_distillation(given)}
    source = click.get_current_context().get_parameter_source
    taken["fixed"] = tuple(name for name in asdict(training) if source(name) is not click.core.ParameterSource.DEFAULT)
    options = FinetuneOptions(columns=_take_columns(given), setting=_take_setting(given), training=training, **taken, **given)
    manifest = finetune(options)
    if as_json and distributed.is_main():
        click.echo(json.dumps({"artifact": str(options.target), "figures": manifest["figures"]}, indent=2))
    for split in ("validation", "test"):
        if split in manifest["figures"]:
            shown = ", ".join(f"{key} {value:.4f}" for key, value in manifest["figures"][split].items())
            distributed.say(f"{split}: {shown}")
    distributed.say(f"checkpoint: {options.target}")
    if distributed.is_main():
        _share(options.target, *shared)
    distributed.leave()


@click.command("export")
@_shared
@click.option("--checkpoint", default=None, show_default="artifacts/NAME/checkpoint", help="Folder, or name on the Hub.")
@click.option("--test", default=None, show_default="those that finetune kept", help="Labelled rows to verify on, as for finetune.")
@_columns
@_max_length("as fine-tuned, else the model's limit")
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
@_sharing
def export_command(as_json: bool, precision: tuple[tuple[str, ...], ...], **given: Any) -> None:
    """Convert a checkpoint to ONNX and verify each variant on real rows: artifacts/NAME/bundle/."""
    from export.bundle import ExportOptions, export, require_passed
    from export.verify import MIN_ROWS

    if given["verify_rows"] < MIN_ROWS:
        wanted = f"{given['verify_rows']} is too few, at least {MIN_ROWS} are needed: fewer prove little"
        raise click.BadParameter(wanted, param_hint="--verify-rows")
    shared = given.pop("push_to_hub"), given.pop("private")
    asked = tuple(dict.fromkeys(one for several in precision for one in several))
    options = ExportOptions(columns=_take_columns(given), setting=_take_setting(given), precision=asked, **given)
    manifest = export(options)
    if as_json:
        figures = {key: manifest[key] for key in ("original", "precisions")}
        click.echo(json.dumps({"artifact": str(options.target)} | figures, indent=2))
    for line in _table(manifest):
        click.echo(line, err=True)
    require_passed(manifest["precisions"], asked)
    click.echo(f"bundle: {options.target}", err=True)
    _share(options.target, *shared, within="onnx")


def _speed_devices(variants: dict[str, dict[str, Any]]) -> str:
    """Where the speeds were measured: those of unlike devices, side by side, invite a comparison that says nothing."""
    on_gpu = [precision for precision, figures in variants.items() if figures["speed_device"] == "gpu"]
    others = [precision for precision in variants if precision not in on_gpu]
    if not on_gpu:
        return "one thread"
    on_cpu = f"; {', '.join(others)} on one thread of a CPU: not to be compared" if others else ""
    return f"PyTorch, {', '.join(on_gpu)} on the GPU{on_cpu}"


def _table(manifest: dict[str, Any]) -> list[str]:
    """The variants and the original, one a line, and why any was left out."""
    metric = manifest["main_metric"]
    original = {"label_agreement": 1.0, "max_logit_difference": 0.0} | manifest["original"]
    variants = {precision: record["figures"] for precision, record in manifest["precisions"].items()}
    lines = [f"{'':8} {metric:>9} {'agreement':>10} {'max diff':>9} {'MB':>7} {'ms':>7} {'rows/s':>7}"]
    for title, figures in {"PyTorch": original, **variants}.items():
        difference = figures["max_logit_difference"]
        lines.append(
            f"{title:8} {figures[metric]:9.4f} {figures['label_agreement']:10.2%} "
            f"{'none' if difference is None else format(difference, '.2g'):>9} "
            f"{figures['bytes'] / 1e6:7.1f} {figures['latency_ms']:7.2f} {figures['throughput']['1']:7.0f}"
        )
    lines.append(f"on {original['rows']} rows; speed of the model alone, one row at a time, {_speed_devices(variants)}")
    lines += [f"warning: {warning}" for warning in manifest["warnings"]]
    lines += [
        f"{precision} is left out: {gate['message']}"
        for precision, record in manifest["precisions"].items()
        for gate in record["gates"]
        if not gate["passed"]
    ]
    return lines
