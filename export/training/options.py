"""Options of ``finetune`` that say how a model is trained. Light: only the command that trains imports torch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from export.options import Number, Setting, options_of

if TYPE_CHECKING:
    from export.training.hyperparameters import Adapter, Distillation

training_options = options_of(
    click.option("--epochs", type=click.IntRange(min=1), default=3, help="At most."),
    click.option("--batch-size", type=click.IntRange(min=1), default=32, help="Rows a step, on all devices together."),
    click.option(
        "--gradient-accumulation", type=click.IntRange(min=1), default=1, help="Take a step's rows in so many parts: less memory."
    ),
    click.option(
        "--learning-rate",
        type=Number(min=0, min_open=True),
        default=None,
        show_default="by the model's size",
        help="The highest.",
    ),
    click.option("--warmup-ratio", type=Number(0, 1), default=0.1, help="Share of the steps before the highest is reached."),
    click.option(
        "--layer-decay",
        type=Number(0, 1, min_open=True),
        default=1.0,
        help="Share of the learning rate that each layer has of that above it.",
    ),
    click.option("--weight-decay", type=Number(min=0), default=0.01, help="Of AdamW, for all weights but biases and norms."),
    click.option("--class-weights", is_flag=True, help="Let rare labels weigh as much, all rows together, as frequent ones."),
    click.option(
        "--label-smoothing",
        type=Number(0, 1, max_open=True),
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
    click.option(
        "--quantization-aware",
        "--quantisation-aware",
        is_flag=True,
        help="Train with the rounding of int8, where that fails its gate.",
    ),
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
    click.option("--temperature", type=Number(min=0, min_open=True), default=2.0, help="How much a teacher's lesser labels count."),
    click.option("--teacher-weight", type=Number(0, 1), default=0.5, help="Of a teacher against the labels."),
    click.option(
        "--teacher-parts",
        type=click.IntRange(min=0),
        default=0,
        help="Parts of each text to learn from besides, by what the teacher says of them.",
    ),
    click.option(
        "--report-to",
        multiple=True,
        metavar="TRACKER",
        help="Tell tensorboard, mlflow, wandb … how training goes, as transformers does.",
    ),
    click.option("--load-in", type=click.Choice(["4bit", "8bit"]), help="Keep the frozen weights so (GPU, with --adapter: QLoRA)."),
)


def take_adapter(given: dict[str, Any]) -> Adapter | None:
    from export.training.hyperparameters import Adapter

    method, load_in = given.pop("adapter"), given.pop("load_in")
    options = {key: _read(value) for one in given.pop("adapter_option") for key, value in one.items()}
    if method is None and (options or load_in):
        raise click.UsageError(f"{'--load-in' if load_in else '--adapter-option'} goes with --adapter")
    return None if method is None else Adapter(method=method.lower(), options=options, load_in=load_in)


def take_distillation(given: dict[str, Any]) -> Distillation | None:
    from export.training.hyperparameters import Distillation

    teacher, temperature = given.pop("teacher"), given.pop("temperature")
    weight, parts = given.pop("teacher_weight"), given.pop("teacher_parts")
    source = click.get_current_context().get_parameter_source
    alone = [
        name
        for name in ("temperature", "teacher_weight", "teacher_parts")
        if source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if teacher is None and alone:
        raise click.UsageError(f"--{alone[0].replace('_', '-')} goes with --teacher")
    return None if teacher is None else Distillation(teacher=teacher, temperature=temperature, weight=weight, parts=parts)


def _read(value: Any) -> Any:
    """``"16"`` → 16, ``"true"`` → True, and whatever is no JSON as it stands."""
    try:
        return json.loads(value)
    except (TypeError, json.JSONDecodeError):
        return value
