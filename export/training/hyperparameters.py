"""Options of training: hyper-parameters, adapter and distillation. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import click

from serving.errors import DataError
from serving.option_fields import Option
from serving.options import Seed


def parse_json_or_text(text: str) -> Any:
    """Read a JSON value such as ``16`` or ``true``; text that is not JSON is returned unchanged.

    Args:
        text: As given on the command line.

    Returns:
        The value.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Hyper-parameters of the training itself. Each field documents itself as a command-line option."""

    epochs: Annotated[int, Option("Maximum number of epochs.", minimum=1)] = 3
    batch_size: Annotated[int, Option("Rows per optimizer step, over all devices.", minimum=1)] = 32
    gradient_accumulation: Annotated[
        int,
        Option("Gradient accumulation steps: each device processes its rows in this many parts, to save memory.", minimum=1),
    ] = 1
    learning_rate: Annotated[float | None, Option("Peak learning rate.", above=0, default_text="by model size")] = None
    warmup_ratio: Annotated[float, Option("Share of all steps used for linear warm-up.", minimum=0, maximum=1)] = 0.1
    layer_decay: Annotated[
        float,
        Option(
            "Layer-wise learning rate decay: ratio of a layer's learning rate to that of the layer above it; 1: no decay.",
            above=0,
            maximum=1,
        ),
    ] = 1.0
    weight_decay: Annotated[
        float, Option("Weight decay of AdamW, for all weights except biases and normalization layers.", minimum=0)
    ] = 0.01
    class_weights: Annotated[bool, Option("Weight the loss by inverse label frequency.")] = False
    label_smoothing: Annotated[float, Option("Label smoothing factor.", minimum=0, below=1)] = 0.0
    early_stopping: Annotated[
        int, Option("Stop after this many epochs without improvement of the main metric; 0: never.", minimum=0)
    ] = 2
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"],
        Option("Data type of the computation; auto: accelerate's setting, otherwise bf16 on a GPU that supports it."),
    ] = "auto"
    gradient_checkpointing: Annotated[bool, Option("Recompute activations in the backward pass, to save memory.")] = False
    quantization_aware: Annotated[
        bool,
        Option("Simulate int8 rounding in training (quantization-aware training).", former=("--quantisation-aware",)),
    ] = False
    compiled: Annotated[bool, Option("Compile the model with torch.compile.", flag="--compile", former_keys=("compiled",))] = False
    seed: Seed = 0

    def per_device_batch_size(self, processes: int) -> int:
        """Compute how many rows a process holds at a time.

        Args:
            processes: Number of processes.

        Returns:
            Rows of a step, divided by processes and accumulation steps.

        Raises:
            DataError: The rows of a step cannot be divided evenly.
        """
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            several = f"{processes} processes × {self.gradient_accumulation} parts each"
            raise DataError(
                f"a step of {self.batch_size} rows cannot be divided evenly over {several}",
                hint=f"give a --batch-size that is a multiple of {parts}",
            )
        return self.batch_size // parts


ADAPTER_METHODS = (
    "adalora", "adamss", "beft", "boft", "c3a", "deft", "delora", "fourierft", "frod", "glora", "gralora", "hira", "hra", "ia3",
    "lily", "ln_tuning", "loha", "lokr", "lora", "miss", "oft", "osf", "peanut", "poly", "psoft", "pvera", "randlora", "road",
    "shadow", "shira", "supertuning", "tinylora", "trainable_tokens", "unilora", "vblora", "vera", "waveft", "xlora",
)  # fmt: skip
"""Methods of ``peft`` whose weights can be merged into the model. A literal, because importing ``peft`` imports torch."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Parameter-efficient fine-tuning: which adapter is trained in place of all weights."""

    method: Annotated[
        str,
        Option(
            f"Train an adapter in place of all weights, and merge it afterwards; a method of peft: {', '.join(ADAPTER_METHODS)}.",
            flag="--adapter",
            metavar="METHOD",
            default_text="none",
            parse=str.lower,
        ),
    ]
    options: Annotated[
        Mapping[str, Any],
        Option(
            "Option of the adapter's configuration in peft, such as r=16. Repeatable.",
            flag="--adapter-option",
            metavar="KEY=VALUE",
            default_text="peft's",
            parse=parse_json_or_text,
        ),
    ] = field(default_factory=dict)
    load_in: Annotated[
        Literal["4bit", "8bit"] | None,
        Option("Load the frozen weights quantized (on a GPU, with --adapter; 4bit: QLoRA).", default_text="unquantized"),
    ] = None


WITHOUT_SOFTMAX = {
    "regression": "the model predicts a number",
    "multi_label_classification": "a row has any number of labels, and each has a sigmoid of its own",
}
"""Problem types whose distillation has no softmax, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Knowledge distillation: the teacher, and how much its predictions count."""

    teacher: Annotated[
        str,
        Option(
            "Checkpoint to distill from, fine-tuned for the same labels: a folder, or a name on the Hugging Face Hub.",
            metavar="CHECKPOINT",
            default_text="none",
        ),
    ]
    temperature: Annotated[float, Option("Temperature of the distillation's softmax.", above=0)] = 2.0
    weight: Annotated[
        float,
        Option("Weight of the distillation loss against the loss on the labels.", flag="--teacher-weight", minimum=0, maximum=1),
    ] = 0.5
    parts: Annotated[
        int,
        Option(
            "N-gram augmentation: the teacher also labels this many random spans of each text.", flag="--teacher-parts", minimum=0
        ),
    ] = 0

    def check_temperature(self, problem_type: object) -> None:
        """Check that the temperature has an effect.

        Args:
            problem_type: ``problem_type`` of the student's config.

        Raises:
            click.BadParameter: The user chose one, and the distillation has no softmax.
        """
        if self.temperature != Distillation.temperature and problem_type in WITHOUT_SOFTMAX:
            raise click.BadParameter(f"it has no effect: {WITHOUT_SOFTMAX[problem_type]}", param_hint="--temperature")


def default_learning_rate(parameters: int, *, adapter: bool) -> float:
    """Choose a peak learning rate for AdamW by the size of the model: the smaller the model, the higher the rate.

    BERT (Devlin et al. 2019) tried 2e-5 to 5e-5 for base and large; MiniLM (Wang et al. 2020) took up to 1e-4 for its small ones.
    An adapter starts from zero and takes about ten times as much (LoRA, Hu et al. 2021).

    Args:
        parameters: Number of parameters of the model.
        adapter: Whether an adapter is trained.

    Returns:
        The learning rate.
    """
    rate = 1e-4 if parameters < 5e7 else 5e-5 if parameters < 2e8 else 2e-5 if parameters < 1e9 else 1e-5
    return 10 * rate if adapter else rate
