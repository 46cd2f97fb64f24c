"""What shapes a training. Light: read before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serving.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What shapes the training itself.

    Args:
        epochs: at most; fewer where ``early_stopping`` sets in.
        batch_size: rows a step of the optimizer, on all devices together.
        gradient_accumulation: parts that a device takes its rows of a step in: less memory, the same step.
        learning_rate: the highest, reached after ``warmup_ratio`` of all steps, falling to 0 at the end; None: by the size of
            what is trained (see :func:`default_learning_rate`).
        layer_decay: each layer learns at this share of the rate of the one above it (Howard and Ruder 2018); 1: all alike.
        weight_decay: of AdamW, for all weights but biases and those of norms.
        class_weights: let rare labels weigh as much, all rows together, as frequent ones.
        label_smoothing: probability taken from the right label and spread over all (Szegedy et al. 2016).
        early_stopping: epochs without a better main metric after which training stops; 0: never.
        mixed_precision: what is computed in while weights stay float32: ``no``, ``bf16`` or ``fp16``; ``auto``: what
            ``accelerate launch`` was told, else bf16 on a GPU that has it.
        gradient_checkpointing: compute activations twice rather than keep them.
        quantization_aware: train with the rounding of int8, so that it does less harm later.
        compiled: run the model through ``torch.compile``.
        seed: of the new head, dropout, row order and every random choice of rows.
    """

    epochs: int = 3
    batch_size: int = 32
    gradient_accumulation: int = 1
    learning_rate: float | None = None
    warmup_ratio: float = 0.1
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    class_weights: bool = False
    label_smoothing: float = 0.0
    early_stopping: int = 2
    mixed_precision: str = "auto"
    gradient_checkpointing: bool = False
    quantization_aware: bool = False
    compiled: bool = False
    seed: int = 0

    def per_device_batch_size(self, processes: int) -> int:
        """Rows that one of ``processes`` holds at a time.

        Raises:
            DataError: a step's rows cannot be shared out evenly.
        """
        parts = processes * self.gradient_accumulation
        if self.batch_size % parts:
            several = f"{processes} processes × {self.gradient_accumulation} parts each"
            raise DataError(
                f"a step of {self.batch_size} rows cannot be shared out evenly over {several}",
                hint=f"give a --batch-size that {parts} divides",
            )
        return self.batch_size // parts


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is trained in place of all weights.

    Args:
        method: of ``peft``, such as ``lora``.
        options: of that method's configuration, such as ``{"r": 8}``, over its defaults and those of ``export.training.adapters``.
        load_in: ``4bit`` or ``8bit``: keep the frozen weights so (QLoRA, Dettmers et al. 2023); None: as they are.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    load_in: str | None = None


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Whom to learn from besides the labels.

    Args:
        teacher: a folder, or a name on the Hub: a larger checkpoint, fine-tuned for the same task and labels.
        temperature: what both models' logits are divided by before they are compared: the higher, the more the lesser labels count.
        weight: of the teacher against the labels, 0 to 1.
        parts: of each text, that are learnt from besides: they have no label, only what the teacher says of them.
    """

    teacher: str
    temperature: float = 2.0
    weight: float = 0.5
    parts: int = 0


def default_learning_rate(parameters: int, *, adapter: bool) -> float:
    """Where good rates for AdamW lie for an encoder with so many parameters: the smaller the model, the higher.

    BERT (Devlin et al. 2019) tried 2e-5 to 5e-5 for base and large; MiniLM (Wang et al. 2020) took up to 1e-4 for its small ones.
    An adapter starts from nothing and takes about ten times as much (LoRA, Hu et al. 2021).
    """
    rate = 1e-4 if parameters < 5e7 else 5e-5 if parameters < 2e8 else 2e-5 if parameters < 1e9 else 1e-5
    return 10 * rate if adapter else rate
